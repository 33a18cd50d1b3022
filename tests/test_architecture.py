"""The import table of ARCHITECTURE.md, and the size limits of files and functions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import udaseg

PACKAGE = Path(__file__).resolve().parents[1] / "udaseg"

LEAVES = {"errors", "sizes", "text", "files", "documents", "validation"}
MAY_KNOW = {
    "errors": set(),
    "sizes": set(),
    "text": {"sizes"},
    "files": {"errors", "text"},
    "documents": {"errors", "text"},
    "validation": {"documents", "sizes", "text"},
    "plugins": {"errors"},
    "display": {"errors", "text"},
    "distributed": {"errors"},
    "failures": {"errors", "distributed"},
    "signals": {"errors", "distributed"},
    "recipe": {"errors", "sizes", "text", "documents", "validation", "plugins"},
    "data": {*LEAVES, "plugins", "display"},
    "models": {"errors", "text", "plugins", "recipe"},
    "runs": {*LEAVES, "recipe", "distributed"},
    "methods": {*LEAVES, "plugins", "recipe", "distributed", "data", "models", "runs"},
    "inference": {*LEAVES, "display", "recipe", "distributed", "data", "models", "runs"},
}
MAY_KNOW["losses"] = {"methods"}
MAY_KNOW["contrast"] = {"losses", "methods", "recipe", "data", "distributed"}
MAY_KNOW["evaluation"] = {*MAY_KNOW["inference"], "inference", "failures"}
MAY_KNOW["selection"] = {*MAY_KNOW["evaluation"], "evaluation"}
MAY_KNOW["training"] = {*MAY_KNOW["selection"], "signals", "methods", "selection"}
MAY_KNOW["prediction"] = {*MAY_KNOW["evaluation"], "evaluation", "signals"}
MAY_KNOW["figures"] = {*MAY_KNOW["selection"], "selection"}
MAY_KNOW["experiments"] = {*MAY_KNOW["training"], "training"}
MAY_KNOW["inspection"] = {*MAY_KNOW["experiments"], "experiments", "figures"}
MAY_KNOW["demo"] = {"errors", "text", "files", "display", "udaseg"}
MAY_KNOW["preflight"] = {*LEAVES, "recipe", "data", "runs", "experiments"}
MAY_KNOW["cli"] = {"errors", "sizes", "text", "display", "recipe", "preflight", "demo", "udaseg"}

DATA_MAY_KNOW = {
    "files": set(),
    "labels": {"files"},
    "archives": {"files"},
    "toyland": {"labels", "files"},
    "datasets": {"files", "labels"},
    "loading": {"files", "labels", "datasets"},
}
DATA_MAY_KNOW["prepare"] = {*DATA_MAY_KNOW, *DATA_MAY_KNOW["loading"]}
DATA_MAY_KNOW["open"] = {*DATA_MAY_KNOW["prepare"], "prepare"}
DATA_MAY_KNOW["doctor"] = {*DATA_MAY_KNOW["open"], "open"}
DATA_MAY_KNOW["tiles"] = DATA_MAY_KNOW["doctor"]

MAX_MODULES = 15
MAX_LINES = 450
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 8
STARTS = ("adapt", "train", "run_seeds")  # one parameter more, as each everyday option has one

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)
FILES += sorted(path for path in PACKAGE.glob("*.py") if path.stem in MAY_KNOW)


def _room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _is_package(parts):
    return PACKAGE.joinpath(*parts, "__init__.py").is_file()


def _imports(path):
    """Yield (module, name, line) of every udaseg import in a file, including inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "udaseg":
            for alias in node.names:
                below = PACKAGE.joinpath(*node.module.split(".")[1:], alias.name)
                if below.is_dir() or below.with_suffix(".py").is_file():
                    yield f"{node.module}.{alias.name}", None, node.lineno
                else:
                    yield node.module, alias.name, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "udaseg":
                    yield alias.name, None, node.lineno


