"""`udaseg predict`: write masks of the images and videos in files, folders and patterns."""

import csv
import io
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udaseg import __version__
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.labels.tables import label_ids
from udaseg.display.console import open_console, safe_text
from udaseg.errors import DataError, Interrupted, PartialError
from udaseg.files import write_json, write_text
from udaseg.inference import trained_model
from udaseg.inference.sizes import network_input_size
from udaseg.inference.trained_model import Model
from udaseg.prediction.images import Outcome, Predictor, predict_images
from udaseg.prediction.inputs import Job, plan_outputs, resolve_inputs
from udaseg.prediction.outputs import (
    OTHER_NETWORKS,
    convert_write_errors,
    find_other_networks,
    output_lock,
    refuse_conflicts,
    refuse_existing,
    refuse_other_network,
    remove_masks,
)
from udaseg.prediction.videos import predict_videos
from udaseg.runs.calibration_file import read_temperature
from udaseg.runs.folder import newest_finished_run
from udaseg.signals import StopSignal
from udaseg.text import percent, printable

log = logging.getLogger(__name__)
_FAILURES = "failures.csv"
_SETTINGS = "prediction.json"
_MAX_CLASSES_SHOWN = 5
_BATCH_ON_GPU = 8


@dataclass(frozen=True)
class PredictOptions:
    """What `predict` writes, and how it predicts.

    Attributes:
        save: Kinds of mask: `color`, `ids`, `label-ids`, `overlay`, `confidence`, `logits`.
        video: Container for `color` and `overlay` of a video: `mp4`, `webm`, `avi` or `frames`.
        overwrite: Overwrite existing masks; all of them are removed before the first is written.
        resume: Keep existing intact masks, if the same network made them with the same options.
        weights: `student` or `teacher`.
        device: Device to compute on.
        flip: Average with the mirrored image.
        window: Sliding window (height, width) over the network's input.
        abstain: Pixels with less confidence become ignore; None keeps all.
        calibrated: Use the temperature saved by `udaseg calibrate`, if there is one.
        batch: Images of one size per batch; None chooses.
    """

    save: Sequence[str] = ("color", "ids")
    video: str = "mp4"
    overwrite: bool = False
    resume: bool = False
    weights: str = "student"
    device: str = "auto"
    flip: bool = False
    window: tuple[int, int] | None = None
    abstain: float | None = None
    calibrated: bool = True
    batch: int | None = None


def predict(
    *, inputs: Sequence[str], checkpoint: Path | None, out: Path, options: PredictOptions
) -> None:
    """Write masks of all images and videos that `inputs` name; bad inputs are skipped.

    Masks have the size and orientation of the stored image; those of a video have the size and
    orientation of its displayed frames. The network sees everything upright, at its training
    resolution.

    Args:
        inputs: Files, folders (searched recursively), patterns.
        checkpoint: A checkpoint or run; None takes the newest finished run below `runs/`.
        out: Output folder of the masks, `<out>/<kind>/<path>.png`.
        options: What to write, and how to predict.

    Raises:
        UsageError: Masks exist already, or would overwrite the inputs; nothing is written.
        DataError: No input is a readable image.
        PartialError: Some inputs failed and are listed in `failures.csv`; all others are written.
        EnvironmentFault: A mask cannot be written; the masks before it are complete.
        Interrupted: SIGINT or SIGTERM was received; the masks written so far are complete.
    """
    jobs = plan_outputs(resolve_inputs(inputs), out, options.save, video=options.video)
    refuse_conflicts(jobs, out)
    if not (options.overwrite or options.resume):
        refuse_existing(jobs, out)
    predictor = _load_predictor(checkpoint, options)
    settings = _collect_settings(predictor, jobs, out, options)
    outcome = Outcome()
    with convert_write_errors(out), StopSignal() as stop, output_lock(out, jobs):
        if options.overwrite:
            remove_masks(jobs)
        write_json(out / _SETTINGS, settings)
        try:
            _predict_jobs(jobs, predictor, outcome, stop, out, resume=options.resume)
        finally:  # also when the machine fails in between
            _write_failures(out / _FAILURES, outcome.failures)
    if stop.number is not None and outcome.done < len(jobs):
        raise _interruption(stop.number, jobs, outcome, overwrite=options.overwrite)
    _report_outcome(jobs, out, options.save, outcome, predictor.loaded.classes)


def _load_predictor(checkpoint: Path | None, options: PredictOptions) -> Predictor:
    """Load the network, and its temperature if confidence is needed; log both.

    Raises:
        DataError: The run's calibration is damaged, or belongs to another checkpoint.
    """
    run_or_checkpoint = checkpoint if checkpoint is not None else newest_finished_run(Path("runs"))
    loaded = trained_model.load(run_or_checkpoint, weights=options.weights, device=options.device)
    if "label-ids" in options.save:
        label_ids(loaded.classes)  # raises for classes without label ids
    log.info("%s, step %d, %s", loaded.checkpoint, loaded.step, options.weights)
    predictor = Predictor(
        loaded,
        options.save,
        options.window,
        options.flip,
        _read_temperature(loaded, options),
        options.abstain,
        options.batch or (_BATCH_ON_GPU if loaded.device.type == "cuda" else 1),
    )
    _log_calibration(predictor, calibrated=options.calibrated)
    return predictor


def _read_temperature(loaded: Model, options: PredictOptions) -> float | None:
    needs_confidence = "confidence" in options.save or options.abstain is not None
    if not (needs_confidence and options.calibrated):
        return None
    return read_temperature(loaded.checkpoint, options.weights)


