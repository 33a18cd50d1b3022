"""Fixtures of the tests of the command line."""

import pytest

from tests.support.colors import loaded_colors
from tests.support.loading import replace_load


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Load the colour network for every run, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    state = {"run": loaded_colors()}
    replace_load(monkeypatch, lambda path, **_: state["run"])
    return state
