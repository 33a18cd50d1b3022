"""Distances within and between classes, and between the domains."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from udaseg.figures.cells import Domain
from udaseg.figures.table import NumberTable

_Numbers: TypeAlias = NDArray[np.float64]

MIN_CELLS = 10
"""A class with fewer cells in a domain has no distances there."""

RATIO = "within / between"
TO_SOURCE = "to the source"


def class_distances(
    names: Sequence[str], source: Domain, target: Domain
) -> tuple[NumberTable, NumberTable]:
    """Return the distances of classes on the source and on the target: cosine distances, 1 - cos.

    The centre of a class in a domain is the mean of the unit features of its cells, scaled to unit
    length. Within: the mean distance of the cells of a class to its centre. Between: the mean
    distance of its centre to those of the other classes of the domain. To the source: the distance
    of its two centres. The last row is the mean over the classes that both domains have.

    Args:
        names: The K classes.
        source: What the network makes of source images.
        target: What it makes of target images.
    """
    source_centres, source_columns = _distances(source)
    target_centres, target_columns = _distances(target)
    to_source = 1 - (source_centres * target_centres).sum(1)
    is_shared = ~np.isnan(to_source)
    target_columns[TO_SOURCE] = to_source
    return (
        _table("source", names, source, source_columns, is_shared),
        _table("target", names, target, target_columns, is_shared),
    )


def _distances(domain: Domain) -> tuple[_Numbers, dict[str, _Numbers]]:
    """Return the centres (K, C) of a domain, and each kind of distance (K,)."""
    centres, within = _centres(domain)
    between = _between(centres)
    ratio = np.full(len(within), np.nan)
    np.divide(within, between, out=ratio, where=between > 0)
    return centres, {"within": within, "between": between, RATIO: ratio}


def _table(
    title: str,
    names: Sequence[str],
    domain: Domain,
    columns: Mapping[str, _Numbers],
    is_shared: NDArray[np.bool_],
) -> NumberTable:
    rows: dict[str, dict[str, float]] = {}
    for index, name in enumerate(names):
        numbers = {column: float(values[index]) for column, values in columns.items()}
        rows[name] = {"cells": int(domain.cells[index]), **numbers}
    rows["mean"] = {"cells": math.nan}
    for column, values in columns.items():
        measured = values[is_shared & ~np.isnan(values)]
        rows["mean"][column] = float(measured.mean()) if len(measured) else math.nan
    return NumberTable(f"cosine distances of features, {title}", rows)


def _centres(domain: Domain) -> tuple[_Numbers, _Numbers]:
    """Return the centres (K, C) and the distances within classes (K,); NaN with too few cells."""
    means = domain.sums / np.maximum(domain.cells, 1)[:, None]
    # the mean of cos(x, centre) over unit vectors x is the length of their mean
    lengths = np.linalg.norm(means, axis=1)
    is_known = (domain.cells >= MIN_CELLS) & (lengths > 0)
    lengths = np.where(is_known, lengths, np.nan)
    return means / lengths[:, None], 1 - lengths


def _between(centres: _Numbers) -> _Numbers:
    """Return the mean distance (K,) of each centre to the others; NaN without another."""
    known = np.flatnonzero(~np.isnan(centres[:, 0]))
    between = np.full(len(centres), np.nan)
    if len(known) > 1:
        distances = 1 - centres[known] @ centres[known].T
        np.fill_diagonal(distances, 0)
        between[known] = distances.sum(1) / (len(known) - 1)
    return between