def _log_calibration(predictor: Predictor, *, calibrated: bool) -> None:
    """Log whether the confidence is calibrated, if confidence is used."""
    if "confidence" not in predictor.kinds and predictor.abstain is None:
        return
    if predictor.temperature is None:
        reason = (
            "--uncalibrated"
            if not calibrated
            else "`udaseg calibrate` was not run for this checkpoint"
        )
        log.info("confidence is not calibrated: %s", reason)
        return
    log.info("confidence uses the run's temperature %.3f", predictor.temperature)
    if predictor.flip or predictor.window is not None:
        log.warning(
            "the temperature was fitted without flip and window; with them it may not be accurate"
        )


def _collect_settings(
    predictor: Predictor, jobs: Sequence[Job], out: Path, options: PredictOptions
) -> Mapping[str, Any]:
    """Return the content of the settings file.

    Raises:
        UsageError: `options.resume`, but the masks in `out` were made with other settings.
    """
    facts = {"weights": options.weights, **predictor.settings()}
    earlier_facts = []
    if options.resume:
        refuse_other_network(out / _SETTINGS, facts)
    else:
        earlier_facts = find_other_networks(out / _SETTINGS, facts, jobs)
    return {
        **facts,
        **_extra_settings(predictor),
        **({OTHER_NETWORKS: earlier_facts} if earlier_facts else {}),
    }


def _extra_settings(predictor: Predictor) -> dict[str, Any]:
    """Return further settings that readers of the masks may need."""
    size = network_input_size(predictor.loaded.recipe)
    return {
        "ignore": IGNORE,
        "save": list(predictor.kinds),
        "network_input": None if size is None else list(size),
        "batch": predictor.batch,
        "udaseg": __version__,
    }


def _predict_jobs(
    jobs: Sequence[Job],
    predictor: Predictor,
    outcome: Outcome,
    stop: StopSignal,
    out: Path,
    *,
    resume: bool,
) -> None:
    """Predict the images, then the videos; `outcome` receives the results."""
    images = [job for job in jobs if job.record is None]
    if images:
        predict_images(images, predictor, outcome, stop, resume=resume)
    videos = [job for job in jobs if job.record is not None]
    predict_videos(videos, predictor, outcome, stop, out, resume=resume)


def _write_failures(table: Path, failures: Sequence[tuple[Path, str]]) -> None:
    """Write the failures to a CSV file; remove the file if there are none."""
    if not failures:
        table.unlink(missing_ok=True)
        return
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(["image", "reason"])
    rows.writerows((_utf8_name(str(image)), _utf8_name(reason)) for image, reason in failures)
    write_text(table, buffer.getvalue())


def _interruption(
    signal_number: int, jobs: Sequence[Job], outcome: Outcome, *, overwrite: bool
) -> Interrupted:
    """Return the error that says how to continue after a signal."""
    replaced_option = " instead of --overwrite" if overwrite else ""
    return Interrupted(
        f"stopped after {outcome.done} of {len(jobs)} {_noun(jobs)}; their masks are complete. "
        f"Continue with the same command and --resume{replaced_option}",
        signal_number,
    )


def _noun(jobs: Sequence[Job]) -> str:
    return "images" if all(job.record is None for job in jobs) else "inputs"


def _report_outcome(
    jobs: Sequence[Job], out: Path, save: Sequence[str], outcome: Outcome, classes: ClassSpace
) -> None:
    """Print to stdout the output folders and the largest classes.

    Raises:
        DataError: All inputs failed.
        PartialError: Some inputs failed.
    """
    failed, total, noun = len(outcome.failures), len(jobs), _noun(jobs)
    failures_path = str(out / _FAILURES)
    if failed == total:
        raise DataError(
            f"none of {total} {noun} could be predicted; see {failures_path} for the reasons"
        )
    written = total - outcome.kept - failed
    parts = []
    if any(job.record is None for job in jobs):
        parts.append(f"{written - outcome.videos} images predicted")
    if outcome.videos:
        parts.append(f"{outcome.videos} videos of {outcome.frames} frames predicted")
    if outcome.kept:
        parts.append(f"{outcome.kept} kept from an earlier run")
    folders = ", ".join(shlex.quote(str(out / kind)) for kind in save)
    console = open_console(soft_wrap=True)
    console.print(safe_text(f"{', '.join(parts)}: {folders}"))
    if written:
        console.print(safe_text(f"pixels: {_format_class_shares(outcome.pixels, classes)}"))
    if failed:
        raise PartialError(
            f"{failed} of {total} {noun} failed, the others are written; "
            f"see {failures_path} for the reasons"
        )


def _format_class_shares(pixels: NDArray[np.int64], classes: ClassSpace) -> str:
    """Return the largest classes with their pixel shares, and the share of abstained pixels."""
    counts = pixels[: len(classes)]
    largest = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    listed = [
        f"{classes.names[index]} {percent(counts[index] / pixels.sum())} %"
        for index in largest[:_MAX_CLASSES_SHOWN]
    ]
    others = len(largest) - len(listed)
    if others:
        listed.append(f"{others} more classes")
    if pixels[IGNORE]:
        listed.append(f"abstained {percent(pixels[IGNORE] / pixels.sum())} %")
    return ", ".join(listed)


def _utf8_name(name: str) -> str:
    """Return a name that can be written as UTF-8, whatever its bytes in the file system."""
    return printable(name.encode("utf-8", "backslashreplace").decode("utf-8"))
