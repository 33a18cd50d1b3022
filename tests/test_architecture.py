"""Who may know whom: the layers of ARCHITECTURE.md, enforced on every import in the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "udaseg"
ALL = {
    *("errors", "distributed", "recipe", "data", "models", "contrast", "evaluation", "adaptation"),
    *("engine", "reporting", "build", "commands"),
}
MAY_KNOW = {
    "errors": set(),
    "distributed": {"errors"},
    "recipe": {"errors"},
    "data": {"errors"},
    "models": {"errors"},
    "reporting": {"errors"},
    "contrast": {"errors", "distributed"},
    "evaluation": {"errors", "distributed"},
    "adaptation": {"errors", "data", "models", "contrast", "distributed"},
    "engine": {"errors", "adaptation", "data", "distributed"},
    "build": ALL - {"reporting", "build", "commands"},
    "commands": ALL - {"commands"},
    "cli": {"errors", "recipe", "commands"},
}


def _room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path):
    """Yield (module, line) of every udaseg import of a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("udaseg"):
            if node.module == "udaseg":
                for alias in node.names:
                    yield f"udaseg.{alias.name}", node.lineno
            else:
                yield node.module, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("udaseg"):
                    yield alias.name, node.lineno


FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or _room(path) in MAY_KNOW
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_knows_only_the_rooms_below_it_and_enters_by_the_door(path):
    own = _room(path)
    wrong = []
    for module, line in _imports(path):
        parts = module.split(".")[1:]
        if not parts or parts[0] == "__version__" or parts[0] == own:
            continue
        if parts[0] not in MAY_KNOW[own]:
            wrong.append(f"line {line}: {own} must not know {parts[0]}")
        elif len(parts) > 1:
            wrong.append(f"line {line}: import from the door udaseg.{parts[0]}, not {module}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_table():
    found = {_room(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert found == set(MAY_KNOW)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("udaseg.cli", ["torch", "cv2", "numpy", "torchvision"]),
        ("udaseg.recipe", ["torch", "cv2", "numpy"]),
        ("udaseg.data", ["torch"]),
        ("udaseg.models", ["torchvision", "timm"]),
        ("udaseg.reporting", ["torch"]),
    ],
)
def test_imports_bring_nothing_heavy(module, unwanted):
    code = f"import sys, {module}; print([m for m in {unwanted!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_only_the_engine_moves_weights():
    for path in FILES:
        if _room(path) == "engine":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "backward":
                static = isinstance(node.value, ast.Name)
                assert static, f"{path}:{node.lineno}: only the engine calls backward"
