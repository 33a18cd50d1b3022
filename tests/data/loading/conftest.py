"""Toyland that is prepared once a file, and copied for each test."""

import shutil

import pytest

from tests.support.toy import toy_root


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Return the folder of prepared toyland."""
    return toy_root(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def root(toys, tmp_path):
    """Return a folder with copies of the prepared data sets; the images are not copied."""
    shutil.copytree(toys / "prepared", tmp_path / "prepared")
    return tmp_path
