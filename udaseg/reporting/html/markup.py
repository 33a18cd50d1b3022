"""HTML and SVG in strings: whatever is not markup already is escaped."""

import html
import re
from importlib.resources import files

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_ATTRIBUTE = re.compile("[a-zA-Z][a-zA-Z0-9-]*")
_EMPTY = {"img", "meta"}
_EMPTY_IN_SVG = {"circle", "line", "polyline", "rect"}


class Html(str):
    """Text that is markup; any other string is escaped before it enters a page."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Return text as markup that shows it, in an element or in a quoted attribute.

    Control characters, which no page may hold, and lone surrogates, which file names of other
    encodings bring, become visible.
    """
    if isinstance(text, Html):
        return text
    plain = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return Html(html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", plain), quote=True))


def element(tag: str, *children: str, **attributes: str | float | bool | None) -> Html:
    """Return an element with its children.

    Args:
        tag: Its name; ours, never a user's.
        children: `Html` stays, other text is escaped.
        attributes: `class_` is class, `data_name` is data-name; None and False leave one out, True
            writes it without a value. Numbers are written short.

    Raises:
        ValueError: A name that is none; user text never names an attribute.
    """
    words = [tag]
    for name, value in attributes.items():
        key = name.rstrip("_").replace("_", "-")
        if _ATTRIBUTE.fullmatch(key) is None:
            raise ValueError(f"'{key}' is no attribute")
        if value is None or value is False:
            continue
        words.append(key if value is True else f'{key}="{escape(_written(value))}"')
    head = " ".join(words)
    if not children and tag in _EMPTY:
        return Html(f"<{head}>")
    if not children and tag in _EMPTY_IN_SVG:
        # in SVG nothing is empty by its name: without the slash the next element would be inside
        return Html(f"<{head}/>")
    return Html(f"<{head}>{''.join(map(escape, children))}</{tag}>")


def join(parts: list[Html] | tuple[Html, ...]) -> Html:
    """Return markup after markup."""
    return Html("".join(parts))


def asset(name: str) -> str:
    """Return the text of a file in `assets`."""
    return (files("udaseg.reporting.html") / "assets" / name).read_text(encoding="utf-8")


def _written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
