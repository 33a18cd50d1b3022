"""Settings that are gone: accepted at their default, otherwise refused with a sentence."""

from udaseg.documents import Document, MappingNode, ScalarNode

_DEFAULTS = {"machine.channels_last": "true", "machine.worker_timeout": "300"}
_REASONS = {
    "machine.channels_last": "the network chooses its memory layout",
    "machine.worker_timeout": "a loader process that hangs is replaced after 300 seconds",
    "machine.keep_best: snd": "it ranks against the labels; choose another criterion",
}


def drop_retired(document: Document, *, stored: bool) -> None:
    """Remove settings that are gone from a recipe.

    Args:
        document: The recipe. A setting that said something else than its default is a problem.
        stored: The recipe belongs to a finished checkpoint, so no setting is a problem.
    """
    for setting, reason in _REASONS.items():
        key, _, value = setting.partition(": ")
        section, _, name = key.partition(".")
        _, node = document.root.entries.get(section, ("", None))
        entries = node.entries if isinstance(node, MappingNode) else {}
        _, child = entries.get(name, ("", None))
        text = child.text if isinstance(child, ScalarNode) else ""
        if child is None or (value and text != value):
            continue
        if not stored and text != _DEFAULTS.get(key):
            document.add(key, f"{value or 'the setting'} is gone: {reason}; remove the key")
        del entries[name]
