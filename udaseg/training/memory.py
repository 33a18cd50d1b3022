"""Out of memory: the errors it ends in, and the retry in smaller micro-batches."""

import gc
import logging
import math
from dataclasses import replace
from pathlib import Path

import torch

from udaseg.errors import DivergedError, EnvironmentFault
from udaseg.runs.folder import write_recipe
from udaseg.training.setup import TrainingSetup

log = logging.getLogger(__name__)

# the CPU allocator and CUDA libraries have no error class of their own for this
_OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


DEVICE_ERRORS = (RuntimeError, MemoryError)
"""Exceptions that a full or broken device raises."""


class FirstStepOutOfMemory(EnvironmentFault):
    """The first step ran out of memory; nothing was changed."""


class OutOfMemory(DivergedError):
    """Memory ran out after successful steps; the state of `done` steps is intact."""

    def __init__(self, message: str, done: int) -> None:
        super().__init__(message)
        self.done = done


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means out of memory, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in _OUT_OF_MEMORY_TEXTS
    )


def empty_cache() -> None:
    """Free the memory that an interrupted step still held, including the GPU cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_message(device: torch.device) -> str:
    """Return a message with the peak memory use of the device; empty for a CPU."""
    if device.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"peak use {peak:.1f} of {total:.1f} GiB"


def split_further(
    setup: TrainingSetup, folder: Path, message: str, *, fit_given: bool
) -> TrainingSetup:
    """Return the setup with more micro-batches per step in its recipe; `recipe.yaml` is updated.

    Without `--fit`, or if the batch cannot be split further, raise an error with advice.
    """
    recipe, parts = setup.recipe, _next_micro_batches(setup)
    source, target = recipe.batch.source, recipe.batch.target
    if not fit_given or parts is None:
        raise EnvironmentFault(out_of_memory_advice(setup, message, fit_given=fit_given))
    empty_cache()
    log.warning(
        f"a step of {source} + {target} images does not fit in memory ({message}); trying {parts} "
        f"micro-batches of {source // parts} + {target // parts}. Batch norm sees one micro-batch "
        "at a time, so results differ from those without --fit"
    )
    recipe = replace(recipe, machine=replace(recipe.machine, micro_batches=parts))
    write_recipe(folder, recipe)
    return replace(setup, recipe=recipe)


def out_of_memory_advice(setup: TrainingSetup, message: str, *, fit_given: bool) -> str:
    """Return an error message with the sizes that do not fit and the options to change."""
    recipe, machine, batches = setup.recipe, setup.recipe.machine, setup.batches
    # of the current stage, which may have its own crops and batch size
    images = [
        f"{count // machine.micro_batches} {domain} images of {crops.crop[1]}x{crops.crop[0]} px"
        for domain, count, crops in (
            ("source", batches.options.batch_source, batches.source),
            ("target", batches.options.batch_target, batches.target),
        )
        if crops is not None
    ]
    options = []
    if not machine.activation_checkpointing and not machine.compile:
        options.append("machine.activation_checkpointing=true (same results, slightly slower)")
    if not fit_given and (parts := _next_micro_batches(setup)) is not None:
        options.append(f"--fit (the same batch in {parts} or more micro-batches)")
    if recipe.batch.source > 1:
        options.append(f"--batch {recipe.batch.source // 2}")
    stride = recipe.model.output_stride
    # half the pixels, in multiples of the stride
    smaller = [
        max(stride, round(side / math.sqrt(2) / stride) * stride) for side in recipe.source.crop
    ]
    options.append(f"source.crop={smaller} target.crop={smaller} (half the pixels)")
    if setup.device.type == "cuda" and machine.precision == "fp32":
        options.append("--precision bf16")
    return (
        f"out of memory on {setup.device}: {' and '.join(images)} at once ({message}); use "
        + ", or ".join(options)
    )


def _next_micro_batches(setup: TrainingSetup) -> int | None:
    """Return the next larger number of micro-batches that divides every batch, or None."""
    batch = setup.recipe.batch
    divisor = math.gcd(batch.source, batch.target)
    if setup.batches.target is not None:
        divisor = math.gcd(divisor, setup.batches.options.batch_target)
    larger = range(setup.recipe.machine.micro_batches + 1, divisor + 1)
    return next((parts for parts in larger if divisor % parts == 0), None)
