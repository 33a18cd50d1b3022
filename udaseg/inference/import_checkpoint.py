"""Turn a checkpoint of released code into a run folder, which `eval` and `predict` take."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from udaseg.data.datasets.catalog import resolve_declaration
from udaseg.data.labels.classes import ClassSpace, classes_to_dict
from udaseg.errors import CheckpointError, UsageError
from udaseg.files import sha256_of
from udaseg.models.released import ReleasedNetwork, read_released
from udaseg.recipe.library import find_recipe
from udaseg.recipe.load import load, to_dict
from udaseg.runs.checkpoint import Checkpoint, save_checkpoint
from udaseg.runs.folder import fill_run_folder, refuse_existing_run, writer_lock
from udaseg.runs.run import Run
from udaseg.runs.status import RunStatus

_CLASSES = {19: "cityscapes", 16: "synthia"}
"""Data sets whose classes the releases use, by the number of outputs."""


def import_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] = "gta5_cityscapes/source_only",
    classes: str | None = None,
    dilations: Sequence[int] | None = None,
    overwrite: bool = False,
) -> Run:
    """Make a run of a checkpoint of RCCR, DACS, AdaptSegNet or SPCL, and return it.

    Args:
        checkpoint: File of the released code; it is only read.
        out: Run folder; None is `runs/imported-` and the name of the file.
        recipe: Shipped recipe or file that says what the network was trained on, and at which size
            it sees images; its section `model` is replaced by that of the checkpoint.
        classes: Built-in data set or dataset YAML whose classes the outputs are; None is Cityscapes
            for 19 outputs and SYNTHIA for 16.
        dilations: Rates of the classifier's convolutions that are added; None is (6, 12) for
            AdaptSegNet's kind, and (6, 12, 18, 24) for SPCL. ADVENT and FDA add all four.
        overwrite: Replace an existing run.

    Raises:
        CheckpointError: The file is unreadable, or of another network; the message says what is in
            it.
        UsageError: The folder exists, or the number of classes is another one.
        RecipeError: There is no such recipe.
        DataError: There is no such data set.

    Example:
        run = udaseg.import_checkpoint("best_model.pth", out="runs/dacs")
        udaseg.evaluate(run, "cityscapes")
    """
    path = Path(checkpoint)
    folder = Path("runs") / f"imported-{path.stem}" if out is None else Path(out)
    refuse_existing_run(folder, overwrite=overwrite, can_resume=False)
    if path.suffix == ".pt" and path.with_suffix(".json").is_file():
        raise CheckpointError(
            f"{path}: is a checkpoint of udaseg; eval, predict and --init take it as it is"
        )
    spec = load(find_recipe(os.fspath(recipe)))
    network = read_released(path, dilations)
    space = _classes(path, network.num_classes, classes)
    spec = replace(
        spec,
        name=f"imported-{network.kind}",
        model=network.model,
        steps=network.step or spec.steps,
        expected=None,
    )
    origin = Checkpoint(path, network.step, {}, {}, {}, {}, {}, sha256=sha256_of(path))
    with writer_lock(folder):
        refuse_existing_run(folder, overwrite=overwrite, can_resume=False)
        fill_run_folder(folder, spec, ("udaseg", "import", str(path)), init=origin)
        save_checkpoint(
            folder / "checkpoints",
            step=network.step,
            objective=_as_in_checkpoints(network),
            optimizer=torch.optim.SGD(
                [{"params": network.student.parameters(), "name": "all", "base_lr": 0.0}], lr=0.0
            ),
            recipe=to_dict(spec),
            classes=classes_to_dict(space),
            files={},
            keep=1,
        )
        RunStatus(folder / "status.json").write("done", step=network.step)
    return Run(folder)


def _classes(path: Path, outputs: int, data: str | None) -> ClassSpace:
    """Return the classes of the outputs.

    Raises:
        UsageError: There are none of that number.
    """
    name = _CLASSES.get(outputs) if data is None else data
    table = None if name is None else resolve_declaration(name).table
    if table is None or len(table.classes) != outputs:
        raise UsageError(
            f"{path}: the network has {outputs} outputs"
            + ("" if table is None else f", but {name} has {len(table.classes)} classes")
            + "; give a data set with its classes, in the order of the outputs: --classes DATA"
        )
    return table.classes


def _as_in_checkpoints(network: ReleasedNetwork) -> nn.Module:
    """Return the networks under the names that checkpoints have."""
    objective = nn.Module()
    objective.student = network.student
    if network.teacher is not None:
        objective.teacher = nn.Module()
        objective.teacher.network = network.teacher
    return objective
