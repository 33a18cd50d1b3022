"""Settings that are gone: accepted at their default, otherwise refused with a sentence."""

import logging

from udaseg.documents import Document, ListNode, MappingNode, Node, ScalarNode, scalar_value

log = logging.getLogger(__name__)
_DEFAULTS = {"machine.channels_last": True, "machine.worker_timeout": 300}
_REASONS = {
    "machine.channels_last": "the network chooses its memory layout; remove the key",
    "machine.worker_timeout": (
        "a loader process that hangs is replaced after 300 seconds; remove the key"
    ),
    "machine.keep_best: snd": "it ranks against the labels; choose another criterion",
}
_LOGGERS = {"require": ["tensorboard"], "never": []}
"""`machine.loggers` by the values of `machine.tensorboard`, but for its default `auto`."""


def drop_retired(document: Document, *, stored: bool) -> None:
    """Remove settings that are gone from a recipe, and rename those that have a new name.

    Args:
        document: The recipe. A setting that said something else than its default is a problem.
        stored: The recipe is that of a run, so no setting is a problem, nor one to warn of.
    """
    for setting, reason in _REASONS.items():
        key, _, choice = setting.partition(": ")
        section, _, name = key.partition(".")
        entries = _entries(document, section)
        _, child = entries.get(name, ("", None))
        value = scalar_value(child) if isinstance(child, ScalarNode) else None
        if child is None or (choice and value != choice):
            continue
        if not stored and (choice or value != _DEFAULTS[key]):
            document.add(key, f"{choice or 'the setting'} is gone: {reason}")
        del entries[name]
    _rename_tensorboard(document, stored=stored)


def _rename_tensorboard(document: Document, *, stored: bool) -> None:
    """Turn `machine.tensorboard` into `machine.loggers`."""
    entries = _entries(document, "machine")
    position, child = entries.get("tensorboard", ("", None))
    value = scalar_value(child) if isinstance(child, ScalarNode) else None
    if value not in ("auto", *_LOGGERS):
        return  # unknown to the schema too
    del entries["tensorboard"]
    if value == "auto":
        return
    names = _LOGGERS[str(value)]
    if not stored:
        log.warning(
            "machine.tensorboard=%s is now machine.loggers=[%s]; the old key will be removed",
            value,
            *names or [""],
        )
    items: list[Node] = [ScalarNode(name, False, position) for name in names]
    entries.setdefault("loggers", (position, ListNode(items, position)))


def _entries(document: Document, section: str) -> dict[str, tuple[str, Node]]:
    _, node = document.root.entries.get(section, ("", None))
    return node.entries if isinstance(node, MappingNode) else {}
