"""Read a run folder for reports; a missing or truncated file gives a warning, not an error."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from udaseg.commands.cost import read_cost
from udaseg.errors import UsageError
from udaseg.reporting import RunContent, Scores

_RATE = re.compile(r": step [0-9]+/[0-9]+ .*?([0-9.]+) img/s")
_LOGGED = re.compile(r"^\S+ \S+ (?:WARNING|ERROR) \S+: (.*)$", re.MULTILINE)
_MOST_LOG_WARNINGS = 20
_LONGEST_TEXT = 20_000_000
_NOTHING = {"[]": "none", "null": "none"}


def read_run(folder: Path, name: str, scored: str | None) -> RunContent:
    """Return the contents of a run folder.

    Args:
        folder: Run folder.
        name: Name on the page.
        scored: Evaluation to show, a folder below `eval`; None if there is none.

    Raises:
        UsageError: The folder is not a run folder.
    """
    recipe = _text(folder / "recipe.yaml")
    if not recipe:
        raise UsageError(f"{folder}: is not a run folder (no recipe.yaml)")
    warnings: list[str] = []
    status = _json(folder / "status.json", warnings)
    environment = _json(folder / "environment.json", warnings)
    metrics = read_metrics(folder / "metrics.jsonl", warnings)
    evaluations = {key: read_scores(path, warnings) for key, path in score_files(folder).items()}
    readable = {key: scores for key, scores in evaluations.items() if scores is not None}
    log = _text(folder / "train.log")
    warnings += [*_status_warnings(status), *_alarms(metrics), *_logged(log)]
    settings = dict(_flat(_yaml(recipe)))
    return RunContent(
        name=name,
        facts=_facts(folder, settings, status),
        command=_text(folder / "command.txt").strip(),
        recipe=recipe,
        settings=settings,
        scores=None if scored is None else readable.get(scored),
        evaluations={key: scores.means for key, scores in readable.items()},
        metrics=metrics,
        cost=_cost(folder, status, settings, log),
        environment={key: _NOTHING.get(value, value) for key, value in _flat(environment)},
        warnings=list(dict.fromkeys(warnings)),
    )


def score_files(folder: Path) -> dict[str, Path]:
    """Return the evaluations of a run by name: plain ones first, then the newest first."""
    files = [path for path in (folder / "eval").glob("*/scores.json") if path.is_file()]
    # a `+` marks options such as flip: these scores are not comparable with plain ones
    files.sort(key=lambda path: ("+" in path.parent.name, -path.stat().st_mtime))
    return {path.parent.name: path for path in files}


def read_scores(path: Path, warnings: list[str]) -> Scores | None:
    """Return the scores of a `scores.json`; None and a warning if it cannot be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = document["classes"]
        confusion = [[int(count) for count in row] for row in document["confusion"]]
        square = {len(rows)} == {len(confusion), *map(len, confusion)}
        return Scores(
            protocol={str(key): str(value) for key, value in document["protocol"].items()},
            names=[str(row["name"]) for row in rows],
            iou=[_number(row["iou"]) for row in rows],
            accuracy=[_number(row["accuracy"]) for row in rows],
            share=[_number(row["truth_share"]) for row in rows],
            means={str(key): _number(value) for key, value in document["means"].items()},
            pixel_accuracy=_number(document["pixel_accuracy"]),
            confusion=confusion if square else [],
            notes=[str(note) for note in document["notes"]],
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        warnings.append(f"{path.parent.name}/{path.name} cannot be read ({error})")
        return None


def read_metrics(path: Path, warnings: list[str]) -> list[dict[str, Any]]:
    """Return the events of `metrics.jsonl`; unreadable lines are counted in a warning."""
    events, bad = [], 0
    for line in _text(path).splitlines():
        try:
            event = json.loads(line)
            events.append({**event, "step": int(event["step"])})
        except (ValueError, LookupError, TypeError):
            bad += 1
    if bad:
        warnings.append(f"{bad} lines of {path.name} cannot be read")
    return sorted(events, key=lambda event: int(event["step"]))


def _facts(folder: Path, settings: Mapping[str, str], status: Mapping[str, Any]) -> dict[str, str]:
    """Return the main facts of the run, in display order."""
    network = ("model.backbone", "model.head", "model.weights")
    facts = {
        "recipe": settings.get("name", "-"),
        "method": _method(settings),
        "source": _domain(settings, "source"),
        "target (unlabelled)": _domain(settings, "target"),
        "scored on": _domain(settings, "validation"),
        "network": ", ".join(settings[key] for key in network if key in settings),
        "steps": settings.get("steps", "-"),
        "seed": settings.get("seed", "-"),
        "state": str(status.get("state", "unknown")),
        "last written": str(status.get("time", "-")),
        "folder": str(folder),
    }
    return {key: value for key, value in facts.items() if value}


def _method(settings: Mapping[str, str]) -> str:
    """Return a run's method with the terms that its recipe enables."""
    terms = [
        term
        for term in ("regional", "prototypes", "semantic")
        if any(key.startswith(f"method.{term}.") for key in settings)
    ]
    return " + ".join([settings.get("method.kind", "-"), *terms])


def _domain(settings: Mapping[str, str], name: str) -> str:
    data = settings.get(f"{name}.data", "null")
    if data == "null":
        return "nothing"
    parts = [data, settings.get(f"{name}.split", "")]
    for key in ("resize", "crop"):
        size = settings.get(f"{name}.{key}", "null")
        if size != "null":
            parts.append(f"{key} {size}")
    return ", ".join(part for part in parts if part)


def _cost(
    folder: Path, status: Mapping[str, Any], settings: Mapping[str, str], log: str
) -> dict[str, str]:
    """Return time, throughput and memory, if recorded."""
    cost, recorded = {}, read_cost(folder)
    if recorded:
        seconds = max(1e-9, recorded["seconds"])
        cost["training, all starts"] = f"{duration(seconds)} for {recorded['step']} steps"
        cost["images/s, source and target"] = f"{recorded['images'] / seconds:.1f}"
        memory = recorded["peak_memory_mib"]
        cost["peak memory"] = f"{memory} MiB of {recorded['peak_memory_of']}"
    elif rates := _RATE.findall(log):
        cost["images/s, source and target"] = rates[-1]
    total = status.get("seconds")
    if isinstance(total, int | float):
        cost["last start, with scoring"] = duration(total)
    batch = [settings[key] for key in ("batch.source", "batch.target") if key in settings]
    if batch:
        cost["images a step"] = " + ".join(batch)
    return cost


def duration(seconds: float) -> str:
    """Return seconds as H:MM:SS."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{remainder:02d}"


def _status_warnings(status: Mapping[str, Any]) -> list[str]:
    warnings = []
    if (state := str(status.get("state", "unknown"))) != "done":
        reported = ("step", "code", "reason", "signal")
        details = ", ".join(f"{key} {status[key]}" for key in reported if key in status)
        warnings.append(f"the run is not finished: {state}" + (f" ({details})" if details else ""))
    counts = status.get("counts")
    if isinstance(counts, Mapping):
        warnings += [f"{str(key).replace('_', ' ')}: {count}" for key, count in counts.items()]
    return warnings


def _alarms(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the first alarm of each kind, and how often it was raised."""
    first: dict[str, str] = {}
    times: dict[str, int] = {}
    for event in metrics:
        alarms = event.get("alarms")
        for kind, text in alarms.items() if isinstance(alarms, Mapping) else ():
            first.setdefault(str(kind), f"step {event['step']}: {text}")
            times[str(kind)] = times.get(str(kind), 0) + 1
    return [
        text + (f" (raised {times[kind]} times)" if times[kind] > 1 else "")
        for kind, text in first.items()
    ]


def _logged(log: str) -> list[str]:
    """Return the warnings and errors of a log without timestamps or duplicates."""
    unique = list(dict.fromkeys(_LOGGED.findall(log)))
    if len(unique) <= _MOST_LOG_WARNINGS:
        return unique
    more = len(unique) - _MOST_LOG_WARNINGS
    return [*unique[:_MOST_LOG_WARNINGS], f"and {more} more warnings in train.log"]


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Return the leaves of nested values with dotted keys."""
    if isinstance(value, Mapping) and (value or not key):
        return [
            pair
            for name, item in value.items()
            for pair in _flat(item, f"{key}.{name}" if key else str(name))
        ]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [
            pair for number, item in enumerate(value) for pair in _flat(item, f"{key}[{number}]")
        ]
    return [(key, value if isinstance(value, str) else json.dumps(value, default=str))]


def _yaml(text: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, dict) else {}


def _json(path: Path, warnings: list[str]) -> dict[str, Any]:
    text = _text(path)
    try:
        document = json.loads(text)
    except ValueError:
        warnings.append(f"{path.name} is {'damaged' if text else 'missing'}")
        return {}
    return document if isinstance(document, dict) else {}


def _text(path: Path) -> str:
    """Return a text file, or its end if it is very long; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-_LONGEST_TEXT:]
    except OSError:
        return ""


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
