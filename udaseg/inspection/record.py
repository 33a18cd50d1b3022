"""Read a run folder for reports; a file that is missing or truncated gives a warning.

Only the recipe must be readable.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from udaseg.documents import join_key
from udaseg.inspection.info import domain_text, method_text, target_text
from udaseg.inspection.report_content import RunContent
from udaseg.inspection.report_features import read_features
from udaseg.recipe.load import load, to_dict
from udaseg.recipe.schema import Recipe
from udaseg.recipe.stages import adapts
from udaseg.runs.manifests import refuse_no_run_folder
from udaseg.runs.records import parse_event, read_environment, read_status
from udaseg.runs.scores import read_evaluations
from udaseg.runs.status import read_cost
from udaseg.runs.worth import read_worth, unknown_worth
from udaseg.text import format_duration

_LOGGED_PATTERN = re.compile(r"^\S+ \S+ (?:WARNING|ERROR) \S+: (.*)$", re.MULTILINE)
_MAX_LOG_WARNINGS = 20
_MAX_TEXT_LENGTH = 20_000_000
_EMPTY_VALUES = ("[]", "null")


def read_run(folder: Path, name: str, scored: str | None) -> RunContent:
    """Return the contents of a run folder.

    Args:
        folder: Run folder.
        name: Name on the page.
        scored: Evaluation to show, a folder below `eval`; None if there is none.
    """
    refuse_no_run_folder(folder)
    recipe_path = folder / "recipe.yaml"
    recipe = load(recipe_path, stored=True)
    warnings: list[str] = []
    status, environment = read_status(folder), read_environment(folder)
    for file, document in (("status.json", status), ("environment.json", environment)):
        if not document:
            warnings.append(f"{file} is {'damaged' if (folder / file).is_file() else 'missing'}")
    metrics = _read_metrics(folder / "metrics.jsonl", warnings)
    evaluations = read_evaluations(folder, warnings)
    features = read_features(folder, warnings)
    worth = read_worth(folder) or (unknown_worth(folder) if adapts(recipe) else None)
    if worth is not None and worth.verdict == "worse":
        warnings.append(f"worse by the adaptation, say criteria without labels: {worth.reason}")
    warnings += _status_warnings(status)
    warnings += _alarm_warnings(metrics)
    warnings += _log_warnings(_read_text(folder / "train.log"))
    return RunContent(
        name=name,
        facts=_facts(folder, recipe, status),
        command=_read_text(folder / "command.txt").strip(),
        recipe=_read_text(recipe_path),
        settings=dict(_flatten(to_dict(recipe))),
        scores=None if scored is None else evaluations.get(scored),
        evaluations={key: scores.means for key, scores in evaluations.items()},
        metrics=metrics,
        cost=_cost(folder, status, recipe),
        environment={
            key.removeprefix("packages."): value
            for key, value in _flatten(environment)
            if value not in _EMPTY_VALUES
        },
        warnings=list(dict.fromkeys(warnings)),
        features=features,
        worth=worth,
    )


def _read_metrics(path: Path, warnings: list[str]) -> list[dict[str, Any]]:
    """Return the events of `metrics.jsonl`; unreadable lines are counted in a warning."""
    events, bad = [], 0
    for line in _read_text(path).splitlines():
        try:
            events.append(parse_event(line))
        except ValueError:
            bad += 1
    if bad:
        warnings.append(f"{bad} lines of {path.name} cannot be read")
    return sorted(events, key=lambda event: event["step"])


def _facts(folder: Path, recipe: Recipe, status: Mapping[str, Any]) -> dict[str, str]:
    model = recipe.model
    return {
        "recipe": recipe.name,
        "method": method_text(recipe),
        "source": domain_text(recipe.source),
        "target (unlabelled)": target_text(recipe),
        "scored on": domain_text(recipe.validation),
        "network": f"{model.backbone}, {model.head}, {model.weights}",
        "steps": str(recipe.steps),
        "seed": str(recipe.seed),
        "state": str(status.get("state", "unknown")),
        "last written": str(status.get("time", "-")),
        "folder": str(folder),
    }


def _cost(folder: Path, status: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    cost, recorded = {}, read_cost(folder)
    if recorded:
        seconds = max(1e-9, recorded["seconds"])
        cost["training time"] = f"{format_duration(seconds)} for {recorded['step']} steps"
        cost["images per second"] = f"{recorded['images'] / seconds:.1f}"
        memory = recorded["peak_memory_mib"]
        cost["peak memory"] = f"{memory} MiB ({recorded['peak_memory_of']})"
    if "seconds" in status:
        cost["last start, with scoring"] = format_duration(status["seconds"])
    target = f" and {recipe.batch.target} of the target" if adapts(recipe) else ""
    cost["images per step"] = f"{recipe.batch.source} of the source{target}"
    return cost


def _status_warnings(status: Mapping[str, Any]) -> list[str]:
    warnings = []
    if (state := str(status.get("state", "unknown"))) != "done":
        reported = ("step", "code", "reason", "signal")
        details = ", ".join(f"{key} {status[key]}" for key in reported if key in status)
        warnings.append(f"the run is not finished: {state}" + (f" ({details})" if details else ""))
    for incident, count in status.get("counts", {}).items():
        warnings.append(f"{incident.replace('_', ' ')}: {count}")
    return warnings


def _alarm_warnings(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the first alarm of each kind, and how often it was raised."""
    alarms: dict[str, list[str]] = {}
    for event in metrics:
        for kind, text in event.get("alarms", {}).items():
            alarms.setdefault(kind, []).append(f"step {event['step']}: {text}")
    return [
        texts[0] + (f" (raised {len(texts)} times)" if len(texts) > 1 else "")
        for texts in alarms.values()
    ]


def _log_warnings(log: str) -> list[str]:
    """Return the warnings and errors of a log without timestamps or duplicates."""
    unique = list(dict.fromkeys(_LOGGED_PATTERN.findall(log)))
    if len(unique) <= _MAX_LOG_WARNINGS:
        return unique
    more = len(unique) - _MAX_LOG_WARNINGS
    return [*unique[:_MAX_LOG_WARNINGS], f"and {more} more warnings in train.log"]


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested values with dotted keys."""
    if isinstance(value, Mapping) and (value or not key):
        for name, item in value.items():
            yield from _flatten(item, join_key(key, name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _flatten(item, f"{key}[{number}]")
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, default=str)


def _read_text(path: Path) -> str:
    """Return a text file, or its end if it is very long; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-_MAX_TEXT_LENGTH:]
    except OSError:
        return ""
