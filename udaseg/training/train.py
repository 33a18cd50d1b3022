"""`udaseg train` and `udaseg adapt`: train a recipe into a run folder."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.datasets.joined import join_datasets
from udaseg.data.files.bit_depth import bits_of_files
from udaseg.data.open import hold_files, open_dataset
from udaseg.data.prepare.locate import prepared_folder
from udaseg.display.progress import LazyProgress
from udaseg.distributed import local_rank_zero_first, on_rank_zero, rank, world_size
from udaseg.errors import UsageError
from udaseg.failures import process_group
from udaseg.inference.run_data import open_run_data
from udaseg.recipe.library import find_network
from udaseg.recipe.load import from_dict, load, to_dict
from udaseg.recipe.request import (
    Overrides,
    changed_recipe,
    name_origin,
    override_words,
    requested_recipe,
)
from udaseg.recipe.requirements import chosen_loggers
from udaseg.recipe.schema import NAMED_WEIGHTS, Domain, Recipe
from udaseg.recipe.stages import adapts, stages_of
from udaseg.runs import folder as folder_module
from udaseg.runs.base import find_base
from udaseg.runs.checkpoint import Checkpoint, find_checkpoint
from udaseg.runs.folder import with_data_names, with_located_data
from udaseg.runs.leftovers import writing_in_run
from udaseg.runs.run import Run
from udaseg.runs.scores import Scores
from udaseg.runs.status import log_to_file
from udaseg.selection.candidates import EvaluationSets
from udaseg.training.callbacks.keep_best import open_criterion_sets
from udaseg.training.plan import (
    planned_data,
    print_memory_plan,
    print_plan,
    print_time_plan,
    scored_data,
)
from udaseg.training.resume import (
    find_resume_checkpoint,
    load_start_checkpoint,
    refuse_different_settings,
    refuse_lost_base,
)
from udaseg.training.setup import RunContext, RunData, build_setup, chosen_kernels, estimated_setup
from udaseg.training.stage_data import label_folder, refuse_missing_labels
from udaseg.training.stages import Runner

log = logging.getLogger(__name__)
_DEFAULTS = ("source_only", "rccr")
"""Recipes of `train` and `adapt` unless another is named."""

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Where a run takes its data and weights from, and how it is started.

    Attributes:
        root: Folder of the prepared data sets.
        resume: Continue the run in this folder, with its recipe.
        init: Start from the student of this run or checkpoint.
        overwrite: Replace an existing run.
        dry_run: Show only the plan and the memory estimate; needs no prepared data, writes nothing.
        fit_memory: Split steps into micro-batches until they fit in memory.
        source_only: Refuse a recipe that uses target images; `train` sets it.
        command: Command line of the user, stored in the run; None stores the Python function.
        recipe_path: File of a `Recipe`, for messages.
        on_finish: Called in the first process with each finished run and its final scores, if any.
        timed: With `dry_run`, also time a few steps.
    """

    root: StrPath = "data"
    resume: StrPath | None = None
    init: StrPath | None = None
    overwrite: bool = False
    dry_run: bool = False
    fit_memory: bool = False
    source_only: bool = False
    command: Sequence[str] | None = None
    recipe_path: StrPath | None = None
    on_finish: Callable[[Run, Scores | None], None] | None = None
    timed: bool = False


def train(
    recipe: StrPath | Recipe = "source_only",
    *,
    source: StrPath | Sequence[StrPath] | None = None,
    target: StrPath | None = None,
    steps: int | None = None,
    seed: int | None = None,
    network: StrPath | None = None,
    overrides: Mapping[str, object] | None = None,
    out: StrPath | None = None,
    options: TrainOptions | None = None,
) -> Run:
    """Train on the source alone, and return the run.

    Takes, reports, returns and raises what `adapt` does, but the recipe must not use target images;
    those of `target` are not read.

    Example:
        run = udaseg.train(source="my_city.yaml", steps=20_000)
    """
    options = replace(options or TrainOptions(), source_only=True)
    changes = everyday_options(source, target, steps, seed, network)
    return _train_recipe(recipe, changes, overrides, out, options, "udaseg.train")


