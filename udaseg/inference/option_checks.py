"""Ranges of options that several public functions take. Imports nothing heavy."""

from udaseg.errors import UsageError


def check_window(window: tuple[int, int] | None) -> None:
    """Refuse a sliding window that is not two sizes of at least 1 px.

    Raises:
        UsageError: It is something else.
    """
    if window is not None and (len(window) != 2 or min(window) < 1):
        raise UsageError(f"window must be (height, width) of at least 1 px, got {window}")


def check_batch(batch: int | None) -> None:
    """Refuse a batch without an image.

    Raises:
        UsageError: It is below 1.
    """
    if batch is not None and batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")


def check_abstain(abstain: float | None) -> None:
    """Refuse a confidence to abstain below that is not between 0 and 1.

    Raises:
        UsageError: It is not.
    """
    if abstain is not None and not 0 < abstain < 1:
        raise UsageError(f"--abstain must be a confidence between 0 and 1, as 0.5, got {abstain:g}")
