"""Suggests the key that was probably meant by an unknown key of a recipe."""

import operator
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache

from udaseg.documents import join_key
from udaseg.recipe.schema import Recipe
from udaseg.text import LONGEST_WORD

# Names in other training tools -> our names; names that a section lacks are skipped.
_FOREIGN_NAMES = {
    "learning_rate": "lr",
    "weight_decay_rate": "weight_decay",
    "iterations": "steps",
    "iters": "steps",
    "max_iters": "steps",
    "max_steps": "steps",
    "num_steps": "steps",
    "epochs": "steps",
    "random_seed": "seed",
    "batch_size": "batch",
    "crop_size": "crop",
    "image_size": "resize",
    "img_size": "resize",
    "imgsz": "resize",
    "dataset": "data",
    "data_root": "data",
    "network": "model",
    "encoder": "backbone",
    "decoder": "head",
    "pretrained": "weights",
    "optim": "optimizer",
    "solver": "optimizer",
    "grad_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "warmup_steps": "warmup",
    "ema_decay": "momentum",
    "alpha": "momentum",
    "tau": "temperature",
    "threshold": "confidence",
    "num_workers": "workers",
    "gpu": "device",
    "amp": "precision",
    "gradient_checkpointing": "activation_checkpointing",
    "grad_checkpointing": "activation_checkpointing",
    "torch_compile": "compile",
    "val": "validation",
    "type": "kind",
}


_ITEM = "NAME"  # stands for the name of a stage


def key_hint(word: str, section: str, options: Sequence[str], written: Sequence[str]) -> str | None:
    """Return the key that was probably meant.

    Args:
        word: The key that the section does not have.
        section: Dotted key of the section; "" for the top level.
        options: Keys that the section can have.
        written: Keys that it already has; they are less likely to be meant.

    Returns:
        A key of the section, a dotted key in another section, the word with a space after its
        colon, or None.
    """
    if len(word) > LONGEST_WORD:
        return None
    if ":" in word:  # a shell drops the space of {key: value} unless it is quoted
        return word.replace(":", ": ")
    name = word.lower().replace("-", "_").rpartition(".")[2]
    near = sorted(((_similarity(name, o) - 0.1 * (o in written), o) for o in options), reverse=True)
    if near and near[0][0] >= 0.8:
        return near[0][1]
    longer = [option for option in options if option.endswith(f"_{name}")]
    if len(longer) == 1:
        return longer[0]
    if exact := _key_in_other_section(name, section):
        return exact
    called = get_close_matches(name, _FOREIGN_NAMES, 1, 0.8)
    if called and (known := _FOREIGN_NAMES[called[0]]) in options:
        return known
    if called and (exact := _key_in_other_section(known, section)):
        return exact
    if near and near[0][0] >= 0.55:
        return near[0][1]
    distant = get_close_matches(name, {path.rpartition(".")[2] for path in schema_keys()}, 1, 0.75)
    return _key_in_other_section(distant[0], section) if distant else None


def _similarity(word: str, option: str) -> float:
    return SequenceMatcher(None, word, option).ratio()


def _key_in_other_section(name: str, section: str) -> str | None:
    """Return the dotted key ending in `name` that shares most parents with `section`."""
    section = re.sub(r"\[[0-9]+\]", f".{_ITEM}", section)
    section_parts = section.split(".")
    own_path = join_key(section, name)
    paths = [p for p in schema_keys() if p.rpartition(".")[2] == name and p != own_path]

    def shared(path: str) -> int:
        return sum(map(operator.eq, section_parts, path.split(".")))

    return max(paths, key=lambda path: (shared(path), -path.count(".")), default=None)


@lru_cache(maxsize=1)
def schema_keys() -> tuple[str, ...]:
    """Return every dotted key that a recipe can have, of all kinds of methods."""
    return tuple(dict.fromkeys(_keys(Recipe, "")))


def _keys(annotation: object, path: str) -> Iterator[str]:
    if isinstance(annotation, type) and is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        for part in fields(annotation):
            key = join_key(path, part.name)
            yield key
            yield from _keys(hints[part.name], key)
    else:
        for member in typing.get_args(annotation):
            is_item = typing.get_origin(annotation) is tuple and is_dataclass(member)
            yield from _keys(member, join_key(path, _ITEM) if is_item else path)
