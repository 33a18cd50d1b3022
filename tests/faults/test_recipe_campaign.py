"""Wrong recipes: refused with exit code 2, file, line and column, every one of them."""

import re

import pytest

from tests.recipe import test_load as cases
from tests.support.campaign import tell
from udaseg.errors import RecipeError

pytestmark = pytest.mark.faults


def wrong_recipes():
    """Yield (group, text of a recipe)."""
    for key, other in cases.MISSPELT:
        yield "misspelt keys", cases.with_key(key, other)[0]
    for line, _ in cases.MISPLACED:
        yield "misplaced keys", "\n".join([*cases.BASE, line])
    for key, raw, _ in cases.WRONG_TYPE:
        yield "wrong types", cases.with_value(key, raw)[0]
    for key, raw in cases.OUT_OF_RANGE:
        yield "out of range", cases.with_value(key, raw)[0]
    for text, _ in cases.STRUCTURE:
        yield "structure", text
    for payload in cases.PAYLOADS:
        yield "tags", f"name: {payload}\n"
    for text, _ in cases.HOSTILE:
        yield "hostile files", text
    for text, _ in cases.CROSS_FIELD:
        yield "parts that do not fit", text


def test_wrong_recipes_are_refused_with_file_and_line():
    counts, unplaced = {}, []
    for group, text in wrong_recipes():
        counts[group] = counts.get(group, 0) + 1
        try:
            message = cases.refused(text)
        except (RecipeError, AssertionError, pytest.fail.Exception) as error:
            unplaced.append(f"{group}: {text[:80]!r}: {error}")
            continue
        lines = message.splitlines()
        if not re.match(r"my\.yaml:\d+:\d+: ", lines[0]):
            unplaced.append(f"{group}: {text[:80]!r}: {lines[0]}")
    trials = sum(counts.values())
    hints = sum(
        f"did you mean '{key.rpartition('.')[2]}'?" in cases.refused(cases.with_key(key, word)[0])
        for key, word in cases.MISSPELT
    )
    tell(
        f"wrong recipes: {trials - len(unplaced)} of {trials} refused with file and line, bound "
        f"3/{trials} = {300 / trials:.1f} %; {counts}; right hints for misspelt keys {hints} of "
        f"{len(cases.MISSPELT)}"
    )
    assert trials >= 123
    assert unplaced == []
    assert hints >= 0.95 * len(cases.MISSPELT)
