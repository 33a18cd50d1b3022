"""JSON that udaseg wrote: read only if every value has the type with which it was written.

Not `udaseg.files.mismatch`, because pydantic refuses names of files that are not Unicode.
"""

from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from udaseg.files import parse_json


def parse_form(text: str, form: Any) -> Any:
    """Return the value of a JSON text that has the form.

    Args:
        text: JSON.
        form: `str`, `bool`, `int`, None, `Any`, a `TypedDict`, or of these a list, a
            dict, a union or a tuple, which is a list of this length. A dict may have other keys.

    Raises:
        ValueError: The text is not JSON, is nested too deeply, or has another form.
    """
    value = parse_json(text)
    refuse_other_form(value, form)
    return value


def refuse_other_form(value: object, form: Any) -> None:
    """Raise a ValueError unless a value of a JSON text has a form; see `parse_form`."""
    if not has_form(value, form):
        raise ValueError("its values are not of the kind that udaseg writes")


def has_form(value: object, form: Any) -> bool:
    """Return whether a value of a JSON text has a form; see `parse_form`."""
    origin, parts = get_origin(form), get_args(form)
    if origin is list:
        return isinstance(value, list) and all(has_form(item, parts[0]) for item in value)
    if origin is tuple:
        same_length = isinstance(value, list) and len(value) == len(parts)
        return same_length and all(map(has_form, value, parts))  # type: ignore[call-overload]
    if origin is dict:
        return isinstance(value, dict) and all(has_form(item, parts[1]) for item in value.values())
    if origin is UnionType:
        return any(has_form(value, part) for part in parts)
    if is_typeddict(form):
        return isinstance(value, dict) and all(
            has_form(value[key], hint) if key in value else key not in form.__required_keys__
            for key, hint in get_type_hints(form).items()
        )
    return form is Any or type(value) is (NoneType if form is None else form)
