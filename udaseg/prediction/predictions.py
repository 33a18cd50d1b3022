"""The predictions of a network: one after another, or written as masks."""

import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from udaseg import __version__
from udaseg.data.files.images import write_png
from udaseg.data.files.video import VideoReader
from udaseg.data.labels.classes import IGNORE, classes_to_dict
from udaseg.data.labels.tables import label_ids
from udaseg.display.pictures import legend
from udaseg.distributed import (
    SHARES_TIMEOUT,
    barrier,
    differences_between_ranks,
    on_rank_zero,
    rank,
    world_size,
)
from udaseg.errors import CheckpointError, DataError, Interrupted
from udaseg.failures import process_group
from udaseg.files import csv_text, sha256, write_json, write_text
from udaseg.inference import trained_model
from udaseg.inference.options import IDS_OF, MaskKind
from udaseg.inference.prediction import Prediction, make_prediction
from udaseg.inference.predictor import Predictor, PreparedImage
from udaseg.inference.run_data import bands_of_run, bits_of_run
from udaseg.inference.sizes import network_input_size
from udaseg.inference.tiles import TileOptions
from udaseg.inference.trained_model import Model
from udaseg.prediction import outputs
from udaseg.prediction.images import Outcome, image_batches, predict_images, warn_of_few_bits
from udaseg.prediction.inputs import is_video
from udaseg.prediction.label_files import label_file_path, write_label_files
from udaseg.prediction.options import PredictOptions
from udaseg.prediction.plan import Job, Plan
from udaseg.prediction.videos import frame_batches, predict_videos
from udaseg.runs.calibration_file import read_temperature
from udaseg.signals import StopSignal
from udaseg.sizes import plain_size
from udaseg.text import bands_text, printable

log = logging.getLogger(__name__)
_SETTINGS = "prediction.json"
_BATCH_ON_GPU = 8
_LEGEND_PX = 600
Network: TypeAlias = Model | str | os.PathLike[str]
"""A network, or a run or checkpoint to load."""


def stream(paths: Sequence[str], model: Network, options: PredictOptions) -> Iterator[Prediction]:
    """Return an iterator over the predictions of images and videos; the network is loaded now."""
    predictor, _ = _make_predictor(_load_model(model, options)[0], options, kinds=None)
    return _stream(paths, predictor)


def _stream(paths: Sequence[str], predictor: Predictor) -> Iterator[Prediction]:
    """Yield the prediction of each image and each video frame, in order.

    The images of a batch are read before the first of their predictions is yielded; further images
    are read ahead in threads.
    """
    readable, outcome = False, Outcome()
    with closing(_prepared_batches(paths, predictor, outcome)) as batches:
        for batch in batches:
            predictions = predictor.predict(batch)
            for item in batch:
                readable = True
                yield make_prediction(predictions.pop(0), item.image, predictor.classes)
    warn_of_few_bits(outcome, predictor)
    if not readable:
        raise DataError(f"none of {len(paths)} inputs could be predicted; the log has the reasons")


def _prepared_batches(
    paths: Sequence[str], predictor: Predictor, outcome: Outcome
) -> Generator[list[PreparedImage], None, None]:
    for are_videos, group in groupby(paths, is_video):
        if not are_videos:
            jobs = (Job(Path(path), {}) for path in group)
            yield from image_batches(jobs, predictor, outcome)
            continue
        for path in map(Path, group):
            try:
                with VideoReader(path) as video:
                    yield from frame_batches(video, path, predictor)
            except DataError as error:
                outcome.skip(path, str(error))


def write_all(plan: Plan, model: Network, options: PredictOptions) -> dict[str, Any]:
    """Write the masks of all jobs and return the values of a `PredictSummary`.

    The processes of torchrun share the jobs; each returns the values of all.
    """
    if isinstance(model, Model):
        return _write_all(plan, model, options)
    with process_group(options.device, SHARES_TIMEOUT):
        return _write_all(plan, model, options)


