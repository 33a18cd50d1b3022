"""Recompute batch-norm statistics on the target after the last training step."""

import logging
from pathlib import Path

from udaseg import build
from udaseg.adaptation import SelfTraining, adapt_statistics
from udaseg.commands.stages import watched
from udaseg.data import PreparedDataset, evenly_spaced
from udaseg.engine import Fit, StopSignal
from udaseg.recipe import Recipe
from udaseg.reporting import WorkProgress

log = logging.getLogger(__name__)


def take_target_statistics(
    recipe: Recipe, setup: Fit, target: PreparedDataset, stop: StopSignal, folder: Path
) -> None:
    """Give student and teacher the batch-norm statistics of unlabelled target images.

    The result depends only on the weights and the images. A run that is killed here repeats the
    pass from its last checkpoint, with the same result.

    Args:
        recipe: Sets the number of images.
        setup: The trained setup.
        target: Unlabelled images.
        stop: Ends the pass after a signal.
        folder: Run folder.

    Raises:
        Interrupted: A signal came; the checkpoint from before the pass remains valid.
    """
    crops = build.crops(recipe.target, target, labelled=False)
    places = evenly_spaced(len(crops.samples), recipe.method.target_statistics)
    samples = [crops.samples[index] for index in places]
    objective = setup.objective
    networks = [objective.student]
    if isinstance(objective, SelfTraining):
        networks.append(objective.teacher.network)
    with WorkProgress("statistics of the target", len(samples)) as progress:
        adapt_statistics(
            networks,
            crops,
            samples,
            batch=recipe.batch.target,
            device=setup.device,
            seen=watched(progress, stop, folder, shared=False),
        )
    objective.train()
    log.info("batch norm uses the statistics of %d images of %s", len(samples), target.name)
