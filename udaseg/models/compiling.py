"""Compile parts of a network in place with `torch.compile`; checkpoint names do not change."""

import importlib.util
import os
import shutil

from torch import nn

from udaseg.errors import EnvironmentFault

BACKEND = "inductor"


def compile_parts(parts: list[nn.Module], device: str) -> None:
    """Compile each part at its first call, once for each input size.

    Args:
        parts: Modules; parameters, buffers and hooks do not change.
        device: Type of the device of the parts.

    Raises:
        EnvironmentFault: This machine has no compiler.
    """
    if BACKEND == "inductor":
        _check_compiler(device)
    for part in parts:
        part.compile(backend=BACKEND, dynamic=False)


def _check_compiler(device: str) -> None:
    if device == "cpu":
        compilers = [os.environ.get("CXX"), "g++", "clang++"]
        if not any(shutil.which(compiler) for compiler in compilers if compiler):
            raise EnvironmentFault(
                "machine.compile: needs a C++ compiler on a CPU, but neither g++ nor clang++ was "
                "found; install one, or remove machine.compile"
            )
    elif importlib.util.find_spec("triton") is None:
        raise EnvironmentFault(
            "machine.compile: needs triton on a GPU: pip install triton, or remove machine.compile"
        )
