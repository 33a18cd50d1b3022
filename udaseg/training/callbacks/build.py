"""The list of all callbacks of a run."""

from collections.abc import Callable
from pathlib import Path

from udaseg.recipe.choices import Logger
from udaseg.recipe.requirements import chosen_loggers
from udaseg.training.callbacks.callback import Callback
from udaseg.training.callbacks.checkpoints import Checkpoints
from udaseg.training.callbacks.collapse import CollapseWatch, StopOnCollapse
from udaseg.training.callbacks.cost import Cost
from udaseg.training.callbacks.keep_best import KeepBest
from udaseg.training.callbacks.loggers.mlflow import MLflow
from udaseg.training.callbacks.loggers.tensorboard import TensorBoard
from udaseg.training.callbacks.loggers.wandb import WandB
from udaseg.training.callbacks.metrics import Metrics, MetricsFile
from udaseg.training.callbacks.previews import Previews
from udaseg.training.callbacks.progress import Progress
from udaseg.training.callbacks.scores import ValidationScores
from udaseg.training.setup import RunContext

_LOGGERS: dict[Logger, Callable[[Path], Callback]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def build_callbacks(context: RunContext) -> tuple[Callback, ...]:
    """Return all that happens beside training, in the order in which it happens.

    A new callback is a file in this folder and a line here. A logger is a callback with `on_event`
    and `ranks = "zero"`; it gets every line of metrics, wherever it stands in the list.
    """
    recipe, folder, classes = context.recipe, context.folder, context.data.classes
    machine, sets = recipe.machine, context.criterion_sets
    watch = CollapseWatch()
    callbacks = (
        Cost(folder),  # first: it counts a step even if something below fails
        watch,
        ValidationScores() if context.data.validation is not None else None,
        Metrics(),  # the callbacks above add to the line that it gives to the loggers
        MetricsFile(folder),
        *(_LOGGERS[name](folder) for name in chosen_loggers(machine)),
        Previews(recipe, classes, folder),
        Progress(),
        StopOnCollapse(watch) if machine.stop_on_collapse else None,  # once the step is recorded
        Checkpoints(),
        KeepBest(recipe, sets, classes, folder) if sets is not None else None,
    )
    return tuple(callback for callback in callbacks if callback is not None)