def _write_all(plan: Plan, model: Network, options: PredictOptions) -> dict[str, Any]:
    _refuse_different_inputs(plan)
    out, failures_file = plan.out, _failures_file(plan.out, options)
    loaded, choice = _load_model(model, options)
    predictor, temperature = _make_predictor(loaded, options, options.kinds)
    facts = _mask_settings(loaded, options, temperature)
    settings = {
        **facts,
        **_saved_settings(options),
        "network_input": plain_size(predictor.trained_size),
        "batch": predictor.batch,
        "udaseg": __version__,
        **choice,
    }
    outcome, share = Outcome(), plan[rank() :: world_size()]
    images, videos = plan.split()
    with (
        outputs.convert_write_errors(out),
        StopSignal() as stop,
        _claimed_folder(plan, settings, facts, options),
    ):
        own_images, own_videos = (share.missing_first() if options.resume else share).split()
        try:
            if own_images:
                predict_images(own_images, predictor, outcome, stop, resume=options.resume)
            predict_videos(own_videos, predictor, outcome, stop, out, resume=options.resume)
            is_stopped = stop.stop_requested()
            outcome = outcome.of_all_processes()
            if not is_stopped:
                files, base = options.label_files, Path(plan.base)
                on_rank_zero(partial(write_label_files, files, images, base, out, loaded.classes))
        finally:  # also when the machine fails in between
            if rank() == 0:
                _write_failures(failures_file, outcome.failures)
    if rank() == 0:
        warn_of_few_bits(outcome, predictor)
    _raise_if_incomplete(plan, outcome, stop, failures_file, overwrite=options.overwrite)
    return {
        "folders": _saved_paths(options, out),
        "image_inputs": len(images),
        "video_inputs": len(videos),
        "images": len(plan) - outcome.kept - len(outcome.failures) - outcome.videos,
        "videos": outcome.videos,
        "frames": outcome.frames,
        "kept": outcome.kept,
        "failures": dict(outcome.failures),
        "failures_file": failures_file,
        "pixels": dict(zip(loaded.classes.names, outcome.pixels.tolist(), strict=False)),
        "abstained": int(outcome.pixels[IGNORE]),
    }


def _refuse_different_inputs(plan: Plan) -> None:
    """Raise a `DataError` if the processes, perhaps on several hosts, do not see the same files."""
    names = sha256("\0".join(plan.inputs).encode("utf-8", "surrogateescape"))
    seen = f"{len(plan)} ({names[:8]})"
    if differences := differences_between_ranks({"the number of inputs (digest)": seen}):
        raise DataError(
            f"the processes see different files: {differences}. Give all of them the same files "
            "under the same paths"
        )


@contextmanager
def _claimed_folder(
    plan: Plan, settings: dict[str, Any], facts: dict[str, Any], options: PredictOptions
) -> Iterator[None]:
    """Make the output folder ready, and hold its lock; only rank 0 does, the others wait."""
    path = plan.out / _SETTINGS

    def find_others() -> list[Any]:
        mixing = "--resume" if options.resume else "--shard" if options.shard else None
        return outputs.find_other_networks(path, facts, plan, mixing_option=mixing)

    others = on_rank_zero(find_others)
    with outputs.output_lock(plan) if rank() == 0 else nullcontext():
        if rank() == 0:
            if options.overwrite:
                outputs.remove_masks(plan)
            write_json(path, {**settings, **({outputs.OTHER_NETWORKS: others} if others else {})})
            _write_legend(plan, settings["classes"])
        barrier()
        yield


def _write_legend(plan: Plan, classes: dict[str, Any]) -> None:
    """Write the colours of the classes beside coloured masks."""
    if "color" in plan.kinds or "overlay" in plan.kinds:
        picture = legend(classes["names"], classes["colors"], _LEGEND_PX)
        write_png(plan.out / "legend.png", picture)


def _load_model(model: Network, options: PredictOptions) -> tuple[Model, dict[str, Any]]:
    """Return the network to predict with, and how it was chosen if that depends on a verdict."""
    if isinstance(model, Model):
        return model, {}
    if options.weights != "better":
        return trained_model.load(Path(model), weights=options.weights, device=options.device), {}
    adapted = trained_model.load(Path(model), device=options.device)
    worth = trained_model.stored_worth(adapted)
    if worth is None:
        return adapted, {}
    network, chosen, level = adapted, "adapted", logging.INFO
    if worth.verdict == "worse":
        try:
            network = trained_model.load_baseline(worth, adapted)
        except CheckpointError as error:
            raise CheckpointError(f"{error}, or use `--weights student`") from error
        chosen, level = "baseline", logging.WARNING
    message = "the verdict on the adaptation is %s (%s), so the %s network is used"
    log.log(level, message, worth.verdict, worth.reason, chosen)
    return network, {"worth": {"verdict": worth.verdict, "network": chosen}}


