"""Runs that are not on disk: tests that replace what loads a network give any path."""

from collections.abc import Callable
from typing import Any

import pytest

from udaseg import preflight
from udaseg.inference import trained_model
from udaseg.prediction import predict as predict_module


def replace_load(patch: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    """Have `load` load every network, and let no path be refused before."""
    patch.setattr(trained_model, "load", load)
    accept_any_run(patch)


def accept_any_run(patch: pytest.MonkeyPatch) -> None:
    """Refuse no run, and no data set, that does not exist."""
    for module, name in (
        (preflight, "refuse_missing_run"),
        (preflight, "refuse_without_checkpoint"),
        (preflight, "refuse_unknown_data"),
        (predict_module, "refuse_without_checkpoint"),
    ):
        patch.setattr(module, name, lambda *_, **__: None)
