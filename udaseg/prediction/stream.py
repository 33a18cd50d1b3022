"""Predict images and video frames one after another, without writing."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path

from udaseg.data.files.video import VideoReader
from udaseg.errors import DataError
from udaseg.inference.input_images import InputImage
from udaseg.inference.pipeline import Limit, batches_of_one_size
from udaseg.inference.prediction import Prediction, make_prediction
from udaseg.prediction.images import (
    LoadedImage,
    MaskPredictor,
    SkippedImage,
    batches_of_images,
    read_images,
)
from udaseg.prediction.inputs import Job, is_video
from udaseg.text import printable

log = logging.getLogger(__name__)


def stream_predictions(paths: Sequence[Path], predictor: MaskPredictor) -> Iterator[Prediction]:
    """Yield the prediction of each image and each video frame, in order.

    An input that cannot be read is skipped with a warning. The images of a batch are read before
    the first of their predictions is yielded; further images are read ahead in threads.

    Args:
        paths: Images and videos.
        predictor: Predicts with confidence.

    Raises:
        DataError: No input can be read.
    """
    readable = False
    for are_videos, group in groupby(paths, is_video):
        stream = _stream_frames if are_videos else _stream_images
        for prediction in stream(list(group), predictor):
            readable = True
            yield prediction
    if not readable:
        raise DataError(f"none of {len(paths)} inputs could be predicted; the log has the reasons")


def _stream_images(paths: Sequence[Path], predictor: MaskPredictor) -> Iterator[Prediction]:
    jobs = [Job(path, {}) for path in paths]
    with closing(read_images(jobs, predictor)) as images:
        for batch in batches_of_images(_without_skipped(images), predictor.batch):
            inputs = [item.network_input for item in batch]
            sizes = [item.image.upright_size for item in batch]
            labels = predictor.predictor.predict(inputs, sizes)
            for item in batch:
                yield make_prediction(labels.pop(0), item.image, predictor.model.classes)


def _without_skipped(images: Iterable[LoadedImage | SkippedImage]) -> Iterator[LoadedImage]:
    for image in images:
        if isinstance(image, LoadedImage):
            yield image
        else:
            log.warning("%s", printable(str(image.fault)))


def _stream_frames(paths: Sequence[Path], predictor: MaskPredictor) -> Iterator[Prediction]:
    for path in paths:
        try:
            yield from _stream_video(path, predictor)
        except DataError as error:
            log.warning("%s", printable(str(error)))


def _stream_video(path: Path, predictor: MaskPredictor) -> Iterator[Prediction]:
    number = 0
    with VideoReader(path) as video:
        for batch in batches_of_one_size(video, lambda frame: frame.shape, Limit(predictor.batch)):
            inputs = [predictor.predictor.resize(frame) for frame in batch]
            labels = predictor.predictor.predict(inputs, [video.size] * len(batch))
            for frame in batch:
                image = InputImage(frame, path=path)
                yield make_prediction(labels.pop(0), image, predictor.model.classes, frame=number)
                number += 1
