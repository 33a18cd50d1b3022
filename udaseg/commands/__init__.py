"""The story of each command, one function each; a command's imports wait until it is called."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.commands.demo import demo
    from udaseg.commands.evaluate import evaluate
    from udaseg.commands.fit import adapt, train
    from udaseg.commands.info import info
    from udaseg.commands.predict import predict
    from udaseg.commands.prepare import prepare

_HOMES = {
    "adapt": "fit",
    "demo": "demo",
    "evaluate": "evaluate",
    "info": "info",
    "predict": "predict",
    "prepare": "prepare",
    "train": "fit",
}

__all__ = ["adapt", "demo", "evaluate", "info", "predict", "prepare", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"udaseg.commands.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