def adapt(
    recipe: StrPath | Recipe = "rccr",
    *,
    source: StrPath | Sequence[StrPath] | None = None,
    target: StrPath | None = None,
    steps: int | None = None,
    seed: int | None = None,
    network: StrPath | None = None,
    overrides: Mapping[str, object] | None = None,
    out: StrPath | None = None,
    options: TrainOptions | None = None,
) -> Run:
    """Adapt to the unlabelled target, and return the run.

    Shows the plan of the run on stderr. Progress and messages go to the logger `udaseg`, and to
    `train.log` in the run folder. A signal ends the run after the current step, which is saved.
    Under torchrun this runs in each process; only rank 0 writes files and logs.

    Args:
        recipe: A method such as `rccr`, for the data given here; a shipped recipe such as
            `toyland/rccr`; a recipe file; or a `Recipe`.
        source: Labelled images: a prepared name or a dataset YAML, or a list of several.
        target: Unlabelled images: a prepared name, a dataset YAML or a folder of images.
        steps: Number of optimizer steps.
        seed: Random seed.
        network: A shipped network such as `dinov2_small`, or a network file, put over the recipe.
        overrides: Other settings, by dotted name: `{"optimizer.lr": 1e-4}`.
        out: Run folder; None takes one below `runs/`.
        options: Data, weights and start of the run. With `resume`, the recipe is that of the run.

    Returns:
        The run, trained and scored if the recipe has validation data.

    Raises:
        UsageError: Arguments contradict each other, or the run folder already exists.
        RecipeError: The recipe or an override is wrong.
        DataError: Data cannot be read.
        DivergedError: Training diverged; the last checkpoint is intact.
        Interrupted: A signal came; the last step is saved.

    Example:
        run = udaseg.adapt("rccr", source="toyland", target="my_photos", steps=2000)
        run.scores, run.checkpoints
        udaseg.adapt(options=udaseg.TrainOptions(resume=run))
    """
    changes = everyday_options(source, target, steps, seed, network)
    options = options or TrainOptions()
    return _train_recipe(recipe, changes, overrides, out, options, "udaseg.adapt")


def everyday_options(
    source: StrPath | Sequence[StrPath] | None = None,
    target: StrPath | None = None,
    steps: int | None = None,
    seed: int | None = None,
    network: StrPath | None = None,
) -> Overrides:
    """Return the options of the command line for these arguments of `adapt`."""
    if source is None or isinstance(source, str | os.PathLike):
        sources: str | list[str] | None = _path_text(source)
    else:
        sources = [os.fspath(name) for name in source]
    return Overrides(sources, _path_text(target), seed, steps, network=_path_text(network))


def _path_text(path: StrPath | None) -> str | None:
    return None if path is None else os.fspath(path)


def read_recipe(
    recipe: StrPath | Recipe,
    changes: Overrides,
    overrides: Mapping[str, object] | None,
    options: TrainOptions,
) -> tuple[Recipe, Path]:
    """Return the recipe that the arguments of `adapt` describe, and its file."""
    words = override_words(overrides or {})
    if isinstance(recipe, Recipe):
        path = Path(options.recipe_path or recipe.name)
        words = [*changes.overrides(), *words]
        network = None if changes.network is None else find_network(changes.network)
        if words or network is not None:
            return changed_recipe(recipe, words, path, network), name_origin(path, network)
        return from_dict(to_dict(recipe), str(path)), path  # checks values set with `replace`
    name = os.fspath(recipe)
    if options.resume is not None:
        named = [] if name in _DEFAULTS else [name]
        return requested_recipe([*named, *words], changes, name, resume=Path(options.resume))
    if isinstance(recipe, str) and _is_method(name):
        return requested_recipe(words, changes, name)
    if "=" in name:
        name = str(Path(name).absolute())  # so that it is not read as KEY=VALUE
    return requested_recipe([name, *words], changes, name)


def _is_method(name: str) -> bool:
    """Return whether a word names a method, rather than a shipped recipe or a file."""
    return "/" not in name and not name.endswith((".yaml", ".yml")) and not Path(name).is_file()


