"""Print the plan of a run before it starts."""

import gc
import logging
import math
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.datasets.joined import join_datasets
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.loading.batches import Batch
from udaseg.data.open import open_dataset
from udaseg.data.prepare.planned import is_stand_in, planned_dataset
from udaseg.display.console import open_console, safe_text
from udaseg.distributed import world_size
from udaseg.errors import DataError
from udaseg.methods.objectives.self_training import SelfTraining
from udaseg.models.segmenter import evaluation_mode
from udaseg.recipe.methods import warm_up_steps
from udaseg.recipe.schema import Domain, Recipe, Source
from udaseg.recipe.stages import Stage, adapts, stages_of
from udaseg.sizes import Resize, ShortSide, distorts, recipe_size, resized
from udaseg.text import bands_text, bits_text, count_text, format_duration, percent
from udaseg.training.footprint import Footprint, estimate_footprint
from udaseg.training.setup import RunData, TrainingSetup, class_totals, estimated_setup
from udaseg.training.step import compute_gradients

log = logging.getLogger(__name__)
_HOUR_S = 3600
_TIMED_STEPS = 2
_LONG_S = 4 * _HOUR_S
"""A run on a CPU that takes longer is warned of."""
_MANY_PARAMETERS = 10_000_000
_FORWARD_PASSES = 4
"""What an image of a step costs, in forward passes: one and its backward pass of twice that, and
the teacher or another view. Self-training can have more; see `_more_passes`.
"""


def print_plan(
    recipe: Recipe, recipe_path: str, setup: TrainingSetup, data: RunData, folder: Path
) -> None:
    """Print the plan to stderr: data, network, steps and run folder."""
    source, target, validation = data.source, data.target, data.validation
    samples = source.split(recipe.source.split)
    rows = {
        "recipe": f"{recipe_path} ({recipe.name}, seed {recipe.seed})",
        **_source_rows(recipe.source, source),
    }
    if target is not None:
        target_samples = target.split(recipe.target.split)
        rows["target"] = f"{target.name}: {count_text(len(target_samples), 'image')}, labels unused"
        rows["target"] += _form_note(target)
        _warn_of_aspect_ratio("target", "target.resize", recipe.target.resize, target_samples)
        _warn_of_large_crop("target", recipe.target, recipe.target.resize, target_samples)
    if validation is not None:
        split = recipe.validation.split
        rows["scored on"] = (
            f"{validation.name} {split}: {count_text(len(validation.split(split)), 'image')}"
        )
    for number, size in enumerate(recipe.source.sizes):
        of_part = [sample for sample in samples if sample.part == number]
        if len(source.parts) == 1:
            _warn_of_aspect_ratio("source", "source.resize", size, of_part)
        else:
            name = source.parts[number].name
            _warn_of_aspect_ratio(name, f"source.resize_each[{number}]", size, of_part)
        _warn_of_large_crop("source", recipe.source, size, of_part)
    _warn_of_slow_device(setup)
    rows |= _class_rows(source, samples, target, validation)
    model, stages = recipe.model, stages_of(recipe)
    rows["network"] = (
        f"{model.backbone}, {model.head}, {_stride_text(setup)}, "
        f"{_parameters_text(setup)}, weights {model.weights}"
    )
    images = f"{recipe.batch.source}" + ("" if target is None else f" + {recipe.batch.target}")
    per_process = f" in each of {world_size()} processes" if world_size() > 1 else ""
    rows["steps"] = (
        f"{recipe.steps} of {images} images{per_process} on {setup.device}, "
        f"{recipe.machine.precision}"
    )
    rows |= _self_training_rows(setup)
    if len(stages) > 1:
        rows["stages"] = ", ".join(f"{stage.name} to step {stage.end}" for stage in stages)
    if assumed := [each.name for each in _datasets(data) if is_stand_in(each)]:
        names = ", ".join(dict.fromkeys(assumed))
        rows["assumed"] = f"{names}: not prepared; published numbers and sizes of images"
    _print_rows([*rows.items(), ("run", str(folder))])


def _self_training_rows(setup: TrainingSetup) -> dict[str, str]:
    """Return the length of the warm-up, and what the network decides: size of labels, masking."""
    recipe, objective, rows = setup.recipe, setup.objective, {}
    if warm_up := warm_up_steps(recipe.method, recipe.steps):
        rows["warm-up"] = f"the first {warm_up} of these steps on the source alone"
    if not isinstance(objective, SelfTraining):
        return rows
    if objective.label_scale != 1:
        size = f"{objective.label_scale:g} times their size"
        rows["labels"] = f"by the teacher, of target images at {size}"
    if objective.spec.masking is None and getattr(recipe.method, "masking", None):
        rows["masking"] = "none: the network is no plain ViT (method.masking.weight: null)"
    return rows


