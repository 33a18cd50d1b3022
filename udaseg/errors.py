"""Every error a user can meet, on one page.

```
UdasegError             1  unexpected
├── UsageError          2  the command line
├── RecipeError         2  a recipe, or an override of one
├── DataError           3  images, labels, dataset declarations
├── CheckpointError     3  checkpoints and weights
├── PartialError        4  some inputs failed, the others were written
├── EnvironmentFault    5  cannot write, disk full, no such device, a package missing
├── DivergedError       6  training stopped; the last good checkpoint stands
├── GateError           7  a score below `--fail-under`
├── RankFailed      varies  one of several processes failed, and all end
└── Interrupted   130, 143  SIGINT or SIGTERM, after a resumable checkpoint was written
```

A message says where, what, and what to do next, in that order, and needs no traceback.
"""

from typing import ClassVar


class UdasegError(Exception):
    """Base of every error with a message for the user; `exit_code` is the process's."""

    exit_code: ClassVar[int] = 1


class UsageError(UdasegError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class RecipeError(UdasegError):
    """A recipe or an override is wrong; the message lists every problem, one a line."""

    exit_code = 2


class DataError(UdasegError):
    """Images, labels or a dataset declaration are missing, damaged or contradictory."""

    exit_code = 3


class CheckpointError(UdasegError):
    """A checkpoint or weights file is missing, damaged, unsafe, or of another model."""

    exit_code = 3


class PartialError(UdasegError):
    """Some inputs failed and are named; all others were written."""

    exit_code = 4


class EnvironmentFault(UdasegError):
    """The machine cannot do it: not writable, disk full, no such device, a package missing."""

    exit_code = 5


class DivergedError(UdasegError):
    """Training diverged or collapsed and was stopped; the last good checkpoint stands."""

    exit_code = 6


class GateError(UdasegError):
    """A score is below the gate the user set."""

    exit_code = 7


class RankFailed(UdasegError):
    """One of several processes failed, so this one ends too.

    Args:
        message: Why it failed.
        exit_code: Its exit code.
        told: Another process tells it; this one is to be silent.
    """

    def __init__(self, message: str, exit_code: int, *, told: bool) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # that of the process that failed
        self.told = told


class Interrupted(UdasegError):
    """A signal stopped the work; what was done is saved and can be resumed.

    Args:
        message: What was saved and how to go on.
        signal_number: SIGINT or SIGTERM; the exit code is 128 more.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # type: ignore[misc]  # one code for each signal