def _train_recipe(
    recipe: StrPath | Recipe,
    changes: Overrides,
    overrides: Mapping[str, object] | None,
    out: StrPath | None,
    options: TrainOptions,
    function: str,
) -> Run:
    if options.resume is not None and (
        options.init is not None or options.overwrite or out is not None
    ):
        raise UsageError("--resume cannot be combined with --init, --overwrite or --out")
    if options.resume is not None and folder_module.is_imported(Path(options.resume)):
        raise UsageError(folder_module.IMPORTED.format(run=options.resume))
    chosen, path = read_recipe(recipe, changes, overrides, options)
    if options.source_only and (chosen.method.kind != "source_only" or adapts(chosen)):
        raise UsageError(
            f"{path}: the recipe uses target images; run it with `udaseg adapt`, "
            "since `udaseg train` supports only source_only"
        )
    options = replace(options, recipe_path=path, command=options.command or [function])
    folder = Path(options.resume or out or folder_module.default_run_folder(chosen))
    machine = chosen.machine
    with chosen_kernels(machine), process_group(machine.device):
        _train(chosen, folder, options)
    return Run(folder)


def _train(recipe: Recipe, folder: Path, options: TrainOptions) -> None:
    """Train a recipe into a run folder, in each process of torchrun."""
    if options.fit_memory and world_size() > 1:
        raise UsageError(
            "--fit supports only one process; with several, set machine.micro_batches=2 or "
            "more to split the steps"
        )
    recipe, options = _resume_after_restart(recipe, folder, options)
    refuse_different_settings(recipe)
    chosen_loggers(recipe.machine)  # an error if one is not installed
    located = recipe if options.resume is None else with_located_data(recipe, folder)
    criterion_sets = None
    if options.dry_run:
        opened, data = planned_data(located, Path(options.root))
    else:
        opened, data, criterion_sets = _open_data(located, Path(options.root))
    recipe = with_data_names(opened, recipe)
    start = _start_checkpoint(options, folder)
    if options.resume is None:
        recipe = _on_base_of(recipe, start)
        refuse_missing_labels(recipe, data)  # a resumed run has its own copy
    else:
        refuse_lost_base(folder, recipe)
    first = stages_of(recipe)[0]
    labels = label_folder(folder, first)
    fetched = recipe.model.weights in NAMED_WEIGHTS
    build = estimated_setup if options.dry_run and fetched else build_setup
    setup = build(recipe, data.source, data.target, init=start, stage=first, pseudo_labels=labels)
    if rank() == 0:
        print_plan(recipe, str(options.recipe_path), setup, data, folder)
    if options.dry_run:
        if rank() == 0:
            print_memory_plan(recipe, setup, data)
            if options.timed:
                print_time_plan(setup)
        return
    with _claimed(folder, recipe, options, start) as is_here:
        checkpoint = None if options.resume is None else find_resume_checkpoint(folder, recipe)
        if rank() == 0:
            folder_module.write_origin(folder, options.command or ())
        _hold_data(recipe, data)
        context = RunContext(
            recipe, data, folder, checkpoint, options.fit_memory, criterion_sets, is_here
        )
        runner = Runner(context, setup)
        del setup  # the runner frees it before a later stage builds its own
        scores = runner.run()
    if rank() == 0 and options.on_finish is not None:
        options.on_finish(Run(folder), scores)


def _resume_after_restart(
    recipe: Recipe, folder: Path, options: TrainOptions
) -> tuple[Recipe, TrainOptions]:
    """Return recipe and options that resume the run if torchrun restarted its command."""
    if options.resume is not None or not on_rank_zero(
        lambda: folder_module.is_torchrun_restart(folder)
    ):
        return recipe, options
    stored = load(folder / "recipe.yaml", stored=True)
    log.warning("torchrun restarted: resuming %s from its last checkpoint", folder)
    return stored, replace(options, resume=folder)


def _open_data(recipe: Recipe, root: Path) -> tuple[Recipe, RunData, EvaluationSets | None]:
    """Return the data sets of a run, and the images that checkpoints are compared on, if any.

    The recipe that is returned has the bits of 16-bit images, which are decided here, and bands.
    """
    with local_rank_zero_first():
        sources = [open_dataset(name, root=root) for name in recipe.source.sets]
        target = open_dataset(recipe.target.data, root=root) if adapts(recipe) else None
    sources = [_with_form(each, recipe.source) for each in sources]
    if len(sources) == 1:  # those of several sets are in their indexes
        bits, bands = sources[0].bits or None, sources[0].bands
        recipe = replace(recipe, source=replace(recipe.source, bits=bits, bands=bands))
    if target is not None:
        target = _with_form(target, recipe.target)
        bits, bands = target.bits or None, target.bands
        recipe = replace(recipe, target=replace(recipe.target, bits=bits, bands=bands))
    with local_rank_zero_first():
        validation = _open_validation(recipe, root)
        criterion_sets = open_criterion_sets(recipe, root)
    if validation is None:
        recipe = replace(recipe, validation=replace(recipe.validation, data=None))
    return recipe, RunData(join_datasets(sources), target, validation), criterion_sets


