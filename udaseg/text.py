"""Text for people: escapes for what a terminal must not show, near matches, sizes and durations."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from udaseg.sizes import Resize, ShortSide

# Direction marks and invisible characters, which make a line look different from its content.
_HIDDEN = "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
UNSAFE = re.compile(f"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[{_HIDDEN}]")
UNSAFE_IN_VALUE = re.compile(f"{UNSAFE.pattern}|[\t\n\r]")
_UNSAFE_IN_TEXT = re.compile(f"{UNSAFE.pattern}|\r(?!\n)")
"""Also a carriage return alone, with which the end of a line overwrites its beginning."""


def printable(text: str) -> str:
    """Return `text` with control, direction and invisible characters escaped.

    Line ends and tabs are kept. The result is safe to print on a terminal.
    """
    return _UNSAFE_IN_TEXT.sub(_escape, text)


def shortened(text: str, longest: int = 60) -> str:
    """Return `text` printable on one line, cut to about `longest` characters."""
    short = text if len(text) <= longest else f"{text[:longest]}…"
    return UNSAFE_IN_VALUE.sub(_escape, short)


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode()


LONGEST_WORD = 64


def did_you_mean(word: str, options: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Return the option most similar to `word`, None if none is similar enough."""
    if len(word) > LONGEST_WORD:
        return None
    same_case = {option.lower(): option for option in options}
    matches = get_close_matches(word.lower().replace("-", "_"), same_case, 1, cutoff)
    return same_case[matches[0]] if matches else None


def suggestion(word: str, options: Sequence[str]) -> str:
    """Return "; did you mean '…'?" with the most similar option; "" if none is similar enough."""
    hint = did_you_mean(word, options)
    return f"; did you mean '{hint}'?" if hint else ""


def instead(hint: str | None) -> str:
    """Return "did you mean '…'? ", to put before a list of what there is; "" without a hint."""
    return f"did you mean '{hint}'? " if hint else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def percent(value: float) -> str:
    """Return a fraction as percent with two digits; `-` if it was not measured."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def markdown_cell(text: str) -> str:
    """Return a text that does not end a cell of a Markdown table."""
    return text.replace("|", "\\|")


def count_text(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun, such as `no errors`, `1 error` or `1,000 errors`."""
    number = f"{count:,}" if count else "no"
    return f"{number} {noun if count == 1 else plural or f'{noun}s'}"


def most_common_text(counts: Counter[str]) -> str:
    """Return the five most common words with their counts, such as `.txt (3), .xml (1)`."""
    return ", ".join(f"{word} ({count})" for word, count in counts.most_common(5))


def format_duration(seconds: float) -> str:
    """Return seconds as H:MM:SS."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{remainder:02d}"


def format_size(size: Resize | None) -> str:
    """Return (height, width) as "WxH"; "as stored" for None."""
    if isinstance(size, ShortSide):
        return f"short side {size.short_side}"
    return "as stored" if size is None else f"{size[1]}x{size[0]}"


def bits_text(bits: int) -> str:
    """Return how 16-bit images of these bits are read."""
    return f"read as {bits} bits, 0 to {2**bits - 1}"


def bands_text(bands: Sequence[int]) -> str:
    """Return how TIFFs of these three bands are read."""
    return f"bands {', '.join(map(str, bands))} as red, green and blue"


def file_size(size: int) -> str:
    """Return a number of bytes in readable form, such as 1.5 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1000:.1f} kB"
