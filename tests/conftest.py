"""Fixtures shared by the tests of several packages."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.colors import loaded_colors
from tests.support.loading import replace_load
from tests.support.toy import toy_root

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Use one torch thread, so that small tests do not compete for cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Return a folder of real files in the original layouts; skip the test if it is missing."""
    folder = Path(os.environ.get("UDASEG_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}; set UDASEG_TEST_DATA")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with a small toyland."""
    return toy_root(tmp_path_factory.mktemp("data"))


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log nothing: campaigns repeat the same message hundreds of times."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def colors(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    """Predict with a network that knows colours, and log nothing."""
    replace_load(monkeypatch, lambda path, **_: loaded_colors())
