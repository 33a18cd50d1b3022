"""`udaseg prepare --verify`: list the files of prepared datasets that have changed."""

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
    """Compare prepared datasets with their manifests, and list changed and missing files.

    Args:
        names: Names of prepared or built-in datasets, or dataset YAMLs.
        root: Folder of raw data and of prepared datasets.
        workers: Reader threads; -1 chooses.

    Raises:
        DataError: A file has changed, or a dataset is not prepared; all of them are listed.
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
            duration = f"({report.seconds:.1f} s)"
            console.print(Text(f"{report.name}: all {report.files:,} files unchanged {duration}"))
    if faults:
        raise DataError("\n\n".join(faults))


def _told(report: VerifyReport, name: str) -> str:
    lines = [
        f"{report.name}: {len(report.changed)} of {report.files:,} files changed and "
        f"{len(report.missing)} are missing:",
        *("  " + line.replace("\n", "\\n") for line in report.changed[:_SHOWN]),
        *("  " + path.replace("\n", "\\n") + ": is missing" for path in report.missing[:_SHOWN]),
    ]
    remaining = sum(max(0, len(paths) - _SHOWN) for paths in (report.changed, report.missing))
    lines += [f"  and {remaining} more"] if remaining else []
    # a file can change while its size and time stay, and prepare compares only these
    lines.append(
        f"  restore them; or, to accept all changes, delete {report.folder} and run "
        f"`udaseg prepare {name}`"
    )
    return "\n".join(lines)