def _data_paths(recipe: Recipe, root: Path) -> dict[str, str]:
    """Return the absolute paths of the data that the recipe names by a path."""
    scored = () if recipe.validation.data is None else (recipe.validation.data,)
    return {
        name: str(Path(name).absolute())
        for name in (*recipe.source.sets, *recipe.target.sets, *scored)
        if Path(name).exists() and prepared_folder(name, root) is None
    }


def _open_validation(recipe: Recipe, root: Path) -> PreparedDataset | None:
    """Return the data to score, if any.

    A run whose target is its source is scored on that set by default, if it has labels for it.
    """
    data = recipe.validation.data
    if data is None:
        return None
    return scored_data(open_run_data(recipe, data, root=root), recipe)


def _with_form(dataset: PreparedDataset, domain: Domain) -> PreparedDataset:
    """Return it with bands and bits: the recipe's, else its own, or the bits of its images."""
    dataset = replace(dataset, bands=domain.bands or dataset.bands)
    bits = dataset.bits if domain.bits is None else domain.bits
    if bits is None:  # a plain folder; all ranks must read it in the same way
        bits = on_rank_zero(lambda: _find_bits(dataset))
    return replace(dataset, bits=bits)


def _find_bits(dataset: PreparedDataset) -> int:
    samples = [sample for split in dataset.splits.values() for sample in split]
    with LazyProgress(f"16-bit images of {dataset.name}") as progress:
        paths = [dataset.image_path(sample) for sample in samples]
        return bits_of_files(paths, progress, dataset.bands)


def _hold_data(recipe: Recipe, data: RunData) -> None:
    """Hold all files that the run reads, so that it ends if one of them changes."""
    hold_files(data.source, recipe.source.split, labelled=True)
    if data.target is not None:
        hold_files(data.target, recipe.target.split, labelled=False)
    if data.validation is not None:
        hold_files(data.validation, recipe.validation.split, labelled=True)


def _start_checkpoint(options: TrainOptions, folder: Path) -> Checkpoint | None:
    """Return the checkpoint that the first stage starts from, if any.

    A resumed run has stored it: torchrun repeats `--init` when it restarts a run, and the file may
    have changed since.
    """
    if options.resume is not None:
        return load_start_checkpoint(folder)
    return None if options.init is None else find_checkpoint(Path(options.init))


def _on_base_of(recipe: Recipe, start: Checkpoint | None) -> Recipe:
    """Return the recipe of a run with adapters on the base weights of the run it starts from."""
    if recipe.model.adapters is None or start is None or start.base is None:
        return recipe
    weights = str(find_base(start.base, start.path))
    return replace(recipe, model=replace(recipe.model, weights=weights))


@contextlib.contextmanager
def _claimed(
    folder: Path, recipe: Recipe, options: TrainOptions, start: Checkpoint | None
) -> Iterator[Callable[[], bool]]:
    """Fill the run folder unless the run resumes; hold its lock and its log.

    Yields a function that returns, on the first rank, whether the folder is still there.
    """

    def claim() -> Callable[[], bool]:
        if options.resume is None:
            folder_module.refuse_existing_run(folder, overwrite=options.overwrite)
        is_here = stack.enter_context(folder_module.writer_lock(folder))
        if options.resume is None:
            # again: another process may have begun and ended a run since
            folder_module.refuse_existing_run(folder, overwrite=options.overwrite)
            folder_module.fill_run_folder(
                folder,
                recipe,
                options.command or (),
                init=start,
                data=_data_paths(recipe, Path(options.root)),
            )
        stack.enter_context(writing_in_run(folder))
        stack.enter_context(log_to_file(folder / "train.log"))
        return is_here

    with contextlib.ExitStack() as stack:
        is_here = on_rank_zero(claim)
        yield is_here if rank() == 0 else lambda: True
