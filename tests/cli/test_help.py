"""`--help` works for every command and is fast: it imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from udaseg import __version__
from udaseg.cli.app import app

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = ["prepare", "train", "adapt", "eval", "predict", "info", "demo", "methods", "recipes"]
COMMANDS += ["doctor", "report", "grid", "features", "select", "export", "import", "verify"]
HEAVY = ("torch", "torchvision", "cv2", "numpy", "PIL", "timm", "jinja2")


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


@pytest.mark.parametrize(
    "words", [[], *([c] for c in COMMANDS), *(["recipes", c] for c in ("ls", "cat", "cp"))], ids=str
)
@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_says_how_to_call_a_command(words: list[str], asked: str) -> None:
    result = CliRunner().invoke(app, [*words, asked])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert result.stderr == ""


def test_help_lists_every_command_with_a_sentence() -> None:
    lines = CliRunner().invoke(app, ["--help"]).stdout.splitlines()
    for command in COMMANDS:
        line = next(line for line in lines if line.startswith(f"  {command} "))
        assert len(line.split()) >= 4


def test_version_is_told() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"udaseg {__version__}\n")


def test_importing_the_command_line_brings_nothing_heavy() -> None:
    code = f"import sys, udaseg.cli.main; print([m for m in {HEAVY} if m in sys.modules])"
    result = python(code)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


@pytest.mark.parametrize("words", [["--help"], ["adapt", "--help"], ["recipes", "ls"], ["methods"]])
def test_a_light_command_brings_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from udaseg.cli.main import main\n"
        f"try: main({words})\n"
        "except SystemExit as stop: code = stop.code\n"
        f"print(code, [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    result = python(code)
    assert result.stderr.strip() == "0 []"
    assert result.stdout


def test_a_wrong_recipe_is_refused_before_anything_heavy() -> None:
    code = (
        "import sys; from udaseg.cli.main import main\n"
        "try: main(['adapt', 'stepps=5'])\n"
        "except SystemExit as stop: code = stop.code\n"
        f"print(code, [m for m in {HEAVY} if m in sys.modules])"
    )
    result = python(code)
    assert result.stdout.strip() == "2 []"
    assert "did you mean 'steps'?" in result.stderr
