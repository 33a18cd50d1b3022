"""`udaseg demo`: source-only training, AdaBN and RCCR side by side on the built-in toyland."""

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
_SETTINGS = {
    "model.backbone": "efficientnet_lite0",
    "model.weights": "pretrained",  # of a package; the optimizer stays that of the recipe
    "machine.checkpoint_every": 0,
}
_METHODS = {
    "adabn": {},
    # with AdaBN too, so that the two differ in the training alone
    "rccr": {"method.warm_up": 0.5, "method.target_statistics": 200},
}
_TITLES = {"source_only": "source only", "adabn": "source only + AdaBN", "rccr": "RCCR + AdaBN"}


def demo(*, seed: int, out: Path, root: Path) -> None:
    """Prepare toyland, train on its source, adapt to its target, and compare all on the target.

    AdaBN is the same network as source only, with batch-norm statistics of the target: the cheapest
    adaptation, which a method has to beat.

    Args:
        seed: Seed of the trainings; toyland is always the same.
        out: Folder for runs, summary and picture; an earlier demo there is replaced.
        root: Folder of the prepared data.
    """
    earlier = [out / name / "recipe.yaml" for name in _TITLES]
    if out.is_dir() and any(out.iterdir()) and not any(path.is_file() for path in earlier):
        raise UsageError(f"{out}: is not empty and not an earlier demo; choose another --out")
    started = time.monotonic()
    if (root / "toyland").is_dir():
        # any existing toyland is used, even one of another size or seed
        log.info("using the toyland in %s", root / "toyland")
    else:
        udaseg.prepare("toyland", root=root)
    options = udaseg.TrainOptions(
        root=root, overwrite=True, command=["udaseg", "demo", "--seed", str(seed)]
    )
    runs = {
        method: udaseg.adapt(
            f"toyland/{method}",
            seed=seed,
            overrides=_SETTINGS | changes,
            out=out / method,
            options=options,
        )
        for method, changes in _METHODS.items()
    }
    # before AdaBN changed its statistics, the network was trained on the source alone
    source_only = out / "adabn" / "checkpoints" / "warm_up"
    before = udaseg.evaluate(udaseg.load(source_only), options=udaseg.EvaluationOptions(root=root))
    scores = {"source_only": before}
    scores |= {method: run.scores["toyland-target-val"] for method, run in runs.items()}
    picture, summary = out / "side_by_side.png", out / "summary.json"
    shown = udaseg.GridOptions(titles=tuple(_TITLES.values()), root=root)
    udaseg.grid([source_only, *runs.values()], out=picture, options=shown)
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
    console.print(comparison_table({_TITLES[name]: each for name, each in scores.items()}))
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
    """Return what each adaptation gained, the files of the demo, and what to run next."""
    before, plain, after = (100 * scores[name].miou for name in _TITLES)
    return (
        f"On the unlabelled target, mIoU is {before:.1f} without adaptation, {plain:.1f} "
        f"({plain - before:+.1f}) with batch-norm statistics of the target alone (AdaBN), and "
        f"{after:.1f} with RCCR too ({after - plain:+.1f} compared with AdaBN). "
        f"This took {seconds:.0f} s.\n"
        f"Picture: {picture} (image | {' | '.join(_TITLES.values())} | truth)\n"
        f"Summary: {summary}\n"
        f"Next: udaseg adapt --source toyland --target FOLDER_OF_IMAGES, "
        "then udaseg predict FOLDER_OF_IMAGES"
    )
