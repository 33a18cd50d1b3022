"""Read a dataset YAML without the pitfalls of YAML 1.1, and report the line of every problem."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from udaseg.errors import DataError

_MAX_BYTES = 200_000
_MAX_BRACKETS = 5_000
_PYYAML_ERRORS = (AttributeError, KeyError, TypeError)  # raised by PyYAML for tags that do not fit


class _Loader(yaml.SafeLoader):
    """YAML without pitfalls of 1.1: `0512` is not 330, `no` is not false, `1e-1` is a number."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"~|null|", ["~", "n", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,17})", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), list(_first)
    )


class Problems:
    """Collect the problems of one file, each with the line of its key."""

    def __init__(self, path: Path, lines: Mapping[str, int]) -> None:
        self.path, self.lines = path, lines
        self.messages: list[str] = []

    def add(self, key: object, problem: str, entry: int | None = None) -> None:
        """Add a problem of a key, or of one entry of its list."""
        line = self.lines.get(str(key), 1)
        if entry is not None:
            line = self.lines.get(f"{key} {entry}", line)
        self.messages.append(f"{self.path}:{line}: {f'{key}: ' if key else ''}{problem}")

    def raise_if_any(self) -> None:
        """Raise a `DataError` that lists all problems, if there are any."""
        if self.messages:
            raise DataError("\n".join(self.messages))


def read_yaml_document(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the document, and the line of each top-level key and list entry."""
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise DataError(f"{path}: larger than 200 kB; not a dataset YAML")
        text = data.decode("utf-8")
        if text.count("[") + text.count("{") > _MAX_BRACKETS:
            raise DataError(f"{path}: more than {_MAX_BRACKETS} brackets; not a dataset YAML")
        node = yaml.compose(text, Loader=_Loader)
        _refuse_aliases(path, node)
        document = yaml.load(text, Loader=_Loader)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such dataset YAML") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise DataError(f"{path}{position}: not YAML: {error.problem}") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError, *_PYYAML_ERRORS) as error:
        raise DataError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(document, dict) or not isinstance(node, yaml.MappingNode):
        raise DataError(f"{path}: must be a YAML mapping")
    lines: dict[str, int] = {}
    for key, value in node.value:
        word = str(key.value)
        if word in lines:
            raise DataError(f"{path}:{key.start_mark.line + 1}: {word}: given twice")
        lines[word] = key.start_mark.line + 1
        if isinstance(value, yaml.SequenceNode):
            for number, entry in enumerate(value.value):
                lines[f"{word} {number}"] = entry.start_mark.line + 1
    return document, lines


def _refuse_aliases(path: Path, root: yaml.Node | None) -> None:
    """Refuse aliases (`*name`), which can expand a small file to a huge document."""
    waiting = [root] if root is not None else []
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            raise DataError(f"{path}:{node.start_mark.line + 1}: aliases (*name) are not supported")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def did_you_mean(word: str, known: list[str]) -> str:
    """Return "; did you mean '…'?" with the most similar known word, or an empty string."""
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean '{close[0]}'?" if close else ""
