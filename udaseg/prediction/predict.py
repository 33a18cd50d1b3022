"""`udaseg predict`: the classes of images and videos in files, folders and patterns."""

import csv
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

from udaseg import __version__
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.labels.tables import label_ids
from udaseg.errors import DataError, Interrupted
from udaseg.files import one_or_more, write_json, write_text
from udaseg.inference import trained_model
from udaseg.inference.prediction import Prediction
from udaseg.inference.predictor import Predictor
from udaseg.inference.sizes import network_input_size
from udaseg.inference.tiles import TileOptions
from udaseg.inference.trained_model import Model
from udaseg.prediction.images import MaskPredictor, Outcome, predict_images
from udaseg.prediction.inputs import Inputs, Job, plan_outputs, resolve_inputs
from udaseg.prediction.options import PredictOptions
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
from udaseg.prediction.stream import stream_predictions
from udaseg.prediction.summary import PredictSummary
from udaseg.prediction.videos import predict_videos
from udaseg.runs.calibration_file import read_temperature
from udaseg.runs.folder import newest_finished_run
from udaseg.signals import StopSignal
from udaseg.text import printable

log = logging.getLogger(__name__)
_FAILURES = "failures.csv"
_SETTINGS = "prediction.json"
_BATCH_ON_GPU = 8
_Path: TypeAlias = str | os.PathLike[str]


@overload
def predict(
    inputs: _Path | Sequence[_Path],
    model: Model | _Path | None = None,
    *,
    out: None = None,
    options: PredictOptions | None = None,
) -> Iterator[Prediction]: ...


@overload
def predict(
    inputs: _Path | Sequence[_Path],
    model: Model | _Path | None = None,
    *,
    out: _Path,
    options: PredictOptions | None = None,
) -> PredictSummary: ...


def predict(
    inputs: _Path | Sequence[_Path],
    model: Model | _Path | None = None,
    *,
    out: _Path | None = None,
    options: PredictOptions | None = None,
) -> Iterator[Prediction] | PredictSummary:
    """Predict images and videos: yield the predictions, or write masks to `out`.

    Without `out`, nothing is written. Predictions come in the order of the inputs, one for each
    image and one for each frame of a video; they are computed while you iterate. Inputs that cannot
    be read are skipped with a logged warning. The options of writing (`save`, `video`, `overwrite`,
    `resume`) do not apply.

    With `out`, masks have the size and orientation of the stored image; those of a video have the
    size and orientation of its displayed frames. Inputs that cannot be read are listed in
    `failures.csv` and in the result.

    The network sees everything upright, at its training resolution.

    Args:
        inputs: A file, folder (searched recursively) or pattern, or several.
        model: A `Model`, or a run or checkpoint to load; None takes the newest finished run below
            `runs/`.
        out: Output folder of the masks, `<out>/<kind>/<path>.png`; None writes nothing.
        options: What to write, and how to predict; None uses the defaults.

    Returns:
        Without `out`, an iterator over predictions; their confidence uses the run's temperature.
        With `out`, what was written.

    Raises:
        UsageError: Masks exist already, or would overwrite the inputs; nothing is written.
        DataError: An input does not exist, or none is readable; the iterator raises the latter at
            its end.
        CheckpointError: The run has no readable checkpoint.
        EnvironmentFault: A mask cannot be written; the masks before it are complete.
        Interrupted: SIGINT or SIGTERM was received while writing; the masks written so far are
            complete.

    Example:
        for prediction in udaseg.predict("photos/", "runs/city-rccr"):
            print(prediction.path, prediction.shares()["road"])
        summary = udaseg.predict("photos/", "runs/city-rccr", out="masks")
        print(summary.images, summary.failures)
    """
    options = options or PredictOptions()
    resolved = resolve_inputs(one_or_more(inputs))
    if out is not None:
        return _write_all(resolved, model, Path(out), options)
    predictor = _make_predictor(_load_model(model, options), options, writes=False)
    return stream_predictions(resolved.images, predictor)


