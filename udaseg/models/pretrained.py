"""Weights that torchvision and timm serve: said before they are fetched, with a way out offline."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udaseg.errors import EnvironmentFault, RecipeError

log = logging.getLogger(__name__)
_HUB_FILE = "model.safetensors"
"""What the file of a network is called on the hub of timm's weights."""

_WRONG_NAME = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError)
"""What timm raises for a network that it cannot build, with or without weights."""


def name_own_weights(name: str, served: Any) -> None:
    """Log what weights are about to be loaded, from where, and under which licence.

    Args:
        name: The backbone of the recipe.
        served: timm's `PretrainedCfg` of the network; None for a name that timm does not know.

    Raises:
        RecipeError: timm has no weights for this network.
    """
    if served is None:
        return  # building the network says what is wrong with the name
    hub, url = served.hf_hub_id, served.url
    place = f"https://huggingface.co/{hub}" if hub else url
    if not place:
        raise RecipeError(
            f"model.weights: timm has no pretrained weights of {name}; set model.weights=FILE, or "
            "random to train from scratch"
        )
    say_where(name, place, licence=served.license)


def fetch_timm_file(name: str) -> Path | None:
    """Return the file with a timm network's own weights, which is fetched unless it is here.

    None if timm knows no such network, or its hub has no such file; `name` is without `timm:`.

    Raises:
        RecipeError: timm has no weights for this network.
        EnvironmentFault: The file could not be downloaded.
    """
    import timm
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    served = timm.get_pretrained_cfg(name)
    name_own_weights(f"timm:{name}", served)
    if served is None or not served.hf_hub_id:
        return None
    try:
        with fetching(f"timm:{name}"):
            return Path(hf_hub_download(served.hf_hub_id, served.hf_hub_filename or _HUB_FILE))
    except EnvironmentFault as fault:
        is_there = isinstance(fault.__cause__, LocalEntryNotFoundError)
        if isinstance(fault.__cause__, EntryNotFoundError) and not is_there:
            return None
        raise


def say_where(
    name: str, place: str, *, licence: str | None = None, megabytes: float | None = None
) -> None:
    """Log where weights come from, before they are fetched."""
    size = "" if megabytes is None else f", {megabytes:.0f} MB"
    log.info(
        "weights of %s: from %s%s, licence: %s; kept on this machine once they were fetched",
        name,
        place,
        size,
        licence or "see there",
    )


@contextlib.contextmanager
def fetching(name: str) -> Iterator[None]:
    """Turn the errors of a download in this context into one with advice.

    Raises:
        EnvironmentFault: The weights could not be downloaded.
    """
    try:
        yield
    except _WRONG_NAME:
        raise
    except Exception as error:  # each client of a hub has its own errors
        raise EnvironmentFault(
            f"model.weights: the pretrained weights of {name} could not be downloaded "
            f"({str(error).partition('. ')[0]}); check the connection, or copy the file to this "
            "machine and set model.weights=FILE"
        ) from error