def _make_predictor(
    model: Model, options: PredictOptions, kinds: Sequence[MaskKind] | None
) -> tuple[Predictor, float | None]:
    """Return the predictor of these options and the run's temperature; log both.

    It predicts confidence only if the masks of `kinds` need it; for None, always.
    """
    if kinds is not None and "label-ids" in kinds:
        label_ids(model.classes)  # raises for classes without label ids
    log.info("%s, step %d, %s", model.checkpoint, model.step, model.weights)
    bands = options.bands or bands_of_run(model.recipe)
    if bands is not None:
        log.info("TIFFs are read with %s; other bands are left out", bands_text(bands))
    confidence = kinds is None or "confidence" in kinds or options.abstain is not None
    temperature = None
    if confidence and options.calibrated:
        temperature = read_temperature(model.checkpoint, model.weights)
    if confidence:
        _log_calibration(temperature, options)
    predictor = Predictor(
        model.segmenter,
        model.classes,
        network_input_size(model.recipe),
        TileOptions(
            model.device,
            window=options.window,
            flip=options.flip,
            confidence=confidence,
            temperature=temperature or 1.0,
        ),
        options.abstain,
        logits=kinds is not None and "logits" in kinds,
        batch=options.batch or (_BATCH_ON_GPU if model.device.type == "cuda" else 1),
        bits=options.bits or bits_of_run(model.recipe),
        bands=bands,
        resampling=model.recipe.target.resampling,
    )
    return predictor, temperature


def _log_calibration(temperature: float | None, options: PredictOptions) -> None:
    if temperature is None:
        reason = "`udaseg calibrate` was not run for this checkpoint"
        log.info(
            "confidence is not calibrated: %s", reason if options.calibrated else "--uncalibrated"
        )
        return
    log.info("confidence uses the run's temperature %.3f", temperature)
    if options.flip or options.window is not None:
        log.warning(
            "the temperature was fitted without flip and window; with them it may not be accurate"
        )


def _mask_settings(
    model: Model, options: PredictOptions, temperature: float | None
) -> dict[str, Any]:
    """Return the settings that the masks depend on, as JSON values."""
    return {
        "weights": model.weights,
        "checkpoint": str(model.checkpoint.resolve()),
        "step": model.step,
        "checkpoint_sha256": model.sha256,
        "flip": options.flip,
        "window": _as_list(options.window),
        "temperature": temperature,
        "abstain": options.abstain,
        "bits": options.bits or bits_of_run(model.recipe),
        "bands": _as_list(options.bands or bands_of_run(model.recipe)),
        "classes": classes_to_dict(model.classes),
    }


def _as_list(numbers: Sequence[int] | None) -> list[int] | None:
    return None if numbers is None else list(numbers)


def _saved_settings(options: PredictOptions) -> dict[str, Any]:
    """Return what is saved and the meaning of its ids, as JSON values."""
    return {
        "ignore": IGNORE,
        "save": [*options.kinds, *options.label_files],
        "ids": {kind: IDS_OF[kind] for kind in options.kinds if kind in IDS_OF},
    }


def _saved_paths(options: PredictOptions, out: Path) -> dict[str, Path]:
    """Return the folder of each kind of mask, and the files of annotation tools, that exist."""
    paths: dict[str, Path] = {kind: out / kind for kind in options.kinds}
    paths.update((kind, label_file_path(kind, out)) for kind in options.label_files)
    return {kind: path for kind, path in paths.items() if path.exists()}


def _failures_file(out: Path, options: PredictOptions) -> Path:
    if options.shard is None:
        return out / "failures.csv"
    number, count = options.shard
    return out / f"failures-{number}-of-{count}.csv"


def _write_failures(table: Path, failures: Sequence[tuple[Path, str]]) -> None:
    """Write the failures to a CSV file; remove the file if there are none."""
    if not failures:
        table.unlink(missing_ok=True)
        return
    rows = [(_utf8_name(str(image)), _utf8_name(reason)) for image, reason in failures]
    write_text(table, csv_text([("image", "reason"), *rows]))


def _utf8_name(name: str) -> str:
    """Return a name that can be written as UTF-8, whatever its bytes in the file system."""
    return printable(name.encode("utf-8", "backslashreplace").decode("utf-8"))


def _raise_if_incomplete(
    plan: Plan, outcome: Outcome, stop: StopSignal, failures_file: Path, *, overwrite: bool
) -> None:
    """Raise an error if a signal was received before the end, or if every input failed."""
    noun = "inputs" if any(map(is_video, plan.inputs)) else "images"
    if stop.number is not None and outcome.done < len(plan):
        replaced_option = " instead of --overwrite" if overwrite else ""
        raise Interrupted(
            f"stopped after {outcome.done} of {len(plan)} {noun}; their masks are complete. "
            f"Continue with the same command and --resume{replaced_option}",
            stop.number,
        )
    if plan and len(outcome.failures) == len(plan):
        raise DataError(
            f"none of {len(plan)} {noun} could be predicted; see {failures_file} for the reasons"
        )
