"""Predict images and video frames one after another, without writing."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path

from udaseg.data.files.video import VideoReader
from udaseg.errors import DataError
from udaseg.inference.prediction import Prediction, make_prediction
from udaseg.inference.predictor import Predictor, PreparedImage
from udaseg.prediction.images import Outcome, image_batches
from udaseg.prediction.inputs import is_video
from udaseg.prediction.outputs import Job
from udaseg.prediction.videos import frame_batches


def stream_predictions(paths: Sequence[Path], predictor: Predictor) -> Iterator[Prediction]:
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
    with closing(_batches(paths, predictor)) as batches:
        for batch in batches:
            predictions = predictor.predict(batch)
            for item in batch:
                readable = True
                yield make_prediction(predictions.pop(0), item.image, predictor.classes)
    if not readable:
        raise DataError(f"none of {len(paths)} inputs could be predicted; the log has the reasons")


def _batches(
    paths: Sequence[Path], predictor: Predictor
) -> Generator[list[PreparedImage], None, None]:
    skipped = Outcome()
    for are_videos, group in groupby(paths, is_video):
        if not are_videos:
            jobs = [Job(path, {}) for path in group]
            yield from image_batches(jobs, predictor, skipped)
            continue
        for path in group:
            try:
                with VideoReader(path) as video:
                    yield from frame_batches(video, path, predictor)
            except DataError as error:
                skipped.skip(path, str(error))
