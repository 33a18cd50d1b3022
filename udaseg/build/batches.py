"""From a recipe's domains to the batches of a leg: how images are read, drawn and cut."""

import logging
from dataclasses import replace
from pathlib import Path

from udaseg.data import (
    Crops,
    PreparedDataset,
    RareClasses,
    TrainingBatches,
    open_cache,
)
from udaseg.distributed import rank, world_size
from udaseg.errors import DataError
from udaseg.recipe import Domain, Leg, Recipe, legs

log = logging.getLogger(__name__)


def crops(spec: Domain, dataset: PreparedDataset, *, labelled: bool) -> Crops:
    """Return the training crops of one domain, from its cache where it has one of that size."""
    if labelled and any(sample.label is None for sample in dataset.split(spec.split)):
        raise DataError(
            f"{dataset.name}: split '{spec.split}' has images without labels; a source needs all"
        )
    return Crops(
        *(dataset, spec.split, spec.resize, spec.crop, spec.flip, labelled),
        cache=open_cache(dataset, spec.split, spec.resize, labelled=labelled),
    )


def batches(
    recipe: Recipe,
    source: PreparedDataset,
    target: PreparedDataset | None,
    leg: Leg | None = None,
    pseudo_labels: Path | None = None,
) -> TrainingBatches:
    """Return the batches of a leg on this rank; target labels are not even looked up."""
    leg = leg or legs(recipe)[0]
    from_source = from_target = None
    batch_target = recipe.batch.target
    if leg.reads_source:
        drawn = crops(recipe.source, source, labelled=True)
        numbers = recipe.source.rare_class
        rare = RareClasses(numbers.temperature, numbers.min_pixels, numbers.min_crop_pixels)
        from_source = replace(drawn, sampling=leg.source_sampling, rare=rare)
    if target is not None and leg.reads_target:
        spec, scale = recipe.target, (1.0, 1.0)
        if (own := leg.target) is not None:
            spec = replace(spec, resize=own.resize, crop=own.crop, flip=own.flip)
            scale, batch_target = own.scale, own.batch
        cut = crops(spec, target, labelled=False)
        from_target = replace(cut, scale=scale, pseudo_labels=pseudo_labels)
    made = TrainingBatches(
        from_source,
        from_target,
        batch_source=recipe.batch.source,
        batch_target=batch_target,
        steps=leg.end,
        seed=recipe.seed,
        rank=rank(),
        world_size=world_size(),
        begin=leg.begin,
        on_bad_sample=recipe.machine.on_bad_sample,
        worker_timeout=recipe.machine.worker_timeout,
    )
    if made.never_drawn and source.classes is not None:
        log.warning(
            "no image holds %d pixels of %s, so none is drawn for them; lower "
            "source.rare_class.min_pixels",
            recipe.source.rare_class.min_pixels,
            ", ".join(source.classes.names[number] for number in made.never_drawn),
        )
    return made
