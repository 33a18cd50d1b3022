"""Converts scalars to numbers, booleans or text, and refuses those that YAML would change.

YAML 1.1 reads `0512` as 330, `12:30` as 750, `no` as false and `1e-4` as text. Here only the type
of the field decides how a scalar is read. A scalar that other readers could read differently is
refused.
"""

import math
import re

import yaml
from yaml.resolver import Resolver

from udaseg.recipe.nodes import ScalarNode
from udaseg.text import shortened

_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_NOT_FINITE = re.compile(r"[-+]?\.?(nan|inf|infinity)", re.IGNORECASE)
_OTHER_BASE = re.compile(r"[-+]?0[xXbBoO][0-9a-fA-F_]+")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*")
_MAX_DIGITS = 18
_RESOLVER = Resolver()
_YAML_1_1_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_TAGS = {"bool": "a truth value", "null": "null", "int": "a number", "float": "a number"}
_TAGS |= {"timestamp": "a date", "merge": "a merge key", "value": "a default value"}


class ScalarError(Exception):
    """A scalar does not fit its field; the message states what it must be, what it is, and why."""


def describe_scalar(word: ScalarNode) -> str:
    """Return the scalar as messages show it."""
    return (
        f"the text '{shortened(word.text)}'" if word.quoted else shortened(word.text) or "nothing"
    )


def whole_number(word: ScalarNode) -> int:
    """Return the scalar as an int; floats, booleans and quoted numbers are refused."""
    must = "must be a whole number"
    if not word.quoted and _WHOLE.fullmatch(word.text):
        if len(word.text) > _MAX_DIGITS:
            raise ScalarError(
                f"{must} of at most {_MAX_DIGITS} digits, got {describe_scalar(word)}"
            )
        return int(word.text)
    raise ScalarError(f"{must}, got {describe_scalar(word)}{_why_not_whole(word)}")


def number(word: ScalarNode) -> float:
    """Return the scalar as a float; accepts whole numbers and `1e-4`, but not nan and inf."""
    must = "must be a number"
    plain = not word.quoted and not _LEADING_ZERO.fullmatch(word.text)
    if not plain or not _NUMBER.fullmatch(word.text):
        raise ScalarError(f"{must}, got {describe_scalar(word)}{_why_not_number(word)}")
    value = float(word.text)
    if math.isinf(value):
        raise ScalarError(f"{must} that a float can hold, got {describe_scalar(word)}: too large")
    if value == 0 and re.search("[1-9]", re.split("[eE]", word.text)[0]):
        raise ScalarError(
            f"{must} that a float can hold, got {describe_scalar(word)}: it becomes 0"
        )
    return value


def boolean(word: ScalarNode) -> bool:
    """Return the scalar as a bool; accepts only `true` and `false`."""
    if not word.quoted and word.text in ("true", "false"):
        return word.text == "true"
    lower = word.text.lower()
    hint = ""
    if word.quoted and lower in ("true", "false"):
        hint = "; remove the quotes"
    elif lower in _YAML_1_1_BOOLEANS:
        meaning = _YAML_1_1_BOOLEANS[lower]
        hint = f"; only YAML 1.1 reads it as {meaning}: write {meaning}"
    elif lower in ("true", "false"):
        hint = f"; write {lower} in lower case"
    raise ScalarError(f"must be true or false, got {describe_scalar(word)}{hint}")


def plain_text(word: ScalarNode) -> str:
    """Return the scalar as text; text that YAML would read as another type must be quoted."""
    if not word.text.strip():
        raise ScalarError(
            f"must be text, got {describe_scalar(word) if word.quoted else 'nothing'}"
        )
    if word.quoted or not (kind := yaml_type(word.text)):
        return word.text
    written = shortened(word.text)
    raise ScalarError(
        f"must be text, got {written}, which YAML reads as {kind}; quote it: '{written}'"
    )


def yaml_type(text: str) -> str:
    """Return the type that some YAML reader assigns to the unquoted text; "" if all read text."""
    if _LEADING_ZERO.fullmatch(text) or _OTHER_BASE.fullmatch(text):
        return "a number in another base"
    if _BASE_60.fullmatch(text):
        return "a base-60 number"
    if _NOT_FINITE.fullmatch(text) or _NUMBER.fullmatch(text):
        return "a number"
    if _DATE.fullmatch(text):
        return "a date"
    tag: str = _RESOLVER.resolve(  # type: ignore[no-untyped-call]  # PyYAML has no types here
        yaml.ScalarNode, text, (True, False)
    )
    return _TAGS.get(tag.rpartition(":")[2], "")


def is_null(word: ScalarNode) -> bool:
    """Return whether the scalar is an unquoted `null` or `~`."""
    return not word.quoted and word.text in ("null", "~")


def _why_not_whole(word: ScalarNode) -> str:
    if not word.quoted and _NUMBER.fullmatch(word.text) and not _LEADING_ZERO.fullmatch(word.text):
        value = float(word.text)
        return f"; write {value:.0f}" if value.is_integer() and abs(value) < 1e15 else ""
    return _why_not_number(word)


def _why_not_number(word: ScalarNode) -> str:
    text = word.text
    if word.quoted:
        return "; remove the quotes" if _NUMBER.fullmatch(text) else ""
    if _LEADING_ZERO.fullmatch(text):
        octal = text.replace("_", "").lstrip("+-")
        short = len(octal) <= _MAX_DIGITS and not set(octal) & set("89")
        as_read = f"; YAML 1.1 reads it as {int(octal, 8)} (octal)" if short else ""
        return f"{as_read}; write it without the leading zero"
    if _BASE_60.fullmatch(text):
        return "; YAML 1.1 reads it as a base-60 number; write it in decimal"
    if _NOT_FINITE.fullmatch(text):
        return "; the number must be finite"
    if _OTHER_BASE.fullmatch(text) or ("_" in text and _NUMBER.fullmatch(text.replace("_", ""))):
        return "; write it in plain decimal digits"
    if _DATE.fullmatch(text):
        return ", which YAML reads as a date"
    if text.lower() in (*_YAML_1_1_BOOLEANS, "true", "false"):
        return ", which YAML reads as a truth value"
    if not text:
        return "; write a value after the key"
    return ""