def _datasets(data: RunData) -> list[PreparedDataset]:
    others = [each for each in (data.target, data.validation) if each is not None]
    return [*data.source.parts, *others]


def _stride_text(setup: TrainingSetup) -> str:
    """Return the stride of the network, and why it is not the one that the recipe wishes."""
    own, wished = setup.objective.student.output_stride, setup.recipe.model.output_stride
    if own == wished:
        return f"stride {own}"
    return f"stride {own} (its own: without dilation, it cannot have model.output_stride={wished})"


def _parameters_text(setup: TrainingSetup) -> str:
    """Return the number of parameters of the student, and how many of them are trained."""
    parameters = list(setup.objective.student.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    share = "all" if trained == count else f"{trained / 1e6:.2f} M"
    return f"{count / 1e6:.2f} M parameters ({share} trained)"


def _source_rows(spec: Source, source: PreparedDataset) -> dict[str, str]:
    """Return what a source is and, of several data sets, what each of them adds."""
    assert source.classes is not None
    samples, count = source.split(spec.split), len(source.classes)
    size = f"{count_text(len(samples), 'image')}, {count_text(count, 'class', 'classes')}"
    rows = {"source": f"{source.name}: {size}{_form_note(source)}"}
    if len(source.parts) > 1:
        counts = [f"{len(part.split(spec.split))} of {part.name}" for part in source.parts]
        drawn = f"in turns of {', '.join(map(str, spec.shares))}" if spec.shares else "as one set"
        lacking = [
            f"not in {part.name}: {', '.join(names)}"
            for part in source.parts
            if part.classes and (names := _lacking(source.classes, part.classes))
        ]
        rows["drawn"] = "; ".join([f"{', '.join(counts)}, {drawn}", *lacking])
    return rows


def _lacking(classes: ClassSpace, part: ClassSpace) -> list[str]:
    return [name for name in classes.names if name not in part.names]


def _form_note(dataset: PreparedDataset) -> str:
    bits = {part.bits: None for part in dataset.parts if part.bits}
    note = f"; 16-bit images {' and '.join(map(bits_text, bits))}" if bits else ""
    bands = {part.bands: None for part in dataset.parts if part.bands}
    return note + "".join(f"; {bands_text(each)}" for each in bands)


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    console = open_console(stderr=True, soft_wrap=True)
    for key, value in rows:
        console.print(safe_text(f"{key:>10}  {value}"))


def _warn_of_slow_device(setup: TrainingSetup) -> None:
    """Warn of a run on a CPU that takes many hours, by the time of a forward pass."""
    steps = setup.recipe.steps
    if setup.device.type != "cpu" or (seconds := steps * _step_seconds(setup)) < _LONG_S:
        return
    parameters = sum(part.numel() for part in setup.objective.student.parameters())
    smaller = "--network light, " if parameters > _MANY_PARAMETERS else ""
    of_an_hour = max(1, round(steps * _HOUR_S / seconds))
    log.warning(
        "%d steps of %s take about %d hours on this CPU; use a GPU, %sor fewer steps: "
        "--steps %d takes about an hour",
        steps,
        setup.recipe.model.backbone,
        round(seconds / _HOUR_S),
        smaller,
        of_an_hour,
    )


def _step_seconds(setup: TrainingSetup) -> float:
    """Return about how long a step takes on this CPU: that of an image of half the crop's sides."""
    student, shapes = setup.objective.student, setup.batches.shapes()
    batches = [shape for name, shape in shapes.items() if name.endswith("_images")]
    images = sum(count for count, *_ in batches)
    sides = [max(side // 2, student.output_stride) for side in batches[-1][2:]]
    seconds = []
    with torch.no_grad(), evaluation_mode(student):
        for _ in range(2):  # the first pass also prepares kernels
            begin = time.perf_counter()
            student(torch.zeros(1, 3, *sides))
            seconds.append(time.perf_counter() - begin)
    crop = math.prod(batches[-1][2:]) / math.prod(sides)
    passes = images * _FORWARD_PASSES + batches[-1][0] * _more_passes(setup.objective)
    return min(seconds) * crop * passes


def _more_passes(objective: nn.Module) -> float:
    """Return the forward passes that an image of the target takes in self-training besides."""
    if not isinstance(objective, SelfTraining):
        return 0
    spec = objective.spec
    of_teacher = objective.label_scale**2 * (1 + spec.teacher.mirror)
    return of_teacher - 1 + 3 * (spec.masking is not None)


def _warn_of_aspect_ratio(
    name: str, key: str, resize: Resize | None, samples: Sequence[Sample]
) -> None:
    """Warn if the recipe's resize changes the aspect ratio of the images."""
    if resize is None or isinstance(resize, ShortSide):
        return
    distorted = [s for s in samples if distorts((s.height, s.width), resize)]
    if distorted:
        log.warning(
            f"{len(distorted)} of {len(samples)} {name} images have another aspect ratio than "
            f"{key}={recipe_size(resize)} (the first is {distorted[0].width}x"
            f"{distorted[0].height}) and are distorted; "
            f"{shlex.quote(f'{key}={recipe_size(ShortSide(min(resize)))}')} keeps their aspect "
            "ratio"
        )


def _warn_of_large_crop(
    domain: str, spec: Domain, resize: Resize | None, samples: Sequence[Sample]
) -> None:
    """Warn if images are smaller than the crop that is taken of them, however far enlarged."""
    crop, factor = spec.crop, spec.scale[1]
    sides = [resized((sample.height, sample.width), resize) for sample in samples]
    sizes = [(round(height * factor), round(width * factor)) for height, width in sides]
    smaller = [size for size in sizes if size[0] < crop[0] or size[1] < crop[1]]
    if not smaller:
        return
    height, width = smaller[0]
    empty = 1 - min(height, crop[0]) * min(width, crop[1]) / math.prod(crop)
    effect = (
        f"{percent(empty)} % of its crop is padding" if domain == "source" else "it is enlarged"
    )
    log.warning(
        f"{len(smaller)} of {len(samples)} {domain} images are smaller than "
        f"{domain}.crop={list(crop)} after {domain}.resize (the first is {width}x{height}: "
        f"{effect}); choose a crop of at most "
        f"'{domain}.crop=[{min(height, crop[0])}, {min(width, crop[1])}]', or a larger "
        f"{domain}.resize"
    )


def _class_rows(
    source: PreparedDataset,
    samples: Sequence[Sample],
    target: PreparedDataset | None,
    validation: PreparedDataset | None,
) -> dict[str, str]:
    """Return which classes both sides share, and which only one side has.

    The other side is the images to score or, if nothing is scored, the target. Pixel counts of the
    samples show which classes no label has.
    """
    assert source.classes is not None
    source_names = source.classes.names
    rows = {}
    totals = class_totals(samples, len(source_names))
    if untrained := [name for name, total in zip(source_names, totals, strict=True) if not total]:
        rows["unseen"] = (
            f"no training pixels for: {', '.join(untrained)} (no label of {source.name} has them, "
            "so the network cannot learn them)"
        )
    other = validation or target
    if other is None or other.classes is None or set(source_names) == set(other.classes.names):
        return rows
    other_names = other.classes.names
    shared = set(source_names) & set(other_names)
    if validation is not None and not shared:
        raise DataError(
            f"{other.name}: its classes ({', '.join(other_names)}) have no name in common with "
            f"those of {source.name} ({', '.join(source_names)}), so nothing can be scored; use "
            "the same names in a dataset YAML, or set validation.data=null"
        )
    parts = [f"{len(shared)} names in common"]
    for side, names, remark in (
        (source, source_names, "trained, never scored"),
        (other, other_names, "the network cannot predict them"),
    ):
        if exclusive := [name for name in names if name not in shared]:
            parts.append(f"only in {side.name}: {', '.join(exclusive)} ({remark})")
    return {**rows, "classes": "; ".join(parts)}


def print_memory_plan(recipe: Recipe, first: TrainingSetup, data: RunData) -> None:
    """Print to stderr how much memory each stage of training needs, and the checkpoint size."""
    if world_size() > 1:
        advice = "use --dry-run in one process, with the same result"
        _print_rows([("memory", f"not estimated with several processes; {advice}")])
        return
    rows: list[tuple[str, str]] = []
    for stage, setup in _stage_setups(recipe, first, data):
        try:
            memory = estimate_footprint(setup)
        except RuntimeError as error:
            # the size of an operation's result depends on its values
            log.warning("memory cannot be estimated: %s", str(error).partition("\n")[0])
            return
        rows.append(("memory", _format_memory(memory, stage.name, setup.device)))
        if memory.total() > _memory_of_machine(setup.device):
            log.warning(
                "this needs more memory than %s has; use smaller crops or batches, --fit, or "
                "machine.micro_batches=2",
                "this machine" if setup.device.type == "cpu" else str(setup.device),
            )
    excluded = "excludes kernel workspaces, fragmentation and device context"
    rows.append(("", f"estimated from tensor sizes; {excluded}"))
    size = _format_bytes(memory.checkpoint_size())
    rows.append(("saved", f"checkpoint size {size}; the same in host memory"))
    _print_rows(rows)


def _format_memory(memory: Footprint, stage: str | None, device: torch.device) -> str:
    """Return the memory that training needs as text: the sum and its parts."""
    labels = {
        "memories": "banks and prototypes",
        "moments": "optimiser",
        "guard": "rollback copy",
        "base": "base weights",
    }
    parts = ", ".join(
        f"{labels.get(name, name)} {_format_bytes(size)}"
        for name, size in vars(memory).items()
        if size >= 2**17
    )
    capacity = f" of {_format_bytes(_memory_of_machine(device))}"
    prefix = "" if stage is None else f"stage {stage}: "
    return f"{prefix}{_format_bytes(memory.total())}{capacity} on {device}: {parts}"


def _stage_setups(
    recipe: Recipe, first: TrainingSetup, data: RunData
) -> Iterator[tuple[Stage, TrainingSetup]]:
    """Yield each stage with its training setup."""
    for stage in stages_of(recipe):
        if stage.index == 0:
            yield stage, first
            continue
        labels = None if stage.pseudo_labels is None else Path("pseudo_labels")
        setup = estimated_setup(recipe, data.source, data.target, stage=stage, pseudo_labels=labels)
        yield stage, setup
        del setup
        gc.collect()


def _format_bytes(count: int) -> str:
    """Return bytes as GiB, or as MiB below 0.5 GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def _memory_of_machine(device: torch.device) -> int:
    """Return the bytes of memory of a device, or of this host."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def print_time_plan(setup: TrainingSetup) -> None:
    """Time a few steps of the first stage and print to stderr what the run takes.

    The setup must not be trained afterwards: its statistics have seen images of noise.
    """
    recipe = setup.recipe
    steps, warm_up = recipe.steps, warm_up_steps(recipe.method, recipe.steps)
    last = len(setup.batches) - 1
    seconds = in_warm_up = _timed_seconds(setup, last)
    text = f"{seconds:.3g} s a step on {setup.device}"
    if 0 < warm_up <= last:
        in_warm_up = _timed_seconds(setup, 0)
        text += f" ({in_warm_up:.3g} s in the warm-up)"
    duration = format_duration(seconds * (steps - warm_up) + in_warm_up * warm_up)
    text += f", {duration} for {steps:,} steps"
    _print_rows([("time", f"{text}; timed without reading images, scores and checkpoints")])


def _timed_seconds(setup: TrainingSetup, step: int) -> float:
    """Return the seconds of forward and backward pass of a step, on images of noise."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Any] = {
        name: torch.zeros(size, dtype=torch.uint8)
        if name.endswith("_labels")
        else torch.randint(256, size, dtype=torch.uint8, generator=generator)
        for name, size in setup.batches.shapes().items()
    }
    seconds = []
    batch = Batch(step=step, progress=1.0, seed=0, **{"target_images": None, **tensors})
    for _ in range(1 + _TIMED_STEPS):  # the first prepares kernels
        begin = time.perf_counter()
        compute_gradients(setup, batch.to(setup.device))
        if setup.device.type == "cuda":
            torch.cuda.synchronize(setup.device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def scored_data(validation: PreparedDataset, recipe: Recipe) -> PreparedDataset | None:
    """Return the data to score if it has labels; None for a target that is the source without any.

    Raises:
        DataError: The split does not exist.
    """
    name, split = recipe.validation.data, recipe.validation.split
    labelled = any(sample.label is not None for sample in validation.splits.get(split, ()))
    if not labelled and recipe.source.data == recipe.target.data == name:
        log.warning("%s has no labelled split '%s', so the run is not scored", name, split)
        return None
    validation.split(split)
    return validation


def planned_data(recipe: Recipe, root: Path) -> tuple[Recipe, RunData]:
    """Return the data of a run for its plan, and its recipe as it would be trained.

    Nothing is written. Built-in data sets that are not prepared have their published sizes.
    """

    def opened(name: str) -> PreparedDataset:
        return planned_dataset(name, root=root) or open_dataset(name, root=root)

    sources = [opened(name) for name in recipe.source.sets]
    target = opened(recipe.target.data) if adapts(recipe) else None
    data, validation = recipe.validation.data, None
    if data is not None:
        validation = scored_data(opened(data), recipe)
        if validation is None:
            recipe = replace(recipe, validation=replace(recipe.validation, data=None))
    return recipe, RunData(join_datasets(sources), target, validation)
