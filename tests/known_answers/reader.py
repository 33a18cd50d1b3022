"""Outputs of the released code of eight papers, on inputs that are made by formulas.

`answers.json` holds what the authors' code gave; nothing of that code is here. Inputs are computed
in float64 and rounded to their `dtype`. Nothing here imports udaseg, so that the expected side of a
test stays independent of what it tests.

    case = answer("rccr/contrast_loss")
    case.expect("loss", loss)                 # the release's value
    case.expect("loss", loss, variation=True) # the same formula with our declared difference
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE = Path(__file__).with_name("answers.json")
BOUND = 1e-5
_PRIME = 1_000_003


@dataclass(frozen=True)
class Answer:
    """One function of one release: what it does, its inputs, and what it gave.

    `inputs` are arrays by name; `constants` is what was set.
    """

    name: str
    says: str
    constants: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, Mapping[str, Any]]
    variation: Mapping[str, Mapping[str, Any]]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.inputs[name].copy())

    def expect(
        self, output: str, value: Any, *, variation: bool = False, bound: float = BOUND
    ) -> None:
        """Fail unless `value` is the output, within `bound` of its largest entry."""
        expected = (self.variation if variation else self.outputs)[output]
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        problems = differences(expected, np.asarray(value), bound)
        assert not problems, f"{self.name}, {output}: " + "; ".join(problems)

    def differs(self, output: str, value: Any, *, bound: float = BOUND) -> bool:
        """Return whether `value` is another value than the release's."""
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        return bool(differences(self.outputs[output], np.asarray(value), bound))


def names() -> list[str]:
    return list(_cases())


@functools.cache
def answer(name: str) -> Answer:
    case = _cases()[name]
    inputs: dict[str, np.ndarray] = {}
    for key, spec in case["inputs"].items():
        inputs[key] = build(spec, inputs)
    variation = case.get("variation", {}).get("outputs", {})
    return Answer(
        name,
        case["says"],
        case.get("constants", {}),
        inputs,
        case["outputs"],
        variation,
    )


def input_sums(name: str) -> Mapping[str, list[float]]:
    """Return the sum and the probe that each made input must have."""
    return _cases()[name]["input_sum_and_probe"]


@functools.cache
def _cases() -> dict[str, Any]:
    return {case["name"]: case for case in json.loads(FILE.read_text())["cases"]}


def probe(x: np.ndarray) -> float:
    flat = x.astype(np.float64).ravel()
    return float((flat * np.cos(0.37 * np.arange(flat.size) + 0.11)).sum())


def differences(expected: Mapping[str, Any], value: np.ndarray, bound: float) -> list[str]:
    """Return what is wrong with a value; floats within `bound` of the largest entry."""
    if "value" in expected and isinstance(expected["value"], int):
        return [] if value == expected["value"] else [f"{value} is not {expected['value']}"]
    if "value" in expected:
        near = bound * abs(expected["value"]) + 5 * expected.get("float32_gap", 0)
        gap = abs(float(value) - expected["value"])
        return [] if gap <= near else [f"{float(value)} is not {expected['value']}"]
    if list(value.shape) != expected["shape"]:
        return [f"the shape {value.shape} is not {expected['shape']}"]
    if "largest" not in expected:
        return _differences_of_integers(expected, value.astype(np.int64))
    return _differences_of_floats(expected, value.astype(np.float64), bound)


def _differences_of_integers(expected: Mapping[str, Any], value: np.ndarray) -> list[str]:
    flat = value.ravel()
    if "values" in expected:
        wrong = np.flatnonzero(flat != np.array(expected["values"]))
        return [f"{wrong.size} entries differ, first {wrong[0]}"] if wrong.size else []
    numbers, counts = np.unique(flat, return_counts=True)
    found = {str(n): int(c) for n, c in zip(numbers, counts, strict=True)}
    problems = [] if found == expected["counts"] else [f"counts {found}"]
    checksum = int((((np.arange(flat.size) % 1009) + 1) * flat).sum())
    return problems + ([] if checksum == expected["checksum"] else [f"checksum {checksum}"])


