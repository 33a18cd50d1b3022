"""Build the batches of a stage from a recipe's domains: reading, sampling and cropping."""

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
    """Return the training crops of one domain, from a cache of that size if there is one."""
    if labelled and any(sample.label is None for sample in dataset.split(spec.split)):
        raise DataError(
            f"{dataset.name}: split '{spec.split}' has images without labels; "
            "a source needs labels for all"
        )
    return Crops(
        dataset,
        spec.split,
        spec.resize,
        spec.crop,
        spec.flip,
        labelled,
        cache=open_cache(dataset, spec.split, spec.resize, labelled=labelled),
    )


def batches(
    recipe: Recipe,
    source: PreparedDataset,
    target: PreparedDataset | None,
    leg: Leg | None = None,
    pseudo_labels: Path | None = None,
) -> TrainingBatches:
    """Return the batches of a stage on this rank; target labels are never read."""
    leg = leg or legs(recipe)[0]
    from_source = from_target = None
    batch_target = recipe.batch.target
    if leg.reads_source:
        source_crops = crops(recipe.source, source, labelled=True)
        rare_spec = recipe.source.rare_class
        rare = RareClasses(rare_spec.temperature, rare_spec.min_pixels, rare_spec.min_crop_pixels)
        from_source = replace(source_crops, sampling=leg.source_sampling, rare=rare)
    if target is not None and leg.reads_target:
        spec, scale = recipe.target, (1.0, 1.0)
        if (target_spec := leg.target) is not None:
            spec = replace(
                spec, resize=target_spec.resize, crop=target_spec.crop, flip=target_spec.flip
            )
            scale, batch_target = target_spec.scale, target_spec.batch
        target_crops = crops(spec, target, labelled=False)
        from_target = replace(target_crops, scale=scale, pseudo_labels=pseudo_labels)
    training_batches = TrainingBatches(
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
    if training_batches.never_drawn and source.classes is not None:
        log.warning(
            "no image has %d pixels of %s, so rare-class sampling never picks these classes; lower "
            "source.rare_class.min_pixels",
            recipe.source.rare_class.min_pixels,
            ", ".join(source.classes.names[number] for number in training_batches.never_drawn),
        )
    return training_batches
