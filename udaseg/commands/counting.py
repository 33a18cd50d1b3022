"""Score a network on a labelled split; memory does not grow with the number of images."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from udaseg.commands.looking import Labelled, Look, look_at
from udaseg.data import IGNORE, ClassSpace, PreparedDataset, lookup_table
from udaseg.distributed import rank, world_size
from udaseg.errors import DataError
from udaseg.evaluation import ConfusionMatrix, Model, strangers
from udaseg.reporting import WorkProgress

_COUNTED_BEHIND = 4


def count(
    segmenter: Model,
    classes: ClassSpace,
    dataset: PreparedDataset,
    split: str,
    options: Look,
    *,
    device: torch.device,
    on_labels: Callable[[Labelled], None] | None = None,
) -> ConfusionMatrix:
    """Return the confusion matrix of a network over a split, at the resolution of the labels.

    True classes that the network lacks are counted as outside classes, so both conventions of
    `udaseg.evaluation.protocols` can be computed from the matrix.

    Each process of a group scores its share of the images; each returns the whole matrix.

    Args:
        segmenter: In evaluation mode, on `device`.
        classes: Outputs of the network; matched with the classes of the labels by name.
        dataset: Labelled images.
        split: Split of `dataset`.
        options: Inference options, and the size at which to score.
        device: Device of the network.
        on_labels: Called with the prediction for each image, in order, in another thread.

    Raises:
        DataError: No images, no labels, or no class in common.
    """
    matrix, truth_map = empty_matrix(classes, dataset, split)
    samples = dataset.split(split)[rank() :: world_size()]

    def take(prediction: Labelled) -> None:
        assert prediction.truth is not None
        matrix.update(prediction.labels, prediction.truth, truth_map)
        if on_labels is not None:
            on_labels(prediction)

    predictions = look_at(segmenter, dataset, samples, options, device=device, truth=True)
    # count in a thread while the network runs; at most a few images wait, which bounds memory
    with WorkProgress("eval", len(samples)) as progress, ThreadPoolExecutor(1) as counter:
        pending: deque[Future[None]] = deque()
        for prediction in predictions:
            pending.append(counter.submit(take, prediction))
            if len(pending) > _COUNTED_BEHIND:
                pending.popleft().result()
            progress.advance()
        while pending:
            pending.popleft().result()
    return matrix.over_ranks(device)


def empty_matrix(
    classes: ClassSpace, dataset: PreparedDataset, split: str
) -> tuple[ConfusionMatrix, bytes]:
    """Return an empty matrix over `classes`, and the lookup table that maps truth ids to it.

    Classes of the data that the network lacks are outside classes of the matrix.

    Raises:
        DataError: No images, no labels, or no class in common.
    """
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so it cannot be used for scoring")
    others = strangers(classes.names, dataset.classes.names)
    if len(others) == len(dataset.classes):
        raise DataError(
            f"{dataset.name}: its classes ({', '.join(dataset.classes.names)}) share no name with "
            f"the network's ({', '.join(classes.names)})"
        )
    if len(classes) + len(others) >= IGNORE:  # more classes than a label (uint8) can hold
        others = ()
    if not dataset.split(split):
        raise DataError(f"{dataset.name}: split '{split}' has no images")
    outputs = {name: index for index, name in enumerate((*classes.names, *others))}
    truth_map = lookup_table([outputs.get(name, IGNORE) for name in dataset.classes.names])
    return ConfusionMatrix(len(classes), ignore=IGNORE, num_outside=len(others)), truth_map
