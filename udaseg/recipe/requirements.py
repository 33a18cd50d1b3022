"""What a run needs of the machine: the packages of its loggers, and a GPU."""

import ctypes
import importlib.util
import sys
from pathlib import Path

from udaseg.errors import EnvironmentFault, UsageError
from udaseg.recipe.choices import DEVICE, DEVICES, Logger
from udaseg.recipe.schema import Machine
from udaseg.text import shortened

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_AMD_DEVICE = Path("/dev/kfd")


def chosen_loggers(machine: Machine) -> tuple[Logger, ...]:
    """Return the loggers of a run; unless the recipe names some, TensorBoard if it is installed.

    Raises:
        EnvironmentFault: The package of a logger is not installed.
    """
    if machine.loggers is None:
        return ("tensorboard",) if is_installed("tensorboard") else ()
    for name in machine.loggers:
        if not is_installed(name):
            raise EnvironmentFault(
                f"machine.loggers: {name} is not installed; run pip install 'udaseg[{name}]', or "
                "leave it out: metrics.jsonl and `udaseg report` have the same numbers"
            )
    return machine.loggers


def is_installed(package: str) -> bool:
    """Return whether a package is installed; a folder of its name is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def refuse_device(name: str) -> None:
    """Refuse a device that does not exist, as far as it is known without torch.

    Raises:
        UsageError: There is no such kind of device.
        EnvironmentFault: It is a GPU, and the machine has no driver of one.
    """
    if not DEVICE.fullmatch(name):
        raise UsageError(f"--device must be {DEVICES}, got {shortened(name)}")
    if name.startswith("mps") and sys.platform != "darwin":
        raise EnvironmentFault(f"{name} is not available: it is Apple's; use --device cpu")
    if name.startswith("cuda") and not may_have_gpu():
        raise EnvironmentFault(
            f"{name} is not available: no driver of a GPU was found; use --device cpu"
        )


def may_have_gpu() -> bool:
    """Return False if the machine has no driver of a GPU, so that torch need not be asked."""
    if _AMD_DEVICE.exists():
        return True
    for driver in _DRIVERS:
        try:
            ctypes.CDLL(driver)
        except OSError:
            continue
        return True
    return False
