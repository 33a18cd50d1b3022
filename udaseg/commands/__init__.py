"""One function per command; the modules are imported on first use, to keep start-up fast."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.commands.calibrating import calibrate
    from udaseg.commands.comparing import evaluate_files
    from udaseg.commands.demonstration import demo
    from udaseg.commands.examination import doctor
    from udaseg.commands.exporting import export
    from udaseg.commands.fit import adapt, train
    from udaseg.commands.inspection import info
    from udaseg.commands.prediction import predict
    from udaseg.commands.preparation import prepare
    from udaseg.commands.reporting_page import report
    from udaseg.commands.run_check import verify_run
    from udaseg.commands.scoring import evaluate
    from udaseg.commands.seeds import run_seeds
    from udaseg.commands.selection import select
    from udaseg.commands.submission import submit
    from udaseg.commands.verification import verify

# a module must not have the name of its function: importing it would replace the function
_HOMES = {
    "adapt": "fit",
    "calibrate": "calibrating",
    "demo": "demonstration",
    "doctor": "examination",
    "evaluate": "scoring",
    "evaluate_files": "comparing",
    "export": "exporting",
    "info": "inspection",
    "predict": "prediction",
    "prepare": "preparation",
    "report": "reporting_page",
    "run_seeds": "seeds",
    "select": "selection",
    "submit": "submission",
    "train": "fit",
    "verify": "verification",
    "verify_run": "run_check",
}

__all__ = [
    "adapt",
    "calibrate",
    "demo",
    "doctor",
    "evaluate",
    "evaluate_files",
    "export",
    "info",
    "predict",
    "prepare",
    "report",
    "run_seeds",
    "select",
    "submit",
    "train",
    "verify",
    "verify_run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"udaseg.commands.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