def _write_all(
    inputs: Inputs, model: Model | _Path | None, out: Path, options: PredictOptions
) -> PredictSummary:
    """Write the masks of all inputs and return what was written."""
    jobs = plan_outputs(inputs, out, options.kinds, video=options.video)
    refuse_conflicts(jobs, out)
    if not (options.overwrite or options.resume):
        refuse_existing(jobs, out)
    predictor = _make_predictor(_load_model(model, options), options, writes=True)
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
    if len(outcome.failures) == len(jobs):
        raise DataError(
            f"none of {len(jobs)} {_noun(jobs)} could be predicted; "
            f"see {out / _FAILURES} for the reasons"
        )
    folders: dict[str, Path] = {kind: out / kind for kind in options.kinds}
    return _summarize(jobs, out, folders, outcome, predictor.model.classes)


def _load_model(model: Model | _Path | None, options: PredictOptions) -> Model:
    if isinstance(model, Model):
        return model
    run = newest_finished_run(Path("runs")) if model is None else Path(model)
    return trained_model.load(run, weights=options.weights, device=options.device)


def _make_predictor(model: Model, options: PredictOptions, *, writes: bool) -> MaskPredictor:
    """Return the predictor of these options, with the run's temperature; log both.

    Args:
        model: The network.
        options: How to predict.
        writes: Confidence is predicted only if the masks need it; otherwise always.

    Raises:
        DataError: The run's calibration is damaged, or belongs to another checkpoint.
        UsageError: Label ids are requested of classes that have none.
    """
    kinds = options.kinds if writes else ()
    if "label-ids" in kinds:
        label_ids(model.classes)  # raises for classes without label ids
    log.info("%s, step %d, %s", model.checkpoint, model.step, model.weights)
    confidence = not writes or "confidence" in kinds or options.abstain is not None
    temperature = None
    if confidence and options.calibrated:
        temperature = read_temperature(model.checkpoint, model.weights)
    predictor = Predictor(
        model.segmenter,
        network_input_size(model.recipe),
        TileOptions(
            model.device,
            window=options.window,
            flip=options.flip,
            confidence=confidence,
            temperature=temperature or 1.0,
        ),
        options.abstain,
    )
    if confidence:
        _log_calibration(temperature, options)
    batch = options.batch or (_BATCH_ON_GPU if model.device.type == "cuda" else 1)
    return MaskPredictor(model, predictor, kinds, temperature, batch)


def _log_calibration(temperature: float | None, options: PredictOptions) -> None:
    """Log whether the confidence is calibrated."""
    if temperature is None:
        reason = (
            "--uncalibrated"
            if not options.calibrated
            else "`udaseg calibrate` was not run for this checkpoint"
        )
        log.info("confidence is not calibrated: %s", reason)
        return
    log.info("confidence uses the run's temperature %.3f", temperature)
    if options.flip or options.window is not None:
        log.warning(
            "the temperature was fitted without flip and window; with them it may not be accurate"
        )


def _collect_settings(
    predictor: MaskPredictor, jobs: Sequence[Job], out: Path, options: PredictOptions
) -> Mapping[str, Any]:
    """Return the content of the settings file.

    Raises:
        UsageError: `options.resume`, but the masks in `out` were made with other settings.
    """
    facts = {"weights": predictor.model.weights, **predictor.settings()}
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


def _extra_settings(predictor: MaskPredictor) -> dict[str, Any]:
    """Return further settings that readers of the masks may need."""
    size = predictor.predictor.trained_size
    return {
        "ignore": IGNORE,
        "save": list(predictor.kinds),
        "network_input": None if size is None else list(size),
        "batch": predictor.batch,
        "udaseg": __version__,
    }


def _predict_jobs(
    jobs: Sequence[Job],
    predictor: MaskPredictor,
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


def _summarize(
    jobs: Sequence[Job],
    out: Path,
    folders: Mapping[str, Path],
    outcome: Outcome,
    classes: ClassSpace,
) -> PredictSummary:
    videos = sum(job.record is not None for job in jobs)
    written = len(jobs) - outcome.kept - len(outcome.failures)
    return PredictSummary(
        folders=folders,
        image_inputs=len(jobs) - videos,
        video_inputs=videos,
        images=written - outcome.videos,
        videos=outcome.videos,
        frames=outcome.frames,
        kept=outcome.kept,
        failures=dict(outcome.failures),
        failures_file=out / _FAILURES,
        pixels={name: int(outcome.pixels[index]) for index, name in enumerate(classes.names)},
        abstained=int(outcome.pixels[IGNORE]),
    )


def _utf8_name(name: str) -> str:
    """Return a name that can be written as UTF-8, whatever its bytes in the file system."""
    return printable(name.encode("utf-8", "backslashreplace").decode("utf-8"))
