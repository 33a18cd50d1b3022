"""Stress checkpoints: kills while saving, damage, other contents, missing parts."""

import contextlib
import copy
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support import damage, kills
from tests.support.injections import everything, rich_objective, tiny_fit
from tests.support.injections import trained as train
from tests.support.wrong_values import places
from udaseg.errors import CheckpointError
from udaseg.runs.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from udaseg.training.optimizer import make_optimizer, parameter_group
from udaseg.training.resume import restore

KEEP = 2
FACTS: dict[str, Any] = {
    "recipe": {"name": "r"},
    "classes": {"names": ["a", "b"], "colors": [[0, 0, 0], [1, 1, 1]]},
    "files": {"source": "digest"},
}


def network(size: int = 3, step: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network with weights equal to the step, and its optimiser with moments."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(size, 2), nn.BatchNorm1d(2))
    named = list(made.named_parameters())
    trainer = make_optimizer(
        "adamw", [parameter_group("all", 0.1, named)], momentum=0.9, weight_decay=0.0
    )
    made(torch.ones(2, size)).sum().backward()
    trainer.step()
    with torch.no_grad():
        made[0].weight.fill_(step)
    return made, trainer


def saved(folder: Path, step: int, size: int = 3, **changes: Any) -> Path:
    """Save a network from `network` as the checkpoint of a step."""
    made, trainer = network(size, step)
    facts = {**FACTS, "keep": KEEP, **changes}
    return save_checkpoint(folder, step=step, objective=made, optimizer=trainer, **facts)


def _save_on_and_on(folder: Path, first: int, told: Any, at: int | None) -> None:
    made, trainer = network(256)
    if at is not None:
        kills.die_at(at)
    for step in range(first, first + 10_000):
        with torch.no_grad():
            made[0].weight.fill_(step)
        save_checkpoint(folder, step=step, objective=made, optimizer=trainer, keep=KEEP, **FACTS)
        os.write(told, step.to_bytes(4, "big"))


@dataclass
class Kills:
    """Results of killing a process while it saves.

    Attributes:
        kills: Processes that were killed before they finished.
        lost: Descriptions of what was lost or could not be read.
        leftovers: Total number of temporary files left behind by kills.
    """

    kills: int = 0
    lost: list[str] = field(default_factory=list)
    leftovers: int = 0


def killed_while_saving(folder: Path, number: int, seed: int) -> Kills:
    """Kill a saving process `number` times, 0 to 120 ms after it first reports a save."""
    rng, found = random.Random(seed), Kills()
    for _ in range(number):
        _trial(folder, found, after_s=rng.uniform(0, 0.12))
    return found


def killed_at_every_change(folder: Path, most: int) -> Kills:
    """Kill a process right before its n-th disk write, for n from 1 to `most`."""
    found = Kills()
    for at in range(1, most + 1):
        _trial(folder, found, at=at)
    return found


def _trial(folder: Path, found: Kills, *, after_s: float = 0.0, at: int | None = None) -> None:
    before = newest_checkpoint(folder)
    first = 1 if before is None else before.step + 1
    read, write = os.pipe()
    process = get_context("fork").Process(target=_save_on_and_on, args=(folder, first, write, at))
    process.start()
    os.close(write)
    told = b""
    if at is None:
        told = os.read(read, 4)
        process.join(after_s)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    while more := os.read(read, 4096):
        told += more
    os.close(read)
    found.kills += process.exitcode == -signal.SIGKILL
    acknowledged = first - 1
    if len(told) >= 4:
        whole = len(told) // 4 * 4
        acknowledged = int.from_bytes(told[whole - 4 : whole], "big")
    found.leftovers += len(list(folder.glob("*.tmp")))
    after = newest_checkpoint(folder)
    step = 0 if after is None else after.step
    if step < acknowledged:
        found.lost.append(f"step {acknowledged} was told, {step} is there")
    if after is not None and not bool((after.objective["0.weight"] == after.step).all()):
        found.lost.append(f"step {after.step} holds another step's weights")
    # like the first save of the next run
    path = saved(folder, step + 1, 256)
    if list(folder.glob("*.tmp")) or load_checkpoint(path).step != step + 1:
        found.lost.append("a leftover, or no checkpoint, after the next save")


def unnoticed_damage(folder: Path, cuts: int, flips: int, seed: int) -> tuple[int, list[str]]:
    """Cut a checkpoint and flip bits; return the number of trials and the undetected cases."""
    saved(folder, 1)
    path = saved(folder, 2)
    whole, wrong = path.read_bytes(), []
    damaged = [*damage.cuts(whole, cuts), *damage.flips(whole, flips, seed)]
    for number, data in enumerate(damaged):
        path.write_bytes(data)
        try:
            load_checkpoint(path)
            wrong.append(f"damage {number} was read")
        except CheckpointError as error:
            if path.name not in str(error):
                wrong.append(f"damage {number}: the file is not named")
        found = newest_checkpoint(folder)
        if found is None or found.step != 1:
            wrong.append(f"damage {number}: the one before was not taken")
    path.write_bytes(whole)
    return len(damaged), wrong


def unnoticed_damage_of_manifests(folder: Path, seed: int) -> tuple[int, list[str]]:
    """Cut a manifest and flip bits; the checkpoint must be refused or load unchanged."""
    path = saved(folder, 2)
    manifest, right = path.with_suffix(".json"), load_checkpoint(path).objective
    whole, wrong = manifest.read_bytes(), []
    damaged = [*damage.cuts(whole, len(whole) - 2), *damage.flips(whole, 8 * len(whole), seed)]
    for number, data in enumerate(damaged):
        manifest.write_bytes(data)
        try:
            found = load_checkpoint(path).objective
            if any(not torch.equal(found[name], right[name]) for name in right):
                wrong.append(f"damage {number} of the manifest: other weights were read")
        except CheckpointError:
            pass
    return len(damaged), wrong


def of_another_kind(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield descriptions of wrong contents, each with a function that tries to load them."""
    path = saved(folder, 1)
    payload = torch.load(path, weights_only=True)
    weights = payload["objective"]

    def put(changed: object) -> None:
        path.with_suffix(".json").unlink(missing_ok=True)
        torch.save(changed, path)

    def tried(changed: object, size: int = 3) -> Callable[[], object]:
        def act() -> object:
            put(changed)
            return restore(load_checkpoint(path), *network(size))

        return act

    def others(name: str, **changes: object) -> dict[str, Any]:
        return {**payload, name: {**payload[name], **changes}}

    for name in payload:
        if name != "processes":
            rest = {key: value for key, value in payload.items() if key != name}
            yield f"without {name}", tried(rest)
    for number in (0, 2, 99, "1", None):
        yield f"format {number}", tried({**payload, "format": number})
    for name in weights:
        rest = {key: value for key, value in weights.items() if key != name}
        yield f"without the weight {name}", tried({**payload, "objective": rest})
        renamed = {**rest, f"{name}_": weights[name]}
        yield f"{name} renamed", tried({**payload, "objective": renamed})
        wider = {**weights, name: torch.zeros(*weights[name].shape, 2)}
        yield f"{name} of another shape", tried({**payload, "objective": wider})
    yield "a weight more", tried(others("objective", more=torch.zeros(1)))
    yield "a network of another size", tried(payload, size=4)
    group = payload["optimizer"]["param_groups"][0]
    swapped = {**group, "param_names": group["param_names"][::-1]}
    yield "parameters in another order", tried(others("optimizer", param_groups=[swapped]))
    yield "two groups for one", tried(others("optimizer", param_groups=[group, group]))
    yield "no groups", tried(others("optimizer", param_groups=[]))
    for kind, value in (("list", [1]), ("tensor", torch.zeros(2)), ("text", "x"), ("nothing", {})):
        yield f"a {kind}", tried(value)


def of_wrong_types(folder: Path, values: Sequence[object]) -> Iterator[tuple[str, object, object]]:
    """Put each value in each place of a checkpoint, and try to resume from it and to load it.

    Yields the place, the value before, and the wrong one, if the checkpoint is taken.
    """
    path = saved(folder, 1)
    path.with_suffix(".json").unlink()
    payload = torch.load(path, weights_only=True)
    for keys in list(places(payload))[1:]:
        for value in values:
            changed = copy.deepcopy(payload)
            holder: Any = changed
            for key in keys[:-1]:
                holder = holder[key]
            before, holder[keys[-1]] = holder[keys[-1]], value
            torch.save(changed, path)
            with contextlib.suppress(CheckpointError):
                restore(load_checkpoint(path), *network(3))
                yield ".".join(map(str, keys)), before, value


def left_out_and_unnoticed(at: int = 4, steps: int = 8) -> tuple[int, list[str], list[str]]:
    """Reset each item of a checkpoint to its initial value and compare the resumed runs.

    Returns:
        Number of trials; items whose loss changes nothing; items that a run recomputes itself.
    """
    whole = tiny_fit(objective=rich_objective(), steps=steps)
    kept: dict[str, Any] = {}

    def on_step(done: int, _: object) -> None:
        if done == at:
            kept["objective"] = copy.deepcopy(whole.objective.state_dict())
            kept["optimizer"] = copy.deepcopy(whole.optimizer.state_dict())

    fresh = copy.deepcopy(rich_objective().state_dict())
    train(whole, on_step=on_step)
    wanted = everything(whole)
    unnoticed, made_anew, trials = [], [], 0

    def ends_as_wanted(objective: dict[str, Any], state: dict[str, Any], first: int = at) -> bool:
        run = tiny_fit(objective=rich_objective(), steps=steps)
        run.objective.load_state_dict(copy.deepcopy(objective))
        run.optimizer.load_state_dict(copy.deepcopy(state))
        train(run, first=first)
        found = everything(run)
        return found.keys() == wanted.keys() and all(
            torch.equal(found[name], wanted[name]) for name in wanted
        )

    assert ends_as_wanted(kept["objective"], kept["optimizer"]), "resuming itself is not exact"
    for name, value in kept["objective"].items():
        if torch.equal(value, fresh[name]):
            continue  # it never changes, so a new network has the same value
        trials += 1
        mutant = {**kept["objective"], name: fresh[name]}
        if ends_as_wanted(mutant, kept["optimizer"]):
            made_anew.append(name)
    for number, state in kept["optimizer"]["state"].items():
        for name, value in state.items():
            trials += 1
            mutant = copy.deepcopy(kept["optimizer"])
            mutant["state"][number][name] = torch.zeros_like(value)
            if ends_as_wanted(kept["objective"], mutant):
                unnoticed.append(f"optimizer.{number}.{name}")
    trials += 1
    if ends_as_wanted(kept["objective"], kept["optimizer"], first=at - 1):
        unnoticed.append("step")
    return trials, unnoticed, made_anew
