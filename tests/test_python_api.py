"""Runs every example of docs/python_api.md, and checks the public names."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import udaseg
from tests.support.toy import COUNTS, SIZE, TINY, toy_root
from udaseg.cli.app import app
from udaseg.data.toyland import writer

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "docs" / "python_api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SMALL = dict(word.split("=", 1) for word in TINY)


def _small(example):
    """Return an example with two steps of a tiny network instead of 500 of the shipped one."""
    overrides = {key: ast.literal_eval(_literal(value)) for key, value in SMALL.items()}
    overrides = {**overrides, "machine.workers": 0, "machine.preview_every": 0}
    example = example.replace(', overrides={"machine.workers": 0}', "")
    example = example.replace('{"steps": 500}', repr({"steps": 2, **overrides}))
    return example.replace("steps=500", f"steps=2, overrides={overrides}")


def _literal(value):
    return {"null": "None"}.get(value, value if value[0] in "[0123456789" else repr(value))


@pytest.mark.slow
def test_every_example_of_the_page_runs(tmp_path, monkeypatch):
    toy_root(tmp_path / "data")
    monkeypatch.setattr(writer, "DEFAULT_COUNTS", COUNTS)
    monkeypatch.setattr(writer, "TOYLAND_SIZE", SIZE)
    (tmp_path / "my_photos").mkdir()
    images = tmp_path / "data/toyland/target/val/images"
    shutil.copy(next(images.glob("*.png")), tmp_path / "my_photos" / "street.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in EXAMPLES:
        exec(compile(_small(example), "docs/python_api.md", "exec"), names)
    assert names["scores"].miou > 0
    assert names["diagnosis"].ok is not None
    assert (tmp_path / "street_classes.png").is_file()
    assert (tmp_path / "val_masks/ids").is_dir()


def test_the_page_has_every_public_function():
    functions = [name for name in udaseg.__all__ if name[0].islower() and name[0] != "_"]
    assert [name for name in functions if f"`{name}`" not in TEXT and f".{name}(" not in TEXT] == []


def test_every_command_has_its_public_function():
    others = {"eval": "evaluate", "methods": "list_methods", "recipes": "list_recipes"}
    others |= {"datasets": "list_datasets", "init": "init_dataset"}
    others |= {"table": "compare_runs", "import": "import_checkpoint"}
    commands = [each.name or each.callback.__name__ for each in app.registered_commands]
    commands += [each.name for each in app.registered_groups]
    assert len(commands) > 10
    missing = {others.get(name, name) for name in commands} - set(udaseg.__all__)
    assert missing == {"demo"}, "the name of a module, which uses the others"


def _typed_names():
    """Return the names that type checkers see: those imported under TYPE_CHECKING."""
    tree = ast.parse((REPOSITORY / "udaseg" / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("udaseg.")
        for alias in node.names
    }


def test_type_checkers_and_python_see_the_same_names():
    assert _typed_names() == set(udaseg.__all__) - {"__version__"}
    assert udaseg.__all__ == sorted(udaseg.__all__)
    for name in udaseg.__all__:
        assert getattr(udaseg, name) is not None
    assert set(udaseg.__all__) <= set(dir(udaseg))
    with pytest.raises(AttributeError, match="no attribute 'adept'"):
        _ = udaseg.adept


def test_an_old_name_warns_with_the_new_one():
    with pytest.warns(DeprecationWarning, match="udaseg.verify_run is now udaseg.verify"):
        assert udaseg.verify_run is udaseg.verify


def test_no_public_name_is_the_name_of_a_submodule():
    """An import of the submodule would hide the function."""
    folder = REPOSITORY / "udaseg"
    submodules = {path.stem for path in folder.glob("*.py")} | {
        path.name for path in folder.iterdir() if path.is_dir()
    }
    assert submodules & set(udaseg.__all__) == set()


def test_import_is_light_and_reads_no_entry_point():
    script = (
        "import sys, importlib.metadata as m\n"
        "m.entry_points = None\n"
        "import udaseg\n"
        "udaseg.list_methods(), udaseg.list_recipes()\n"
        "loaded = {'torch', 'pydantic', 'cv2', 'numpy', 'typer'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.slow
def test_a_users_file_passes_mypy_strict(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from pathlib import Path\n"
        "import udaseg\n"
        "from udaseg.contrast import Regularizer, RegionalContrast\n"
        "from udaseg.losses import pixel_loss\n"
        "from udaseg.models import Backbone, build_segmenter\n\n\n"
        "def main() -> float:\n"
        "    run: udaseg.Run = udaseg.adapt('toyland/rccr', steps=5)\n"
        "    model: udaseg.Model = udaseg.load(run)\n"
        "    for prediction in udaseg.predict('photos', model):\n"
        "        prediction.save('x.png')\n"
        "    summary = udaseg.predict(['photos'], run, out=Path('masks'))\n"
        "    print(summary.failures, udaseg.list_methods()['rccr'])\n"
        "    return udaseg.evaluate(run).iou['road']\n",
        encoding="utf-8",
    )
    # silent: of an installed package, mypy reports no errors either
    options = ("--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "c"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(script)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
