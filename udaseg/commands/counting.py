"""From a network and a labelled split to a confusion matrix, in memory that does not grow."""

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
    look: Look,
    *,
    device: torch.device,
    on_labels: Callable[[Labelled], None] | None = None,
) -> ConfusionMatrix:
    """Return the confusion matrix of a network over a split, at the labels' own resolution.

    Classes of the labels that the network lacks are outside it, so that both conventions of
    `udaseg.evaluation.protocols` can be read off.

    Every process of a group scores its share of the images, and each returns the whole matrix.

    Args:
        segmenter: In evaluation mode, on `device`.
        classes: Its outputs; matched with the labels' classes by name.
        dataset: Labelled images.
        split: Which of them.
        look: How the network looks, and at which size is scored.
        device: Where the network is.
        on_labels: Called with what the network says of each image, in a thread, in order.

    Raises:
        DataError: No images, no labels, or no class in common.
    """
    matrix, truth_map = empty_matrix(classes, dataset, split)
    samples = dataset.split(split)[rank() :: world_size()]

    def take(seen: Labelled) -> None:
        assert seen.truth is not None
        matrix.update(seen.labels, seen.truth, truth_map)
        if on_labels is not None:
            on_labels(seen)

    looks = look_at(segmenter, dataset, samples, look, device=device, truth=True)
    # counted beside the network, a few images behind, so that nothing piles up
    with WorkProgress("eval", len(samples)) as progress, ThreadPoolExecutor(1) as counter:
        behind: deque[Future[None]] = deque()
        for seen in looks:
            behind.append(counter.submit(take, seen))
            if len(behind) > _COUNTED_BEHIND:
                behind.popleft().result()
            progress.advance()
        while behind:
            behind.popleft().result()
    return matrix.over_ranks(device)


def empty_matrix(
    classes: ClassSpace, dataset: PreparedDataset, split: str
) -> tuple[ConfusionMatrix, bytes]:
    """Return a matrix over `classes`, the data's other classes outside, and the map of its truth.

    Raises:
        DataError: No images, no labels, or no class in common.
    """
    if dataset.classes is None:
        raise DataError(f"{dataset.name}: has no labels, so nothing can be scored on it")
    others = strangers(classes.names, dataset.classes.names)
    if len(others) == len(dataset.classes):
        raise DataError(
            f"{dataset.name}: its classes ({', '.join(dataset.classes.names)}) share no name with "
            f"the network's ({', '.join(classes.names)})"
        )
    if len(classes) + len(others) >= IGNORE:  # more than a label can tell apart
        others = ()
    if not dataset.split(split):
        raise DataError(f"{dataset.name}: split '{split}' has no images")
    outputs = {name: number for number, name in enumerate((*classes.names, *others))}
    truth_map = lookup_table([outputs.get(name, IGNORE) for name in dataset.classes.names])
    return ConfusionMatrix(len(classes), ignore=IGNORE, num_outside=len(others)), truth_map
