"""`udaseg predict`: a mask for each image of files, folders and patterns."""

import csv
import io
import logging
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from udaseg import build
from udaseg.commands.inputs import Job, find_images, plan_masks
from udaseg.commands.masks import all_whole, as_stored, orientation_of, upright, write_masks
from udaseg.commands.prediction_paths import (
    named_faults,
    newest_finished_run,
    not_an_image,
    refuse_conflicts,
    refuse_existing,
    refuse_other_network,
    remove_masks,
)
from udaseg.commands.scoring import trained_size
from udaseg.data import ClassSpace, image_size, read_image, resize_image
from udaseg.engine import StopSignal
from udaseg.errors import DataError, Interrupted, PartialError
from udaseg.evaluation import label_image, network_size
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress, percent, write_json_atomic, write_text_atomic

log = logging.getLogger(__name__)

_AHEAD = 3
_FAILURES = "failures.csv"
_FACTS = "prediction.json"
_SHARES_SHOWN = 5

_Looked = tuple[NDArray[np.uint8], NDArray[np.float32] | None]


@dataclass(frozen=True)
class _Read:
    """An image that is ready for the network, or what is wrong with it, or neither: done before."""

    job: Job
    image: NDArray[np.uint8] | None = None
    orientation: int = 1
    fault: str | None = None


@dataclass
class _Outcome:
    """What became of the images so far; `pixels` counts the new labels, one number a class."""

    pixels: NDArray[np.int64]
    failures: list[tuple[Path, str]] = field(default_factory=list)
    kept: int = 0
    seen: int = 0


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
) -> None:
    """Write masks of all images that `inputs` name; one that cannot be read stops none.

    Masks have the size and orientation of the stored image. The network sees it upright, at the
    scale it was trained at.

    Args:
        inputs: Files, folders in any nesting, patterns.
        checkpoint: A checkpoint or run; None takes the newest finished run below `runs/`.
        out: Folder of the masks, `<out>/<kind>/<path>.png`.
        save: Kinds: `color`, `ids`, `overlay`, `confidence`.
        weights: `student` or `teacher`.
        device: Where to compute.
        overwrite: Make masks that exist anew; they are removed before the first is written.
        resume: Keep masks that exist and are whole, made by the same network in the same way.
        flip: Average with the mirrored image.
        window: Sliding window (height, width) over the network's input.

    Raises:
        UsageError: Masks exist, or would touch the inputs; nothing is written.
        DataError: No input is an image that can be read.
        PartialError: Some images failed; `failures.csv` names them, all others are written.
        EnvironmentFault: A mask cannot be written; those before it are whole.
        Interrupted: SIGINT or SIGTERM came; the masks of the images before are whole.
    """
    jobs = plan_masks(find_images(inputs), out, save)
    refuse_conflicts(jobs, out)
    if not (overwrite or resume):
        refuse_existing(jobs, out)
    run = checkpoint if checkpoint is not None else newest_finished_run(Path("runs"))
    loaded = build.load_run(run, weights=weights, device=device)
    log.info("%s, step %d, %s", printable(str(loaded.checkpoint)), loaded.step, weights)
    facts = {
        "checkpoint": str(loaded.checkpoint.resolve()),
        "step": loaded.step,
        "weights": weights,
        "flip": flip,
        "window": None if window is None else list(window),
        "classes": build.class_document(loaded.classes),
    }
    if resume:
        refuse_other_network(out / _FACTS, facts)
    outcome = _Outcome(np.zeros(len(loaded.classes), np.int64))
    with named_faults(out), StopSignal() as stop:
        if overwrite:
            remove_masks(jobs)
        write_json_atomic(out / _FACTS, facts)

        def look(image: NDArray[np.uint8], orientation: int) -> _Looked:
            return _look(loaded, image, orientation, window, flip, "confidence" in save)

        _predict_all(jobs, look, loaded.classes, outcome, stop, resume=resume)
        _write_failures(out / _FAILURES, outcome.failures)
    if stop.number is not None and outcome.seen < len(jobs):
        instead = " instead of --overwrite" if overwrite else ""
        raise Interrupted(
            f"stopped after {outcome.seen} of {len(jobs)} images, whose masks are whole; "
            f"the same command with --resume{instead} goes on",
            stop.number,
        )
    _finish(out, save, outcome, loaded.classes, total=len(jobs))


