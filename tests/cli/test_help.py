"""`--help` works for every command and is fast: it imports nothing heavy."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from udaseg import __version__
from udaseg.cli.app import app
from udaseg.cli.examples import EXAMPLES

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = ["prepare", "train", "adapt", "eval", "predict", "info", "demo", "methods", "recipes"]
COMMANDS += ["doctor", "report", "grid", "features", "select", "export", "import", "verify"]
COMMANDS += ["init", "datasets", "sweep", "table", "calibrate"]
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


def test_help_has_whole_sentences() -> None:
    shown = " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())
    assert "..." not in shown.partition("Commands:")[2]
    assert "Train every combination of values with several seeds, and compare the scores." in shown


def test_help_of_a_command_with_many_options_has_groups() -> None:
    shown = CliRunner().invoke(app, ["adapt", "--help"]).stdout
    titles = [line for line in shown.splitlines() if line and not line.startswith(" ")]
    assert titles[1:] == [
        *("Arguments:", "Data and network:", "Training:", "Machine:", "Run and output:"),
        "Examples:",
    ]
    assert "list[" not in shown
    assert "-o, --out, --output <dir>" in shown


def _commands(group: TyperGroup, words: tuple[str, ...] = ()) -> Iterator[tuple[str, TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


LEAVES = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", LEAVES)
def test_help_ends_with_examples_that_can_be_parsed(words: str) -> None:
    shown = CliRunner().invoke(app, [*words.split(), "--help"]).stdout
    examples = [line.strip() for line in shown.partition("Examples:\n")[2].splitlines()]
    assert examples
    for example in examples:
        given = shlex.split(example.partition(" > ")[0])
        name, *rest = given[: len(words.split()) + 1], *given[len(words.split()) + 1 :]
        assert name == ["udaseg", *words.split()]
        LEAVES[words].make_context(words, list(rest))  # raises for what the command cannot parse


def test_examples_are_of_commands_that_exist() -> None:
    assert set(EXAMPLES) == set(LEAVES)


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_is_told(option: str) -> None:
    result = CliRunner().invoke(app, [option])
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


def test_a_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> str:
        settings = {"_UDASEG_COMPLETE": "complete_bash", "COMP_WORDS": words}
        count = str(len(words.split(" ")) - 1)
        result = subprocess.run(
            [sys.executable, "-m", "udaseg"],
            env={**os.environ, **settings, "COMP_CWORD": count},
            capture_output=True,
            text=True,
            check=True,
            cwd=REPOSITORY,
        )
        return result.stdout

    assert completed("udaseg ad").split() == ["adapt"]
    assert "--source" in completed("udaseg adapt --so").split()
