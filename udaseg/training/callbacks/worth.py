"""Compares the network of a run with that before its adaptation, at the end of the run."""

import logging

from udaseg.distributed import on_rank_zero, without_peers
from udaseg.errors import CheckpointError, DataError
from udaseg.inference import trained_model
from udaseg.inference.trained_model import Model
from udaseg.models.segmenter import evaluation_mode
from udaseg.runs.best import warm_up_folder
from udaseg.runs.checkpoint import checkpoint_path
from udaseg.runs.manifests import digest_of_newest, list_manifests, step_of
from udaseg.runs.worth import Worth, write_worth
from udaseg.selection.candidates import EvaluationSets
from udaseg.selection.images import choose_images, choose_source_images
from udaseg.selection.worth import compare_networks
from udaseg.text import first_line
from udaseg.training.callbacks.callback import TrainingState
from udaseg.training.memory import DEVICE_ERRORS

log = logging.getLogger(__name__)
_MAX_IMAGES = 50
_TRAINED_PER_IMAGE = 25
"""Target images that a run trains on for each that it compares on, so that it takes little time."""


def write_worth_of_run(state: TrainingState) -> None:
    """Compare the trained student with that at the end of the warm-up, if the run has had one.

    Nothing that fails here ends the run: it is trained.
    """
    on_rank_zero(lambda: _write(state))


def _write(state: TrainingState) -> None:
    folder = state.context.folder
    warm_up = list_manifests(warm_up_folder(folder))
    if not warm_up or state.context.data.target is None:
        return
    if step_of(warm_up[0]) == state.step and state.recipe.method.target_statistics == 0:
        return  # the run is its warm-up
    state.context.refuse_lost_folder()
    try:
        with without_peers():
            worth = _compare(state)
    except (CheckpointError, DataError, *DEVICE_ERRORS) as error:
        log.warning(
            "the adapted network was not compared with the one before the adaptation (%s); do so "
            "with `udaseg select --worth-it %s`",
            first_line(error),
            folder,
        )
        return
    write_worth(folder, worth)


def _compare(state: TrainingState) -> Worth:
    context, recipe, student = state.context, state.recipe, state.setup.objective.student
    path = checkpoint_path(context.folder / "checkpoints", state.step)
    adapted = Model(
        student,
        context.data.classes,
        recipe,
        state.step,
        path,
        state.setup.device,
        sha256=digest_of_newest(path),
    )
    before = trained_model.load(warm_up_folder(context.folder), device=state.setup.device)
    with evaluation_mode(student):
        return compare_networks(adapted, before, _choose_sets(state), context.folder)


def _choose_sets(state: TrainingState) -> EvaluationSets:
    """Return images of the run's own data; no label of the target is opened."""
    data, recipe = state.context.data, state.recipe
    assert data.target is not None
    trained = recipe.steps * recipe.batch.target
    count = min(_MAX_IMAGES, max(1, trained // _TRAINED_PER_IMAGE))
    return EvaluationSets(
        choose_images(data.target, recipe.target.split, count),
        choose_source_images(data.source, recipe, count),
        None,
    )
