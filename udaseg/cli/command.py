"""How each command reads its words and shows its help: aliases, groups of options, examples."""

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from udaseg.cli.examples import EXAMPLES
from udaseg.errors import UsageError

NEWEST = Path("newest")
"""The value of `--resume` without a word: the newest run that is not done."""

FORMAT = "output_format"
"""The parameter of `--format` where it can be `json`."""

ALIASES = {
    "--out": ("-o", "--output"),
    "--batch": ("--batch-size",),
    "--checkpoint": ("--model",),
}
"""Other names of options, as other tools have them."""

GROUPS = {
    "Data and network": (
        *("--method", "--network", "--source", "--target", "--data", "--split", "--root"),
        *("--checkpoint", "--weights", "--init", "--base"),
    ),
    "Training": ("--steps", "--batch", "--seed", "--seeds", "--each", "--keep-best"),
    "Machine": (
        *("--device", "--precision", "--workers", "--compile", "--deterministic", "--fit"),
    ),
    "Run and output": (
        *("--out", "--save", "--resume", "--overwrite", "--logger", "--dry-run", "--time"),
        *("--format", "--verbose", "--quiet", "--help"),
    ),
}
"""Groups of options in the help of a command with many."""

_MANY_OPTIONS = 10
_TYPE_OF_ARGUMENT = re.compile(r" <[^>]*>$")
_LONG_TYPE = re.compile(r"<(?:list\[)?(\w+)(?:\]| range)>")


class Command(TyperCommand):
    """A command with the aliases of its options, whose help has groups and examples."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for option in self.params:
            for name in list(option.opts):
                option.opts.extend(ALIASES.get(name, ()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words; `--json` is `--format json`, and `--resume` alone the newest run."""
        options = {name: option for option in self.params for name in option.opts}
        if "--format" in options and options["--format"].name == FORMAT:
            args = ["--format=json" if word == "--json" else word for word in args]
        if (resume := options.get("--resume")) is not None and not getattr(resume, "is_flag", True):
            args = _with_newest(args)
        _refuse_repeated(args, options)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options, in groups if there are many."""
        arguments, options = [], []
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            name, text = record
            if parameter.param_type_name == "argument":
                arguments.append((_TYPE_OF_ARGUMENT.sub("", name), text))
            else:
                options.append((_group_of(parameter.opts), (_LONG_TYPE.sub(r"<\1>", name), text)))
        counts = Counter(group for group, _ in options)
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Options", *GROUPS)}
        for group, row in options:
            is_shown = len(options) > _MANY_OPTIONS and counts[group] > 1
            sections[group if is_shown else "Options"].append(row)
        for title, rows in {"Arguments": arguments, **sections}.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples of the command."""
        words = ctx.command_path.split()[1:]
        if lines := EXAMPLES.get(" ".join(words)):
            with formatter.section("Examples"):
                for line in lines:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Group(TyperGroup):
    """Commands, each listed with its whole summary."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the name and the summary of each command."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [
            (name, (command.help or "").partition("\n\n")[0])
            for name, command in commands.items()
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _group_of(names: list[str]) -> str:
    return next((group for group, known in GROUPS.items() if {*known} & {*names}), "Options")


def _with_newest(args: list[str]) -> list[str]:
    """Return the words with a value for a `--resume` that has none."""
    filled = []
    for word, following in itertools.pairwise([*args, ""]):
        filled.append(word)
        if word == "--resume" and _is_no_run(following):
            filled.append(str(NEWEST))
    return filled


def _refuse_repeated(args: list[str], options: dict[str, Any]) -> None:
    """Refuse an option that is given twice but has one value: one of them would be ignored."""
    words = (word.partition("=")[0] for word in itertools.takewhile("--".__ne__, args))
    given = Counter(
        options[word].opts[0]
        for word in words
        if word in options
        and not getattr(options[word], "multiple", False)
        and not getattr(options[word], "is_flag", False)
    )
    for name, count in given.items():
        if count > 1:
            raise UsageError(f"{name} is given {count} times and takes one value; give it once")


def _is_no_run(word: str) -> bool:
    return not word or word.startswith("-") or ("=" in word and not Path(word).exists())
