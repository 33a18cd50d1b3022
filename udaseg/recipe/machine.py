"""The `machine` section of a recipe: speed, memory, logging and checkpoints."""

from dataclasses import dataclass
from typing import Literal

from udaseg.recipe.method_checks import Found, require


@dataclass(frozen=True)
class Machine:
    """Settings that do not change the numbers, except for rounding.

    `precision` and `micro_batches` change them more than by rounding.

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        precision: fp32 or bf16 (autocast; losses stay fp32).
        workers: Loader processes; -1 chooses automatically.
        log_every: Steps between metric log lines.
        checkpoint_every: Steps between checkpoints; 0 writes only the last.
        keep_checkpoints: Number of newest checkpoints to keep, at least 2.
        validate_every: Steps between validations; 0 validates only at the end.
        micro_batches: Number of micro-batches of a step, to save memory; batch norm normalises
            each by itself. `--fit` sets it.
        max_bad_steps: A step that is not finite is skipped; this many in a row end the run.
        on_bad_sample: For an image that cannot be read: `fail` stops with its name; `skip` uses a
            substitute, the same one in every run and after every resume.
        worker_timeout: Seconds after which a loader process that delivers no batch is replaced; 0
            waits without limit.
        stop_on_collapse: End the run, instead of a warning, when the teacher's labels collapse.
        activation_checkpointing: Keep only the inputs of the network's blocks for the backward
            pass and recompute the other activations: less memory, the same numbers.
        channels_last: Memory layout in which convolutions are fast.
        compile: Compile the networks with `torch.compile`; starts slowly, and losses differ by
            rounding.
        deterministic: Use deterministic kernels where they exist.
        preview_every: Steps between preview pictures of the predictions, at most 20 per run; 0 for
            none.
        tensorboard: `auto` logs to TensorBoard if it is installed, `require` fails if it is not,
            `never` does not log.
        keep_best: Also keep the best checkpoint by this criterion of `udaseg select`, computed on
            unlabelled target images at each checkpoint. Null keeps only the newest.
    """

    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: int = -1
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    validate_every: int = 0
    micro_batches: int = 1
    max_bad_steps: int = 5
    on_bad_sample: Literal["fail", "skip"] = "fail"
    worker_timeout: int = 300
    stop_on_collapse: bool = False
    activation_checkpointing: bool = False
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    preview_every: int = 1000
    tensorboard: Literal["auto", "require", "never"] = "auto"
    keep_best: Literal["entropy", "infomax", "snd", "teacher", "flip", "source", "drift"] | None = (
        None
    )


def machine_problems(problems: Found, machine: Machine) -> None:
    """Append the values of `machine` that are out of range, independent of other sections."""
    require(problems, "machine.workers", machine.workers >= -1, "at least -1", machine.workers)
    require(problems, "machine.log_every", machine.log_every >= 1, "at least 1", machine.log_every)
    require(
        problems,
        "machine.keep_checkpoints",
        machine.keep_checkpoints >= 2,
        "at least 2",
        machine.keep_checkpoints,
    )
    max_bad_steps = machine.max_bad_steps
    require(problems, "machine.max_bad_steps", max_bad_steps >= 1, "at least 1", max_bad_steps)
    if machine.compile:
        compatible = not machine.activation_checkpointing
        must = "false with machine.activation_checkpointing: enable only one of them"
        require(problems, "machine.compile", compatible, must, "true")
    for name in ("checkpoint_every", "validate_every", "worker_timeout", "preview_every"):
        value = getattr(machine, name)
        require(problems, f"machine.{name}", value >= 0, "at least 0", value)
