"""`udaseg predict`: masks for the images and videos of files, folders and patterns."""

import csv
import io
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from udaseg import __version__, build
from udaseg.commands.inputs import find_images, plan_masks
from udaseg.commands.label_files import label_ids
from udaseg.commands.prediction_images import Outcome, predict_images
from udaseg.commands.prediction_look import Looker, looker
from udaseg.commands.prediction_paths import (
    ALSO,
    named_faults,
    newest_finished_run,
    others_there,
    refuse_conflicts,
    refuse_existing,
    refuse_other_network,
    remove_masks,
    shared,
)
from udaseg.commands.prediction_videos import predict_videos
from udaseg.commands.scoring import trained_size
from udaseg.data import IGNORE, ClassSpace
from udaseg.engine import StopSignal
from udaseg.errors import DataError, Interrupted, PartialError
from udaseg.recipe import printable
from udaseg.reporting import percent, write_json_atomic, write_text_atomic

log = logging.getLogger(__name__)

_FAILURES = "failures.csv"
_FACTS = "prediction.json"
_SHARES_SHOWN = 5


def predict(
    *,
    inputs: Sequence[str],
    checkpoint: Path | None,
    out: Path,
    save: Sequence[str],
    weights: str,
    device: str,
    overwrite: bool,
    resume: bool,
    flip: bool,
    window: tuple[int, int] | None,
    video: str = "mp4",
    abstain: float | None = None,
    calibrated: bool = True,
    batch: int | None = None,
) -> None:
    """Write masks of all images and videos that `inputs` name; one that is bad stops none.

    Masks have the size and orientation of the stored image, those of a video of its frames as
    they are shown. The network sees everything upright, at the scale it was trained at.

    Args:
        inputs: Files, folders in any nesting, patterns.
        checkpoint: A checkpoint or run; None takes the newest finished run below `runs/`.
        out: Folder of the masks, `<out>/<kind>/<path>.png`.
        save: Kinds: `color`, `ids`, `overlay`, `confidence`, `logits`.
        weights: `student` or `teacher`.
        device: Where to compute.
        overwrite: Make masks that exist anew; they are removed before the first is written.
        resume: Keep masks that exist and are whole, made by the same network in the same way.
        flip: Average with the mirrored image.
        window: Sliding window (height, width) over the network's input.
        video: What `color` and `overlay` of a video become: `mp4`, `webm`, `avi` or `frames`.
        abstain: Pixels with less confidence become ignore; None keeps all.
        calibrated: Take the temperature that `udaseg calibrate` found, where there is one.
        batch: Images of one size to look at together; None chooses.

    Raises:
        UsageError: Masks exist, or would touch the inputs; nothing is written.
        DataError: No input is an image that can be read.
        PartialError: Some inputs failed; `failures.csv` names them, all others are written.
        EnvironmentFault: A mask cannot be written; those before it are whole.
        Interrupted: SIGINT or SIGTERM came; the masks of the images before are whole.
    """
    jobs = plan_masks(find_images(inputs), out, save, video=video)
    refuse_conflicts(jobs, out)
    if not (overwrite or resume):
        refuse_existing(jobs, out)
    run = checkpoint if checkpoint is not None else newest_finished_run(Path("runs"))
    loaded = build.load_run(run, weights=weights, device=device)
    if "label-ids" in save:
        label_ids(loaded.classes)  # refuses classes that have none
    log.info("%s, step %d, %s", printable(str(loaded.checkpoint)), loaded.step, weights)
    looking = looker(
        *(loaded, save),
        weights=weights,
        window=window,
        flip=flip,
        abstain=abstain,
        calibrated=calibrated,
        batch=batch,
    )
    _say_confidence(looking, calibrated=calibrated)
    facts = {"weights": weights, **looking.facts()}
    if resume:
        refuse_other_network(out / _FACTS, facts)
        also = []
    else:
        also = others_there(out / _FACTS, facts, jobs)
    outcome = Outcome()
    with named_faults(out), StopSignal() as stop, shared(out, jobs):
        if overwrite:
            remove_masks(jobs)
        write_json_atomic(
            out / _FACTS, {**facts, **_more_facts(looking), **({ALSO: also} if also else {})}
        )
        images = [job for job in jobs if job.record is None]
        videos = [job for job in jobs if job.record is not None]
        try:
            if images:
                predict_images(images, looking, outcome, stop, resume=resume)
            predict_videos(videos, looking, outcome, stop, out, resume=resume)
        finally:  # also those before a fault of the machine
            _write_failures(out / _FAILURES, outcome.failures)
    if stop.number is not None and outcome.seen < len(jobs):
        instead = " instead of --overwrite" if overwrite else ""
        what = "inputs" if videos else "images"
        raise Interrupted(
            f"stopped after {outcome.seen} of {len(jobs)} {what}, whose masks are whole; "
            f"the same command with --resume{instead} goes on",
            stop.number,
        )
    _finish(out, save, outcome, loaded.classes, images=len(images), videos=len(videos))


