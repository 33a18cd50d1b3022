"""What the wheel and the source distribution contain, and what their metadata say."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both from the checkout, and return their paths."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def names(built):
    with zipfile.ZipFile(built[0]) as opened:
        return set(opened.namelist())


def test_every_recipe_is_in_the_wheel(names):
    for path in (REPOSITORY / "recipes").rglob("*.yaml"):
        assert f"udaseg/_recipes/{path.relative_to(REPOSITORY / 'recipes').as_posix()}" in names


def test_every_table_and_module_is_in_the_wheel(names):
    for path in (REPOSITORY / "udaseg").rglob("*"):
        if path.suffix in (".py", ".yaml", ".j2", ".css", ".js", ".typed"):
            assert path.relative_to(REPOSITORY).as_posix() in names


def test_nothing_else_is_in_the_wheel(names):
    assert not [name for name in names if not name.startswith("udaseg")]
    assert any(name.endswith("entry_points.txt") for name in names)


def test_docs_examples_and_tests_are_in_the_source_distribution(built):
    with tarfile.open(built[1]) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for folder in ("docs", "examples", "recipes", "tests", "udaseg"):
        tracked = [path for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
        tracked = [path for path in tracked if "__pycache__" not in path.parts]
        missing = {path.relative_to(REPOSITORY).as_posix() for path in tracked} - names
        assert not missing
    for name in (
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "CITATION.cff",
        "mkdocs.yml",
    ):
        assert name in names


def test_the_metadata_name_every_extra_and_show_the_readme(built):
    with zipfile.ZipFile(built[0]) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith("/METADATA")]
        metadata = email.message_from_string(opened.read(name).decode("utf-8"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    address = PROJECT["urls"]["Repository"]
    shown = metadata.get_payload()
    assert f"]({address}/blob/main/docs/datasets.md" in shown
    assert not re.findall(r"\]\((?!https:|#)", shown)
    assert (
        shown.replace(f"]({address}/blob/main/", "](").replace(f"]({address}/raw/main/", "](")
        == readme
    )
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    requirements = metadata.get_all("Requires-Dist")
    assert len([each for each in requirements if "extra ==" not in each]) == len(
        PROJECT["dependencies"]
    )