def _predict_all(
    jobs: Sequence[Job],
    look: Callable[[NDArray[np.uint8], int], _Looked],
    classes: ClassSpace,
    outcome: _Outcome,
    stop: StopSignal,
    *,
    resume: bool,
) -> None:
    """Read, look and write side by side, until the end or a signal; `outcome` is filled."""
    with (
        WorkProgress("predict", len(jobs)) as progress,
        ThreadPoolExecutor(2) as readers,
        ThreadPoolExecutor(1) as writer,
    ):
        writing: deque[Future[NDArray[np.int64]]] = deque()
        for ready in _ahead(readers, jobs, resume=resume):
            if ready.fault is not None:
                outcome.failures.append((ready.job.image, ready.fault))
                log.warning("%s", printable(ready.fault))
            elif ready.image is None:
                outcome.kept += 1
            else:
                looked = look(ready.image, ready.orientation)
                writing.append(writer.submit(_write, ready.job, ready.image, looked, classes))
            while len(writing) > _AHEAD:
                outcome.pixels += writing.popleft().result()
            outcome.seen += 1
            progress.advance()
            if stop.number is not None:
                break
        while writing:
            outcome.pixels += writing.popleft().result()


def _write(
    job: Job, image: NDArray[np.uint8], looked: _Looked, classes: ClassSpace
) -> NDArray[np.int64]:
    """Write the masks of one image and return its pixels of each class."""
    write_masks(job.masks, image, *looked, classes)
    return np.bincount(looked[0].ravel(), minlength=len(classes)).astype(np.int64)


def _look(
    loaded: build.LoadedRun,
    stored: NDArray[np.uint8],
    orientation: int,
    window: tuple[int, int] | None,
    flip: bool,
    confidence: bool,
) -> _Looked:
    """Return labels and confidence in the size and orientation of the stored image."""
    image = upright(stored, orientation)
    size = (image.shape[0], image.shape[1])
    labels, sure = label_image(
        loaded.segmenter,
        resize_image(image, network_size(size, trained_size(loaded.recipe))),
        size,
        device=loaded.device,
        window=window,
        flip=flip,
        confidence=confidence,
    )
    return as_stored(labels, orientation), None if sure is None else as_stored(sure, orientation)


def _ahead(pool: ThreadPoolExecutor, jobs: Sequence[Job], *, resume: bool) -> Iterator[_Read]:
    """Yield images in order, a few read ahead; OpenCV decodes outside the interpreter lock."""
    waiting: deque[Future[_Read]] = deque()
    for job in jobs:
        waiting.append(pool.submit(_read, job, resume=resume))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(job: Job, *, resume: bool) -> _Read:
    fault = not_an_image(job.image)
    if fault is not None:
        return _Read(job, fault=fault)
    try:
        if resume and all_whole(job.masks, image_size(job.image)):
            return _Read(job)
        return _Read(job, read_image(job.image), orientation_of(job.image))
    except DataError as error:
        return _Read(job, fault=str(error))


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
    out: Path, save: Sequence[str], outcome: _Outcome, classes: ClassSpace, *, total: int
) -> None:
    """Say on stdout where the masks are and which classes fill them.

    Raises:
        DataError: Everything failed.
        PartialError: Something failed.
    """
    failed = len(outcome.failures)
    shown = printable(str(out / _FAILURES))
    if failed == total:
        raise DataError(f"none of {total} images could be read; {shown} says why of each")
    written = total - outcome.kept - failed
    done = f"{written} images masked" + (
        f", {outcome.kept} kept from before" if outcome.kept else ""
    )
    folders = ", ".join(printable(shlex.quote(str(out / kind))) for kind in save)
    screen = Console(highlight=False, soft_wrap=True)
    screen.print(Text(f"{done}: {folders}"))
    if written:
        screen.print(Text(f"pixels: {_shares(outcome.pixels, classes)}"))
    if failed:
        raise PartialError(
            f"{failed} of {total} images failed, the others are done; {shown} says why"
        )


def _shares(pixels: NDArray[np.int64], classes: ClassSpace) -> str:
    """Return the largest classes with their share of the pixels."""
    largest = [int(number) for number in np.argsort(-pixels, kind="stable") if pixels[number]]
    listed = [
        f"{printable(classes.names[number])} {percent(pixels[number] / pixels.sum())} %"
        for number in largest[:_SHARES_SHOWN]
    ]
    others = len(largest) - len(listed)
    return ", ".join([*listed, f"{others} more classes"] if others else listed)


def _text(name: str) -> str:
    """Return a name that UTF-8 can write, whatever bytes the file system holds."""
    return printable(name.encode("utf-8", "backslashreplace").decode("utf-8"))
