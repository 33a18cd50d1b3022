"""Fixtures shared by the tests of several packages."""

import os
from pathlib import Path

import pytest
import torch

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
