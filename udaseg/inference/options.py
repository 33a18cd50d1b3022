"""Kinds of mask, and ranges of options that several functions take. Imports nothing heavy."""

from collections.abc import Sequence
from typing import Literal, get_args

from udaseg.errors import UsageError
from udaseg.text import suggestion

MaskKind = Literal["color", "ids", "label-ids", "overlay", "confidence", "logits"]
MASK_KINDS: tuple[MaskKind, ...] = get_args(MaskKind)
UPRIGHT_KINDS: tuple[MaskKind, ...] = ("color", "overlay")
"""Masks for people, which are upright; all others have the orientation of the file."""

IDS_OF: dict[MaskKind, str] = {"color": "train", "ids": "train", "label-ids": "label"}
"""The ids that masks of these kinds hold, by the names of `udaseg.evaluate`."""

MAX_PIXELS = 150_000_000
"""Maximum pixels of an image file to predict: 1.5 times the limit for training images."""


def parse_mask_kind(option: str, word: str) -> MaskKind:
    """Return `word` as a kind of mask; `option` names it in the message."""
    for kind in MASK_KINDS:
        if kind == word:
            return kind
    raise UsageError(unknown_kind_message(option, word, MASK_KINDS))


def unknown_kind_message(option: str, word: str, known: Sequence[str]) -> str:
    """Return the message about a word that is none of the known kinds."""
    instead = suggestion(word, known)
    return f"{option} must be any of {', '.join(known)}, got '{word}'{instead}"


def check_ranges(
    *,
    window: tuple[int, int] | None = None,
    batch: int | None = None,
    abstain: float | None = None,
) -> None:
    """Raise a `UsageError` for a value that is not possible; None is allowed."""
    if window is not None and (len(window) != 2 or min(window) < 1):
        raise UsageError(f"window must be (height, width) of at least 1 px, got {window}")
    if batch is not None and batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    if abstain is not None and not 0 < abstain < 1:
        raise UsageError(f"--abstain must be a confidence between 0 and 1, as 0.5, got {abstain:g}")
