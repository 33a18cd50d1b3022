"""All errors that a user can see, with their exit codes.

```
UdasegError             1  unexpected
├── UsageError          2  the command line
├── RecipeError         2  a recipe, or an override of one
├── DataError           3  images, labels, dataset declarations
│   └── DataChanged     3  files that changed under a run
├── CheckpointError     3  checkpoints and weights
├── PartialError        4  some inputs failed, the others were written
├── EnvironmentFault    5  cannot write, disk full, unknown device, missing package
├── DivergedError       6  training stopped; the last good checkpoint is kept
├── GateError           7  a score is below `--fail-under`
├── RankFailed      varies  one of several processes failed, so all end
└── Interrupted   128 + N   signal 1, 2 or 15 (SIGHUP, SIGINT, SIGTERM), after work was saved
```

A message states where, what, and what to do next, in that order, and needs no traceback.
"""

from pickle import UnpicklingError
from typing import ClassVar

UNREADABLE_TENSORS = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    UnpicklingError,
    AttributeError,
    TypeError,
    AssertionError,
)
"""What `torch.load` raises for a file that is damaged or something else."""


def why_unreadable(error: Exception) -> str:
    """Return why `torch.load` refused a file, without torch's advice to trust the file."""
    if isinstance(error, UnpicklingError):
        return "it holds other things than tensors and plain values, which are not opened"
    if isinstance(error, EOFError | LookupError):  # their texts are empty, or a byte
        return "it is empty, damaged, or was not written by torch.save"
    return str(error).partition("\n")[0]


class UdasegError(Exception):
    """Base of every error with a message for the user; `exit_code` is that of the process."""

    exit_code: ClassVar[int] = 1


class UsageError(UdasegError):
    """The command line requests something that is not possible."""

    exit_code = 2


class RecipeError(UdasegError):
    """A recipe or an override is wrong; the message lists all problems, one per line."""

    exit_code = 2


class DataError(UdasegError):
    """Images, labels or a dataset declaration are missing, damaged or contradictory."""

    exit_code = 3


class DataChanged(DataError):
    """A file is not the one that the run started with, so no image may take its place."""


class CheckpointError(UdasegError):
    """A checkpoint or weights file is missing, damaged, unsafe, or for another model."""

    exit_code = 3


class NotFiniteError(CheckpointError):
    """Numbers of a network are NaN or infinite, so nothing that it says can be right.

    Args:
        network: The checkpoint, or what else names the network.
        what: Its `weights` or its `outputs`.
    """

    def __init__(self, network: object, what: str) -> None:
        super().__init__(
            f"{network}: its {what} are NaN or infinite, because its training diverged; use an "
            "earlier checkpoint, or train again with a lower optimizer.lr"
        )


class PartialError(UdasegError):
    """Some inputs failed, and the message names them; the outputs of all others were written."""

    exit_code = 4


class EnvironmentFault(UdasegError):
    """The machine prevents it: not writable, disk full, unknown device, missing package."""

    exit_code = 5


class DivergedError(UdasegError):
    """Training diverged or collapsed and was stopped; the last good checkpoint is kept."""

    exit_code = 6


class GateError(UdasegError):
    """A score is below the limit set by the user."""

    exit_code = 7


class RankFailed(UdasegError):
    """One of several processes failed, so this one ends too.

    Args:
        message: Why the process failed.
        exit_code: Exit code of the failed process.
        reported_elsewhere: Another process reports the error; this one stays silent.
    """

    def __init__(self, message: str, exit_code: int, *, reported_elsewhere: bool) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # the code of the failed process
        self.reported_elsewhere = reported_elsewhere


class Interrupted(UdasegError):
    """A signal stopped the command; finished work is saved, and the command can be resumed.

    Args:
        message: What was saved and how to resume.
        signal_number: SIGHUP, SIGINT or SIGTERM; the exit code is 128 + this number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # type: ignore[misc]  # each signal has its own code