def _say_confidence(looking: Looker, *, calibrated: bool) -> None:
    """Say what the confidence is worth, where any is asked for."""
    if "confidence" not in looking.kinds and looking.abstain is None:
        return
    if looking.temperature is None:
        why = "--uncalibrated" if not calibrated else "`udaseg calibrate` was not run for it"
        log.info("confidence as the network gives it: %s", why)
        return
    log.info("confidence with the run's temperature %.3f", looking.temperature)
    if looking.flip or looking.window is not None:
        log.warning("the temperature was fitted without flip and window; with them it is a guess")


def _more_facts(looking: Looker) -> dict[str, Any]:
    """Return what else a reader of the masks may want to know."""
    size = trained_size(looking.loaded.recipe)
    return {
        "ignore": IGNORE,
        "save": list(looking.kinds),
        "network_input": None if size is None else list(size),
        "batch": looking.batch,
        "udaseg": __version__,
    }


def _write_failures(table: Path, failures: Sequence[tuple[Path, str]]) -> None:
    """Name the failures in a file; without any there is none."""
    if not failures:
        table.unlink(missing_ok=True)
        return
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(["image", "reason"])
    rows.writerows((_text(str(image)), _text(reason)) for image, reason in failures)
    write_text_atomic(table, buffer.getvalue())


def _finish(
    out: Path,
    save: Sequence[str],
    outcome: Outcome,
    classes: ClassSpace,
    *,
    images: int,
    videos: int,
) -> None:
    """Say on stdout where the masks are and which classes fill them.

    Raises:
        DataError: Everything failed.
        PartialError: Something failed.
    """
    failed, total = len(outcome.failures), images + videos
    what = "inputs" if videos else "images"
    shown = printable(str(out / _FAILURES))
    if failed == total:
        raise DataError(f"none of {total} {what} could be masked; {shown} says why of each")
    written = total - outcome.kept - failed
    done = [f"{written - outcome.videos} images masked"] if images else []
    if outcome.videos:
        done.append(f"{outcome.videos} videos of {outcome.frames} frames masked")
    if outcome.kept:
        done.append(f"{outcome.kept} kept from before")
    folders = ", ".join(printable(shlex.quote(str(out / kind))) for kind in save)
    screen = Console(highlight=False, soft_wrap=True)
    screen.print(Text(f"{', '.join(done)}: {folders}"))
    if written:
        screen.print(Text(f"pixels: {_shares(outcome.pixels, classes)}"))
    if failed:
        raise PartialError(
            f"{failed} of {total} {what} failed, the others are done; {shown} says why"
        )


def _shares(pixels: NDArray[np.int64], classes: ClassSpace) -> str:
    """Return the largest classes with their share of the pixels, and the share of none."""
    counts = pixels[: len(classes)]
    largest = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    listed = [
        f"{printable(classes.names[number])} {percent(counts[number] / pixels.sum())} %"
        for number in largest[:_SHARES_SHOWN]
    ]
    others = len(largest) - len(listed)
    if others:
        listed.append(f"{others} more classes")
    if pixels[IGNORE]:
        listed.append(f"abstained {percent(pixels[IGNORE] / pixels.sum())} %")
    return ", ".join(listed)


def _text(name: str) -> str:
    """Return a name that UTF-8 can write, whatever bytes the file system holds."""
    return printable(name.encode("utf-8", "backslashreplace").decode("utf-8"))
