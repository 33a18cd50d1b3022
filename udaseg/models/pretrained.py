"""Weights that torchvision and timm serve: said before they are fetched, with a way out offline."""

import contextlib
import http.client
import logging
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from udaseg.errors import EnvironmentFault, RecipeError

log = logging.getLogger(__name__)
_HUB_FILE = "model.safetensors"
"""What the file of a network is called on the hub of timm's weights."""

_WAIT_S = 5
"""How long a server may take to answer."""

_WRONG_NAME = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError)
"""What timm raises for a network that it cannot build, with or without weights."""


def own_weights(name: str, served: Any) -> str:
    """Log what weights are about to be loaded and under which licence, and return their URL.

    Args:
        name: The backbone of the recipe.
        served: timm's `PretrainedCfg` of the network, if it has one.

    Raises:
        RecipeError: timm has no weights for this network.
    """
    from huggingface_hub import constants

    hub = served and served.hf_hub_id
    url = f"{constants.ENDPOINT}/{hub}" if hub else served and served.url
    if not url:
        raise RecipeError(
            f"model.weights: timm has no pretrained weights of {name}; set model.weights=FILE, or "
            "random to train from scratch"
        )
    say_where(name, url, licence=served.license)
    return str(url)


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
    if served is None:
        return None  # building the network says what is wrong with the name
    url = own_weights(f"timm:{name}", served)
    if not served.hf_hub_id:
        return None
    try:
        with fetching(f"timm:{name}", url):
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
def fetching(name: str, url: str) -> Iterator[None]:
    """Turn the errors of a download in this context into one with advice.

    If the server of `url` does not answer, only what is on this machine already is taken, so that
    the clients do not try again and again.

    Raises:
        EnvironmentFault: The weights could not be downloaded.
    """
    from huggingface_hub import constants

    was_offline, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    reachable = was_offline or _answers(url)
    if not reachable:
        constants.HF_HUB_OFFLINE = True
        socket.setdefaulttimeout(_WAIT_S)
    try:
        yield
    except _WRONG_NAME:
        raise
    except Exception as error:  # each client of a hub has its own errors
        why = str(error).partition(". ")[0]
        if not reachable:
            why = f"{urlsplit(url).hostname} cannot be reached"
        raise EnvironmentFault(
            f"model.weights: the pretrained weights of {name} could not be downloaded ({why}); "
            "check the connection, or copy the file to this machine and set model.weights=FILE"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        socket.setdefaulttimeout(timeout)


def _answers(url: str) -> bool:
    """Return whether the server of a URL answers, also through a proxy."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=_WAIT_S).close()
    except (urllib.error.HTTPError, http.client.HTTPException):
        return True
    except OSError as error:
        # the client may trust other certificates
        return isinstance(getattr(error, "reason", None), ssl.SSLError)
    return True
