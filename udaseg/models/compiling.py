"""`torch.compile` of a network's parts, in place: names in checkpoints stay as they are."""

import importlib.util
import os
import shutil

from torch import nn

from udaseg.errors import EnvironmentFault

BACKEND = "inductor"


def compile_parts(parts: list[nn.Module], device: str) -> None:
    """Let each part be compiled at its first call, for each size of its inputs.

    Args:
        parts: Their parameters, buffers and hooks stay their own.
        device: Type of the device that they are on.

    Raises:
        EnvironmentFault: What compiling needs is not on this machine.
    """
    if BACKEND == "inductor":
        _refuse_without_compiler(device)
    for part in parts:
        part.compile(backend=BACKEND, dynamic=False)


def _refuse_without_compiler(device: str) -> None:
    if device == "cpu":
        wanted = [os.environ.get("CXX"), "g++", "clang++"]
        if not any(shutil.which(name) for name in wanted if name):
            raise EnvironmentFault(
                "machine.compile: needs a C++ compiler on a CPU, and there is neither g++ nor "
                "clang++; install one, or leave machine.compile out"
            )
    elif importlib.util.find_spec("triton") is None:
        raise EnvironmentFault(
            "machine.compile: needs triton on a GPU: pip install triton, or leave machine.compile "
            "out"
        )
