"""`udaseg predict`: a mask for each image of files, folders and patterns."""

import csv
import io
import json
import logging
import shlex
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from udaseg import build
from udaseg.commands.evaluate import trained_size
from udaseg.commands.inputs import Job, find_images, plan_masks
from udaseg.commands.masks import all_whole, as_stored, orientation_of, upright, write_masks
from udaseg.data import image_size, read_image, resize_image
from udaseg.errors import DataError, PartialError, UsageError
from udaseg.evaluation import label_image, network_size
from udaseg.recipe import printable
from udaseg.reporting import WorkProgress, write_json_atomic, write_text_atomic

log = logging.getLogger(__name__)

_AHEAD = 3
_FAILURES = "failures.csv"
_FACTS = "prediction.json"


@dataclass(frozen=True)
class _Read:
    """An image that is ready for the network, or what is wrong with it, or neither: done before."""

    job: Job
    image: NDArray[np.uint8] | None = None
    orientation: int = 1
    fault: str | None = None


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
        overwrite: Replace masks that exist.
        resume: Keep masks that exist and are whole, made by the same network in the same way.
        flip: Average with the mirrored image.
        window: Sliding window (height, width) over the network's input.

    Raises:
        UsageError: Masks exist, or would touch the inputs; nothing is written.
        DataError: No input is an image that can be read.
        PartialError: Some images failed; `failures.csv` names them, all others are written.
    """
    jobs = plan_masks(find_images(inputs), out, save)
    if not (overwrite or resume):
        _refuse_existing(jobs, out)
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
        _refuse_other_network(out, facts)
    write_json_atomic(out / _FACTS, facts)
    failures: list[tuple[Path, str]] = []
    kept = 0
    with (
        WorkProgress("predict", len(jobs)) as progress,
        ThreadPoolExecutor(2) as readers,
        ThreadPoolExecutor(1) as writer,
    ):
        writing: deque[Future[None]] = deque()
        for ready in _ahead(readers, jobs, resume=resume):
            if ready.fault is not None:
                failures.append((ready.job.image, ready.fault))
                log.warning("%s", printable(ready.fault))
            elif ready.image is None:
                kept += 1
            else:
                sure = "confidence" in save
                looked = _look(loaded, ready.image, ready.orientation, window, flip, sure)
                writing.append(
                    writer.submit(
                        write_masks, ready.job.masks, ready.image, *looked, loaded.classes
                    )
                )
            while len(writing) > _AHEAD:
                writing.popleft().result()
            progress.advance()
        while writing:
            writing.popleft().result()
    _finish(out, save, failures, total=len(jobs), kept=kept)


def _look(
    loaded: build.LoadedRun,
    stored: NDArray[np.uint8],
    orientation: int,
    window: tuple[int, int] | None,
    flip: bool,
    confidence: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
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


def newest_finished_run(folder: Path) -> Path:
    """Return the run below `folder` whose training ended last.

    Raises:
        UsageError: There is none.
    """
    finished = []
    for status in [*folder.glob("*/status.json"), *folder.glob("*/*/status.json")]:
        try:
            document = json.loads(status.read_text(encoding="utf-8"))
            if document["state"] == "done":
                finished.append((float(document["unix_time"]), status.parent))
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s: cannot be read; this run is passed over", status)
    if not finished:
        raise UsageError(
            f"{folder}/: no finished run there; name one with --checkpoint RUN, "
            "or make one with `udaseg adapt` or `udaseg demo`"
        )
    return max(finished)[1]


def _refuse_existing(jobs: Iterable[Job], out: Path) -> None:
    existing = [mask for job in jobs for mask in job.masks.values() if mask.exists()]
    if existing:
        raise UsageError(
            f"{printable(str(out))}: {len(existing)} of the masks exist, such as "
            f"{printable(str(existing[0]))}; --resume keeps what is whole and goes on, "
            "--overwrite makes all anew, --out DIR takes another folder"
        )


def _refuse_other_network(out: Path, facts: dict[str, Any]) -> None:
    path = out / _FACTS
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key, value in facts.items() if before.get(key) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{printable(str(path))}: cannot be read ({error}), so nobody knows which network "
            "made the masks there; use --overwrite"
        ) from error
    if changed:
        raise UsageError(
            f"{printable(str(out))}: its masks were made with another {', '.join(changed)}; "
            "--resume would mix them. Use --overwrite or another --out"
        )


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
    try:
        if resume and all_whole(job.masks, image_size(job.image)):
            return _Read(job)
        return _Read(job, read_image(job.image), orientation_of(job.image))
    except DataError as error:
        return _Read(job, fault=str(error))


def _finish(
    out: Path,
    save: Sequence[str],
    failures: Sequence[tuple[Path, str]],
    *,
    total: int,
    kept: int,
) -> None:
    """Name the failures in a file and the masks on stdout.

    Raises:
        DataError: Everything failed.
        PartialError: Something failed.
    """
    table = out / _FAILURES
    if failures:
        buffer = io.StringIO()
        rows = csv.writer(buffer, lineterminator="\n")
        rows.writerow(["image", "reason"])
        rows.writerows((_text(str(image)), _text(reason)) for image, reason in failures)
        write_text_atomic(table, buffer.getvalue())
    else:
        table.unlink(missing_ok=True)
    shown = printable(str(table))
    if len(failures) == total:
        raise DataError(f"none of {total} images could be read; {shown} says why of each")
    written = total - kept - len(failures)
    done = f"{written} images masked" + (f", {kept} kept from before" if kept else "")
    folders = ", ".join(printable(shlex.quote(str(out / kind))) for kind in save)
    Console(highlight=False, soft_wrap=True).print(Text(f"{done}: {folders}"))
    if failures:
        raise PartialError(
            f"{len(failures)} of {total} images failed, the others are done; {shown} says why"
        )


def _text(name: str) -> str:
    """Return a name that UTF-8 can write, whatever bytes the file system holds."""
    return printable(name.encode("utf-8", "backslashreplace").decode("utf-8"))
