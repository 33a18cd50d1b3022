"""What `torch.compile` needs."""

import importlib.util
import os
import shutil

from udaseg.errors import EnvironmentFault

BACKEND = "inductor"


def check_compiler(device: str) -> None:
    """Raise EnvironmentFault if this machine cannot compile for a type of device."""
    if BACKEND != "inductor":
        return
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
