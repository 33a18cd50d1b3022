"""What belongs to the machine that a recipe runs on: speed, memory, and what is written down."""

from dataclasses import dataclass
from typing import Literal

from udaseg.recipe.method_checks import Found, require


@dataclass(frozen=True)
class Machine:
    """What changes speed, not numbers (up to rounding; `precision` and `micro_batches` do more).

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        precision: fp32 or bf16 (autocast; losses stay fp32).
        workers: Loader processes; -1 chooses by the machine.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints; 0 writes only the last.
        keep_checkpoints: Newest checkpoints to keep, at least 2.
        validate_every: Steps between two scores on the validation split; 0 scores at the end.
        micro_batches: Parts that a step's images go through the network in, to save memory; each
            part is normalised by itself. `--fit` sets it.
        max_bad_steps: A step that is not finite is dropped; so many in a row end the run.
        on_bad_sample: An image that cannot be read: `fail` names it; `skip` takes another in its
            place, the same one in every run and after every resume.
        worker_timeout: Seconds after which a loader process that gives no batch is replaced; 0
            waits for ever.
        stop_on_collapse: End the run when the teacher's labels collapse, instead of a warning.
        activation_checkpointing: Keep only the inputs of the network's blocks for the backward
            pass and make the rest again there: less memory, the same numbers.
        channels_last: The layout that convolutions are fast in.
        compile: `torch.compile` the networks; slow to start, and losses differ by rounding.
        deterministic: Only kernels that give the same bits each time, where there are any.
        preview_every: Steps between two pictures of what the networks say, at most 20 a run; 0
            draws none.
        tensorboard: `auto` writes for TensorBoard when it is installed, `require` insists, `never`.
        keep_best: Keep the best checkpoint by this criterion of `udaseg select`, too; it looks at
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


def machine_problems(found: Found, machine: Machine) -> None:
    """List what is out of range in `machine`, whatever the rest of the recipe says."""
    require(found, "machine.workers", machine.workers >= -1, "at least -1", machine.workers)
    require(found, "machine.log_every", machine.log_every >= 1, "at least 1", machine.log_every)
    require(
        found,
        "machine.keep_checkpoints",
        machine.keep_checkpoints >= 2,
        "at least 2",
        machine.keep_checkpoints,
    )
    least = machine.max_bad_steps
    require(found, "machine.max_bad_steps", least >= 1, "at least 1", least)
    if machine.compile:
        alone = not machine.activation_checkpointing
        must = "false with machine.activation_checkpointing: give one of them"
        require(found, "machine.compile", alone, must, "true")
    for part in ("checkpoint_every", "validate_every", "worker_timeout", "preview_every"):
        value = getattr(machine, part)
        require(found, f"machine.{part}", value >= 0, "at least 0", value)
