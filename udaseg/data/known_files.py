"""Named lists of dataset files with known problems; they are kept unless a rule excludes them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from udaseg.data.document import Faults, did_you_mean


@dataclass(frozen=True)
class FileRule:
    """Files that can be excluded together.

    Attributes:
        why: The problem with these files, and its source.
        stems: File names without suffix and without the endings that matching strips.
    """

    why: str
    stems: frozenset[str]


def file_rules(value: object, faults: Faults) -> dict[str, FileRule]:
    """Return the rules declared by `rules: {NAME: {why, images}}`."""
    rules: dict[str, FileRule] = {}
    if not isinstance(value, dict):
        faults.add("rules", f"must be `name: {{why: ..., images: [...]}}`, got {value!r}")
        return rules
    for name, rule in value.items():
        stems = rule.get("images") if isinstance(rule, dict) else None
        why = rule.get("why") if isinstance(rule, dict) else None
        if (
            not isinstance(stems, list)
            or not all(type(stem) in (str, int) for stem in stems)
            or not isinstance(why, str)
            or set(rule) != {"why", "images"}
        ):
            faults.add("rules", f"{name}: must be {{why: ..., images: [NAME, ...]}}, got {rule!r}")
            continue
        rules[str(name)] = FileRule(why, frozenset(str(stem) for stem in stems))
    return rules


def unknown_rule(name: str, rules: Iterable[str]) -> str:
    """Return the message for a rule that does not exist."""
    known = sorted(rules)
    available = f"known rules: {', '.join(known)}" if known else "this dataset has no rules"
    return f"no rule '{name}'{did_you_mean(name, known)}; {available}"


def excluded_rules(value: object, rules: Mapping[str, FileRule], faults: Faults) -> tuple[str, ...]:
    """Return the rule names in `exclude: [NAME, ...]`."""
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        faults.add("exclude", f"must be a list of rule names, got {value!r}")
        return ()
    for name in value:
        if name not in rules:
            faults.add("exclude", unknown_rule(name, rules))
    return tuple(name for name in value if name in rules)
