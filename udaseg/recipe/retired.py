"""Settings that are gone: accepted at their default, otherwise refused with a sentence."""

from udaseg.documents import Document, MappingNode, ScalarNode, scalar_value

_DEFAULTS = {"machine.channels_last": True, "machine.worker_timeout": 300}
_REASONS = {
    "machine.channels_last": "the network chooses its memory layout; remove the key",
    "machine.worker_timeout": (
        "a loader process that hangs is replaced after 300 seconds; remove the key"
    ),
    "machine.keep_best: snd": "it ranks against the labels; choose another criterion",
}


def drop_retired(document: Document, *, stored: bool) -> None:
    """Remove settings that are gone from a recipe.

    Args:
        document: The recipe. A setting that said something else than its default is a problem.
        stored: The recipe is that of a run, so no setting is a problem.
    """
    for setting, reason in _REASONS.items():
        key, _, choice = setting.partition(": ")
        section, _, name = key.partition(".")
        _, node = document.root.entries.get(section, ("", None))
        entries = node.entries if isinstance(node, MappingNode) else {}
        _, child = entries.get(name, ("", None))
        value = scalar_value(child) if isinstance(child, ScalarNode) else None
        if child is None or (choice and value != choice):
            continue
        if not stored and (choice or value != _DEFAULTS[key]):
            document.add(key, f"{choice or 'the setting'} is gone: {reason}")
        del entries[name]
