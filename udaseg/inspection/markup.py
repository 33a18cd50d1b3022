"""Build HTML and SVG strings; any text that is not markup is escaped."""

import html
import re
from importlib.resources import files

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_ATTRIBUTE = re.compile("[a-zA-Z][a-zA-Z0-9-]*")
_VOID_TAGS = {"img", "meta"}
_VOID_SVG_TAGS = {"circle", "line", "polyline", "rect"}


class Html(str):
    """A string that is markup; other strings are escaped before they enter a page."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Escape text for use in an element or a quoted attribute.

    Control characters, which HTML forbids, and lone surrogates, which come from file names in other
    encodings, are replaced by visible characters.
    """
    if isinstance(text, Html):
        return text
    plain = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return Html(html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", plain), quote=True))


def element(tag: str, *children: str, **attributes: str | float | bool | None) -> Html:
    """Return an element with its children.

    Args:
        tag: Name of the element; never user text.
        children: `Html` is kept, other text is escaped.
        attributes: `class_` becomes class, `data_name` becomes data-name. None and False omit the
            attribute, True writes it without a value. Numbers are shortened to six digits.

    Raises:
        ValueError: An attribute name is invalid.
    """
    head = [tag]
    for name, value in attributes.items():
        key = name.rstrip("_").replace("_", "-")
        if _ATTRIBUTE.fullmatch(key) is None:
            raise ValueError(f"'{key}' is not a valid attribute name")
        if value is None or value is False:
            continue
        head.append(key if value is True else f'{key}="{escape(_attribute_text(value))}"')
    opening = " ".join(head)
    if not children and tag in _VOID_TAGS:
        return Html(f"<{opening}>")
    if not children and tag in _VOID_SVG_TAGS:
        # SVG has no void elements: without the slash the next element would be nested inside
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{''.join(map(escape, children))}</{tag}>")


def join(parts: list[Html] | tuple[Html, ...]) -> Html:
    """Concatenate markup."""
    return Html("".join(parts))


def css_color(color: tuple[int, int, int]) -> str:
    """Return an RGB colour as CSS writes it."""
    return f"rgb({int(color[0])},{int(color[1])},{int(color[2])})"


def read_asset(name: str) -> str:
    """Return the text of a file in `templates`."""
    return (files("udaseg.inspection") / "templates" / name).read_text(encoding="utf-8")


def _attribute_text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
