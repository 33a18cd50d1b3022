"""`udaseg demo`: compare source-only training with RCCR on the built-in toyland."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

import udaseg
from udaseg.display.console import open_console, safe_text
from udaseg.errors import UsageError
from udaseg.files import write_json
from udaseg.text import percent

log = logging.getLogger(__name__)


def demo(*, seed: int, out: Path, root: Path) -> None:
    """Prepare toyland, train on its source, adapt to its target, and compare both on the target.

    Args:
        seed: Seed of both trainings; toyland is always the same.
        out: Folder for runs, summary and picture; an earlier demo there is replaced.
        root: Folder of the prepared data.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "source_only" / "recipe.yaml").is_file():
        raise UsageError(f"{out}: is not empty and not an earlier demo; choose another --out")
    started = time.monotonic()
    if (root / "toyland").is_dir():
        # any existing toyland is used, even one of another size or seed
        log.info("using the toyland in %s", root / "toyland")
    else:
        udaseg.prepare("toyland", root=root)
    overrides = {"machine.checkpoint_every": 0}
    options = udaseg.TrainOptions(
        root=root, overwrite=True, command=["udaseg", "demo", "--seed", str(seed)]
    )
    runs: dict[str, udaseg.Run] = {}
    for method, train in (("source_only", udaseg.train), ("rccr", udaseg.adapt)):
        runs[method] = train(
            f"toyland/{method}", seed=seed, overrides=overrides, out=out / method, options=options
        )
    scores = {method: run.scores["toyland-target-val"] for method, run in runs.items()}
    picture, summary = out / "side_by_side.png", out / "summary.json"
    shown = udaseg.GridOptions(titles=("source only", "RCCR"), root=root)
    udaseg.grid(list(runs.values()), out=picture, options=shown)
    seconds = time.monotonic() - started
    write_json(
        summary,
        {
            **{name: {"miou": each.miou, "iou": dict(each.iou)} for name, each in scores.items()},
            "seed": seed,
            "steps": runs["rccr"].recipe.steps,
            "seconds": round(seconds, 1),
        },
    )
    console = open_console()
    console.print(comparison_table(scores))
    console.print(safe_text(_conclusion(scores, picture, summary, seconds)))


def comparison_table(columns: Mapping[str, udaseg.Scores]) -> Table:
    """Return a table of class IoUs in percent, one column per evaluation of the same classes."""
    table = Table("IoU %")
    for title in columns:
        table.add_column(safe_text(title), justify="right")
    first, *_ = columns.values()
    for name in first.iou:
        table.add_row(safe_text(name), *(percent(each.iou[name]) for each in columns.values()))
    table.add_section()
    for name in first.means:
        means = (percent(each.means[name]) for each in columns.values())
        table.add_row(*(safe_text(text, "bold") for text in (name, *means)))
    return table


def _conclusion(
    scores: Mapping[str, udaseg.Scores], picture: Path, summary: Path, seconds: float
) -> str:
    """Return what adaptation gained, the files of the demo, and what to run next."""
    before, after = 100 * scores["source_only"].miou, 100 * scores["rccr"].miou
    return (
        f"On the unlabelled target, adaptation moved mIoU from {before:.1f} to {after:.1f} "
        f"({after - before:+.1f} points) in {seconds:.0f} s.\n"
        f"Picture: {picture} (image | source only | adapted | truth)\n"
        f"Summary: {summary}\n"
        f"Next: udaseg adapt --source toyland --target FOLDER_OF_IMAGES, "
        "then udaseg predict FOLDER_OF_IMAGES"
    )
