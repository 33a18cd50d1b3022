"""Put wrong values into JSON documents, one at a time."""

import copy
import json
from collections.abc import Iterator
from typing import Any

WRONG = [
    *("null", "true", "0", "-1", "0.5", "1e400", "-1e400", "NaN", "1e308", "9" * 20, "9" * 400),
    *('""', '"x"', '"1e999"', '"\\ud800"', '"\\u001b[31m"', "[]", "{}", "[[]]", '{"x": {}}'),
    *("[" * 5000 + "]" * 5000, '{"x": "y"}', '[{"name": []}]'),
]
"""JSON texts of values that hardly any place can hold."""

_MARK = "@wrong@"


def wrong_documents(text: str) -> Iterator[str]:
    """Yield the document with each wrong value in each place, and with each entry left out."""
    document = json.loads(text)
    for path in places(document):
        changed = copy.deepcopy(document)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        for wrong in WRONG:
            if path:
                holder[path[-1]] = _MARK
                yield json.dumps(changed).replace(f'"{_MARK}"', wrong)
            else:
                yield wrong
        if path:
            del holder[path[-1]]
            yield json.dumps(changed)
    for wrong in ("", "{", text[: len(text) // 2]):
        yield wrong


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value in a document, of a list to its first item only."""
    yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:1])
    for key, item in items:
        yield from places(item, (*path, key))
