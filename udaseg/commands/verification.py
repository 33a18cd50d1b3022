"""`udaseg prepare --verify`: whether all files of prepared sets are as they were."""

import logging
from pathlib import Path

from rich.console import Console
from rich.text import Text

from udaseg.commands.preparation import Counted, every_half
from udaseg.data import VerifyReport, verify_dataset
from udaseg.errors import DataError
from udaseg.recipe import printable

log = logging.getLogger(__name__)

_SHOWN = 10


def verify(*, names: list[str], root: Path, workers: int) -> None:
    """Compare prepared sets with their manifests, and say which files changed or are gone.

    Args:
        names: Names of prepared or built-in sets, or dataset YAMLs.
        root: Where data lie and prepared sets are.
        workers: Threads that read; -1 chooses.

    Raises:
        DataError: A file is not as it was, or a set is not prepared; all such sets are named.
    """
    faults = []
    console = Console(highlight=False, soft_wrap=True)
    for name in every_half(names):
        try:
            with Counted(f"verify {printable(Path(name).stem)}", "files") as on_progress:
                report = verify_dataset(name, root=root, workers=workers, on_progress=on_progress)
        except DataError as error:
            faults.append(str(error))
            continue
        if report.changed or report.missing:
            faults.append(_told(report, name))
        else:
            took = f"({report.seconds:.1f} s)"
            console.print(Text(f"{report.name}: all {report.files:,} files as they were {took}"))
    if faults:
        raise DataError("\n\n".join(faults))


def _told(report: VerifyReport, name: str) -> str:
    lines = [
        f"{report.name}: {len(report.changed)} of {report.files:,} files changed and "
        f"{len(report.missing)} are gone:",
        *("  " + line.replace("\n", "\\n") for line in report.changed[:_SHOWN]),
        *("  " + path.replace("\n", "\\n") + ": is gone" for path in report.missing[:_SHOWN]),
    ]
    more = sum(max(0, len(found) - _SHOWN) for found in (report.changed, report.missing))
    lines += [f"  and {more} more"] if more else []
    # a file can change without its size and time, which is all that prepare looks at
    lines.append(
        f"  restore them; or, to take all as it is now, delete {report.folder} and run "
        f"`udaseg prepare {name}`"
    )
    return "\n".join(lines)
