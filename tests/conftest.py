"""Fixtures that several rooms' tests share."""

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep small tests from fighting over cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Real files in the true layouts; tests that need them are skipped where they are missing."""
    folder = Path(os.environ.get("UDASEG_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}; set UDASEG_TEST_DATA")
    return folder
