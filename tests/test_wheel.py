"""What the wheel contains: the package, its tables, and the only copy of the recipes."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def test_every_recipe_is_in_the_wheel(names):
    for path in (REPOSITORY / "recipes").rglob("*.yaml"):
        assert f"udaseg/_recipes/{path.relative_to(REPOSITORY / 'recipes').as_posix()}" in names


def test_every_table_and_module_is_in_the_wheel(names):
    for path in (REPOSITORY / "udaseg").rglob("*"):
        if path.suffix in (".py", ".yaml", ".css", ".js"):
            assert path.relative_to(REPOSITORY).as_posix() in names


def test_nothing_else_is_in_the_wheel(names):
    assert not [name for name in names if not name.startswith("udaseg")]
    assert any(name.endswith("entry_points.txt") for name in names)