def _differences_of_floats(
    expected: Mapping[str, Any], value: np.ndarray, bound: float
) -> list[str]:
    flat, gap = value.ravel(), expected.get("float32_gap", 0)
    entries = expected.get("entries") or dict(enumerate(expected["values"]))
    near = bound * expected["largest"] + 5 * gap
    problems = [
        f"[{index}] {flat[int(index)]} is not {entry}"
        for index, entry in entries.items()
        if not abs(flat[int(index)] - entry) <= near
    ]
    near = bound * expected["norm"] + gap * flat.size**0.5
    found = {"sum": flat.sum(), "norm": np.sqrt((flat * flat).sum()), "probe": probe(value)}
    for key, number in found.items():
        if key in expected and not abs(number - expected[key]) <= near:
            problems.append(f"{key} {number} is not {expected[key]}")
    return problems[:5]


def build(spec: Mapping[str, Any], others: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Return the array of a specification; `others` are those that were made before it."""
    others = others or {}
    kind, shape = spec["formula"], tuple(spec.get("shape", ()))
    if kind == "picks":
        j = np.arange(spec["count"], dtype=np.int64)
        return (spec["mult"] * j + spec["add"]) % spec["n"]
    if kind == "every":
        return others[spec["of"]][:, :: spec["side"], :: spec["side"]].copy()
    if kind == "table":
        return np.array(spec["values"], dtype=spec["dtype"])
    made = _FORMULAS[kind](spec, shape).reshape(shape)
    for step in spec.get("steps", ()):
        made = _STEPS[step["op"]](made, step, others)
    return made.astype(spec["dtype"])


def _flat_index(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=np.int64)


def _quadratic(spec: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    i, low, high = _flat_index(shape), spec.get("low", -1.0), spec.get("high", 1.0)
    share = ((spec["a"] * i * i + spec["b"] * i + spec["c"]) % _PRIME) / _PRIME
    return low + (high - low) * share


def _wave(spec: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    angle = spec["a"] * _flat_index(shape) + spec["b"]
    return spec.get("shift", 0.0) + spec.get("scale", 1.0) * np.sin(angle)


def _labels(spec: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    i = _flat_index(shape)
    classes = (spec["p"] * i + i // spec["q"] + spec.get("r", 0)) % spec["k"]
    every = spec.get("void_every", 0)
    return np.where(i % every == spec.get("void_at", 0), 255, classes) if every else classes


def _blocks(spec: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    b, y, x = np.indices(shape)
    side, k = spec["side"], spec["k"]
    classes = (spec["p"] * (y // side) + spec["q"] * (x // side) + spec["r"] * b) % k
    classes = np.where(y < spec.get("void_rows", 0), 255, classes)
    if "specks" in spec:  # every n-th pixel is another class
        speck = (y * shape[2] + x) % spec["specks"] == 0
        classes = np.where(speck & (classes != 255), (classes + 1) % k, classes)
    return classes


_FORMULAS = {"quadratic": _quadratic, "wave": _wave, "labels": _labels, "blocks": _blocks}


def _unit(x: np.ndarray, step: Mapping[str, Any], others: Any) -> np.ndarray:
    return x / np.sqrt((x * x).sum(step["axis"], keepdims=True))


def _softmax(x: np.ndarray, step: Mapping[str, Any], others: Any) -> np.ndarray:
    powers = np.exp(x - x.max(step["axis"], keepdims=True))
    return powers / powers.sum(step["axis"], keepdims=True)


def _set(x: np.ndarray, step: Mapping[str, Any], others: Any) -> np.ndarray:
    x = x.copy()
    for index, value in step["at"]:
        x.ravel()[index] = value
    return x


def _boost(x: np.ndarray, step: Mapping[str, Any], others: Mapping[str, np.ndarray]) -> np.ndarray:
    x, label = x.copy(), others[step["labels"]]
    by = build(step["by"], others).astype(np.float64)
    b, y, z = np.nonzero(label != 255)
    x[b, label[b, y, z], y, z] += by[b, y, z]
    return x


def _shift_channel(x: np.ndarray, step: Mapping[str, Any], others: Any) -> np.ndarray:
    x = x.copy()
    x[:, step["channel"]] += step["by"]
    return x


_STEPS = {
    "unit": _unit,
    "softmax": _softmax,
    "relu": lambda x, step, others: np.maximum(x, 0),
    "set": _set,
    "replace": lambda x, step, others: np.where(x == step["old"], step["new"], x),
    "boost": _boost,
    "shift_channel": _shift_channel,
    "add": lambda x, step, others: x + step["scale"] * others[step["name"]].astype(np.float64),
    "negative_of": lambda x, step, others: -others[step["name"]].astype(np.float64),
}