def _functions(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def _docstring_lines(function):
    if ast.get_docstring(function) is None:
        return 0
    return function.body[0].end_lineno - function.body[0].lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_the_table_allows(path):
    room = _room(path)
    wrong = []
    for module, name, line in _imports(path):
        parts = module.split(".")[1:] or ["udaseg"]
        if name == "__version__":
            continue
        if parts[0] != room and parts[0] not in MAY_KNOW[room]:
            wrong.append(f"line {line}: {room} must not import {module}")
        if (name or parts[-1]).startswith("_"):
            wrong.append(f"line {line}: {name or module} is private to its module")
        if name is not None and parts != ["udaseg"] and _is_package(parts):
            wrong.append(f"line {line}: import {name} from the module that defines it")
    if room == "data" and path.parent != PACKAGE / "data":
        wrong += _wrong_in_data(path)
    assert not wrong, "\n".join(wrong)


def _wrong_in_data(path):
    room = path.relative_to(PACKAGE / "data").parts[0].removesuffix(".py")
    for module, _, line in _imports(path):
        parts = module.split(".")
        if parts[1] == "data" and parts[2] != room and parts[2] not in DATA_MAY_KNOW[room]:
            yield f"line {line}: data.{room} must not import {module}"


def test_the_tables_name_every_room_and_hold_no_circle():
    rooms = {_room(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(MAY_KNOW)
    below_data = {
        path.relative_to(PACKAGE / "data").parts[0]
        for path in FILES
        if "data" in str(path.relative_to(PACKAGE).parts[0])
    }
    assert {name.removesuffix(".py") for name in below_data} - {"__init__"} == set(DATA_MAY_KNOW)
    for table in (MAY_KNOW, DATA_MAY_KNOW):
        left = {room: known - {"udaseg"} for room, known in table.items()}
        while left:
            free = [room for room, known in left.items() if not known & set(left)]
            assert free, f"a circle among {sorted(left)}"
            for room in free:
                del left[room]


def test_folders_files_and_functions_stay_small():
    wrong = []
    for folder in {path.parent for path in FILES}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if folder != PACKAGE and len(modules) > MAX_MODULES:
            wrong.append(f"{folder.relative_to(PACKAGE)}: {len(modules)} modules")
    for path in FILES:
        name = path.relative_to(PACKAGE)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES:
            wrong.append(f"{name}: {lines} lines")
        for function in _functions(path):
            length = function.end_lineno - function.lineno + 1 - _docstring_lines(function)
            arguments = function.args
            given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            count = len([each for each in given if each.arg not in ("self", "cls")])
            if _room(path) == "cli":  # a typer command has one parameter per option
                continue
            if length > MAX_FUNCTION_LINES:
                wrong.append(f"{name}:{function.lineno} {function.name}: {length} lines")
            if count > MAX_PARAMETERS + (function.name in STARTS):
                wrong.append(f"{name}:{function.lineno} {function.name}: {count} parameters")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_public_name_is_the_name_of_a_submodule():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    modules |= {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert not modules & set(udaseg.__all__)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("udaseg", ["torch", "cv2", "numpy", "torchvision", "typer", "jinja2"]),
        (
            "udaseg.cli.app",
            ["torch", "cv2", "numpy", "torchvision", "yaml", "udaseg.recipe.schema"],
        ),
        ("udaseg.recipe.load", ["torch", "cv2", "numpy"]),
        ("udaseg.data.open", ["torch"]),
        ("udaseg.preflight", ["torch"]),
        ("udaseg.prediction.predict", ["torch"]),
        ("udaseg.runs.run", ["torch"]),
        ("udaseg.models.backbones.build", ["torchvision", "timm"]),
        ("udaseg.display.progress", ["torch"]),
        ("udaseg.display.pictures", ["torch"]),
    ],
)
def test_imports_bring_nothing_heavy(module, unwanted):
    code = f"import sys, {module}; print([m for m in {unwanted!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_only_the_training_step_moves_weights():
    for path in FILES:
        if _room(path) == "training":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "backward":
                static = isinstance(node.value, ast.Name)
                assert static, f"{path}:{node.lineno}: only training calls backward"
