"""What a run may do after its last step: batch-norm statistics of the target."""

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
    recipe: Recipe, made: Fit, target: PreparedDataset, stop: StopSignal, folder: Path
) -> None:
    """Give student and teacher the batch-norm statistics of unlabelled target images.

    It hangs on the weights and the images alone, so that a run that is killed here does it again
    from its last checkpoint and ends the same.

    Args:
        recipe: Says how many images.
        made: What was trained.
        target: Unlabelled images.
        stop: Ends the pass when a signal came.
        folder: Of the run.

    Raises:
        Interrupted: A signal came; the checkpoint from before the pass stands.
    """
    whole = build.crops(recipe.target, target, labelled=False)
    places = evenly_spaced(len(whole.samples), recipe.method.target_statistics)
    samples = [whole.samples[place] for place in places]
    objective = made.objective
    networks = [objective.student]
    if isinstance(objective, SelfTraining):
        networks.append(objective.teacher.network)
    with WorkProgress("statistics of the target", len(samples)) as progress:
        adapt_statistics(
            *(networks, whole, samples),
            batch=recipe.batch.target,
            device=made.device,
            seen=watched(progress, stop, folder, shared=False),
        )
    objective.train()
    log.info("batch norm now has the statistics of %d images of %s", len(samples), target.name)
