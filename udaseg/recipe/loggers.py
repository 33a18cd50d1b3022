"""The loggers of a run."""

import importlib.util

from udaseg.errors import EnvironmentFault
from udaseg.recipe.choices import Logger
from udaseg.recipe.schema import Machine


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
