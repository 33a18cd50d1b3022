"""Scores on labelled target images during and after training; for reporting only."""

from udaseg.distributed import rank
from udaseg.errors import DivergedError, NotFiniteError
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.evaluation.evaluate import confusion_matrix, write_scores
from udaseg.evaluation.scores import summarise
from udaseg.inference.pipeline import InferenceOptions
from udaseg.models.segmenter import evaluation_mode
from udaseg.runs.scores import Scores
from udaseg.text import format_size
from udaseg.training.callbacks.callback import Callback, TrainingState


class ValidationScores(Callback):
    """Adds the student's mean IoU to the metrics, every `machine.validate_every` steps.

    The last step is left out: its scores are written by `write_final_scores`.
    """

    def on_step(self, state: TrainingState) -> None:
        """Score the student if it is due."""
        interval = state.recipe.machine.validate_every
        if interval and state.step % interval == 0 and state.step != state.recipe.steps:
            state.event["oracle_miou"] = _score_student(state).mean_iou()


def write_final_scores(state: TrainingState) -> tuple[float, Scores]:
    """Write the scores of the trained student; return its mean IoU over all classes, and them."""
    data, spec = state.context.data, state.recipe.validation
    assert data.validation is not None
    facts = {"weights": f"student at step {state.recipe.steps}", "input": format_size(spec.resize)}
    matrix = _score_student(state)
    scores = summarise(matrix, data.classes, data.validation, spec.split, facts)
    if rank() == 0:
        state.context.refuse_lost_folder()
        name = f"{data.validation.name}-{spec.split}"
        write_scores(state.context.folder / "eval" / name, scores)
    return matrix.mean_iou(), scores


def _score_student(state: TrainingState) -> ConfusionMatrix:
    """Score the student; the result is never used for selection."""
    data, spec = state.context.data, state.recipe.validation
    assert data.validation is not None
    student = state.setup.objective.student
    try:
        with evaluation_mode(student):
            return confusion_matrix(
                student,
                data.classes,
                data.validation,
                spec.split,
                InferenceOptions(resize=spec.resize, resampling=state.recipe.target.resampling),
                device=state.setup.device,
            )
    except NotFiniteError as error:
        raise DivergedError(f"step {state.step}: {error}") from error
