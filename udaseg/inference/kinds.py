"""The kinds of mask that a prediction can be written as."""

from typing import Literal, get_args

from udaseg.errors import UsageError
from udaseg.text import did_you_mean

MaskKind = Literal["color", "ids", "label-ids", "overlay", "confidence", "logits"]
MASK_KINDS: tuple[MaskKind, ...] = get_args(MaskKind)


def parse_mask_kind(option: str, word: str) -> MaskKind:
    """Return `word` as a kind of mask; `option` names it in the message.

    Raises:
        UsageError: There is no such kind.
    """
    for kind in MASK_KINDS:
        if kind == word:
            return kind
    hint = did_you_mean(word, MASK_KINDS)
    instead = f"; did you mean '{hint}'?" if hint else ""
    raise UsageError(f"{option} must be any of {', '.join(MASK_KINDS)}, got '{word}'{instead}")
