"""Checks what settings of a recipe must fulfil together. Bounds of one field are at the field."""

import math
from collections.abc import Iterator

from udaseg.recipe import methods
from udaseg.recipe.choices import DEVICE, DEVICES
from udaseg.recipe.methods import SelfTraining, Staged, StageSpec
from udaseg.recipe.schema import BACKBONES, RESNETS, TIMM_PREFIX, Recipe, Source

Problems = Iterator[tuple[str, str]]
"""(dotted key, what it must be) of every value that contradicts another one."""

_DISCRIMINATOR_STRIDE = 32


def recipe_problems(recipe: Recipe) -> list[tuple[str, str]]:
    """Return (dotted key, what it must be) for every value that contradicts another one."""
    rules = (
        *(_domains, _networks, _machine, _expected, _stages, _projectors, _target_statistics),
        *(_mixing, _crops, _repeated, _frozen, _adapters),
    )
    return [problem for rule in rules for problem in rule(recipe)]


def _domains(recipe: Recipe) -> Problems:
    cell = recipe.model.output_stride
    for section, domain in (("source", recipe.source), ("target", recipe.target)):
        side = min(domain.crop)
        yield from _unless(side >= cell, f"{section}.crop", f"one cell ({cell} px) or more", side)
        yield from _unless_rising(f"{section}.scale", domain.scale)
    pixels = recipe.source.crop[0] * recipe.source.crop[1]
    least = recipe.source.rare_class.min_crop_pixels
    holds = recipe.source.sampling != "rare_class" or least <= pixels
    must = f"at most {pixels}, the pixels of a crop"
    yield from _unless(holds, "source.rare_class.min_crop_pixels", must, least)
    yield from _several_sets(recipe.source)
    sampling = recipe.target.sampling
    must = "uniform, because the classes of target images are unknown"
    yield from _unless(sampling == "uniform", "target.sampling", must, sampling)


def _networks(recipe: Recipe) -> Problems:
    """Yield settings of torchvision's ResNets for other backbones."""
    model = recipe.model
    resnet = model.backbone in RESNETS
    must = f"false for {model.backbone}: only {', '.join(RESNETS)} can round up"
    yield from _unless(resnet or not model.ceil_pool, "model.ceil_pool", must, "true")
    holds = resnet or model.first_dilation == "own"
    must = f"own for {model.backbone}: only {', '.join(RESNETS)} have the other"
    yield from _unless(holds, "model.first_dilation", must, model.first_dilation)
    holds = model.backbone in RESNETS[1:] or model.stride_in == "3x3"
    must = f"3x3 for {model.backbone}: only {', '.join(RESNETS[1:])} have bottlenecks"
    yield from _unless(holds, "model.stride_in", must, model.stride_in)
    holds = model.input == "imagenet" or model.weights not in ("pretrained", "imagenet")
    must = f"imagenet with model.weights={model.weights}: these weights were trained so"
    yield from _unless(holds, "model.input", must, model.input)
    from_timm = model.backbone.startswith(TIMM_PREFIX) or BACKBONES.get(model.backbone) == "timm"
    must = f"0 for {model.backbone}: only networks of timm have it"
    yield from _unless(from_timm or model.drop_path == 0, "model.drop_path", must, model.drop_path)


def _several_sets(source: Source) -> Problems:
    """Yield what does not fit to the number of data sets of a source."""
    count, listed = len(source.sets), source.data if isinstance(source.data, tuple) else None
    holds = listed is None or len(set(listed)) == len(listed) > 1
    yield from _unless(holds, "source.data", "one data set, or different ones", list(listed or ()))
    for name in ("resize_each", "shares"):
        given = len(getattr(source, name))
        must = (
            f"one for each of the {count} data sets" if count > 1 else "left out with one data set"
        )
        fits = not given or given == count > 1
        yield from _unless(fits, f"source.{name}", must, given)
    for name in ("bits", "bands"):
        holds = count == 1 or getattr(source, name) is None
        must = f"null with several data sets; write `{name}` in the YAML of the set"
        yield from _unless(holds, f"source.{name}", must, getattr(source, name))


def _machine(recipe: Recipe) -> Problems:
    machine, batch = recipe.machine, recipe.batch
    is_device = DEVICE.fullmatch(machine.device) is not None
    yield from _unless(is_device, "machine.device", DEVICES, machine.device)
    compatible = not (machine.compile and machine.activation_checkpointing)
    must = "false with machine.activation_checkpointing: enable only one of them"
    yield from _unless(compatible, "machine.compile", must, "true")
    parts = machine.micro_batches
    even = batch.source % parts == batch.target % parts == 0
    must = "a divisor of batch.source and of batch.target"
    yield from _unless(even, "machine.micro_batches", must, parts)
    has_teacher = isinstance(recipe.method, SelfTraining)
    must = "another criterion, because the method has no teacher"
    holds = has_teacher or machine.keep_best != "teacher"
    yield from _unless(holds, "machine.keep_best", must, machine.keep_best)


def _expected(recipe: Recipe) -> Problems:
    if recipe.expected is not None:
        yield from _unless_rising("expected.miou", recipe.expected.miou)
    if isinstance(recipe.method, SelfTraining):
        sigma = recipe.method.augmentation.blur_sigma
        yield from _unless_rising("method.augmentation.blur_sigma", sigma)
        if (regional := recipe.method.regional) is not None:
            yield from _unless_rising("method.regional.square_share", regional.square_share)


def _projectors(recipe: Recipe) -> Problems:
    """Yield every regularizer that needs a projector when another one has it already."""
    if not isinstance(recipe.method, SelfTraining):
        return
    specs = methods.regularizer_specs(recipe.method)
    projecting = [name for name in specs if getattr(specs[name], "projector", None) is not None]
    for name in projecting[1:]:
        key = f"regularizers.{name}" if name in recipe.method.regularizers else name
        must = f"used without {projecting[0]}, which has its own projector"
        yield from _unless(False, f"method.{key}", must, "both")


def _stages(recipe: Recipe) -> Problems:
    if not isinstance(recipe.method, Staged):
        return
    stages = recipe.method.stages
    total, names = sum(stage.share for stage in stages), [stage.name for stage in stages]
    must = f"shares that add up to 1 (method.stages.{names[0]}.share)"
    yield from _unless(abs(total - 1) < 1e-6, "method.stages", must, round(total, 6))
    for number, stage in enumerate(stages):
        key = f"method.stages[{number}]"
        is_unique = names.count(stage.name) == 1
        yield from _unless(is_unique, f"{key}.name", "a unique name", repr(stage.name))
        yield from _unused_settings(stage, key)
        yield from _stage_labels(stage, number, key)
        if stage.target is not None:
            yield from _unless_rising(f"{key}.target.scale", stage.target.scale)
    begin = 0
    for number, end in enumerate(methods.stage_ends(recipe.method, recipe.steps)):
        shown = f"{recipe.steps}, which leaves no step for method.stages[{number}]"
        yield from _unless(end > begin, "steps", "enough to give each stage a step", shown)
        begin = end


def _unused_settings(stage: StageSpec, key: str) -> Problems:
    """Yield settings for images that the stage does not use, or that belong to the whole run."""
    kind = stage.objective.kind
    if isinstance(stage.objective, methods.RunMethod) and stage.objective.target_statistics:
        problem = "must be left out: set it for the whole run, as method.target_statistics"
        yield f"{key}.objective.target_statistics", problem
    if isinstance(stage.objective, methods.PrototypeAlignment):
        anchor = stage.objective.prototypes.anchor
        must = "source in a stage; self-training has frozen ones"
        yield from _unless(anchor == "source", f"{key}.objective.prototypes.anchor", must, anchor)
    for name in ("target", "target_jitter"):
        if getattr(stage, name) is not None and kind == "source_only":
            yield f"{key}.{name}", f"must be left out: {kind} uses no target images"
    for name in ("source_jitter", "source_sampling"):
        if getattr(stage, name) is not None and kind == "self_distillation":
            yield f"{key}.{name}", f"must be left out: {kind} uses no source images"


def _stage_labels(stage: StageSpec, number: int, key: str) -> Problems:
    labelled = methods.PrototypeAlignment | methods.SelfDistillation
    needs_labels = isinstance(stage.objective, labelled)
    if needs_labels and stage.pseudo_labels is None:
        yield f"{key}.pseudo_labels", "must be given: this objective trains on pseudo-labels"
    if not needs_labels and stage.pseudo_labels is not None:
        yield f"{key}.pseudo_labels", "must be left out: this objective uses no pseudo-labels"
    labels = stage.pseudo_labels
    given = labels is not None and labels.folder is not None
    if needs_labels and number == 0 and not (stage.objective.kind == "self_distillation" and given):
        problem = "must not come first: no earlier stage can create its pseudo-labels"
        may = "; only self_distillation may, with labels of another tool (pseudo_labels.folder)"
        yield f"{key}.objective", problem + may
    if labels is not None:
        yield from _label_settings(labels, f"{key}.pseudo_labels")


def _label_settings(labels: methods.PseudoLabelling, key: str) -> Problems:
    """Yield settings that labels of the student lack, or that labels of a folder have too many."""
    for name in ("quantile", "cap", "resize"):
        value = getattr(labels, name)
        if labels.folder is not None and value is not None:
            yield f"{key}.{name}", "must be left out (null): the labels are those of the folder"
        if labels.folder is None and value is None and name != "resize":
            yield f"{key}.{name}", "must be given, or else a folder of labels"


def _target_statistics(recipe: Recipe) -> Problems:
    method, norms = recipe.method, recipe.model.batch_norm
    if isinstance(method, Staged):
        norms = method.stages[-1].batch_norm or norms
    if method.target_statistics > 0 and norms == "frozen":
        problem = "batch_norm is frozen, so its weights were learned for other statistics"
        yield "method.target_statistics", f"must be 0: {problem}"


def _mixing(recipe: Recipe) -> Problems:
    """Yield batch and crop sizes that prevent ClassMix, and regions larger than the crop."""
    if not isinstance(recipe.method, SelfTraining):
        return
    batch, crop = recipe.batch, recipe.source.crop
    must = "ClassMix pastes one source image onto each target image"
    if batch.source != batch.target:
        problem = f"must equal batch.source: {must}, got {batch.target} and {batch.source}"
        yield "batch.target", problem
    same = "the same as source.crop: source pixels are pasted onto target images"
    whole = recipe.target.crop
    if recipe.method.target_crop.tries == 0:
        yield from _unless(crop == whole, "target.crop", same, whole)
    else:
        holds = crop[0] <= whole[0] and crop[1] <= whole[1]
        must = f"at least {list(crop)}, source.crop, of which method.target_crop takes a part"
        yield from _unless(holds, "target.crop", must, list(whole))
    rows = recipe.method.mixing.ignore_rows
    must = f"fewer rows than the {crop[0]} of a crop"
    yield from _unless(sum(rows) < crop[0], "method.mixing.ignore_rows", must, list(rows))
    scale = recipe.method.teacher.scale or 1
    smallest = min(1, math.ceil(200 * recipe.model.output_stride / min(crop)) / 100)
    must = f"at least {smallest}, so that the shorter side of a crop has two cells"
    yield from _unless(scale >= smallest, "method.teacher.scale", must, scale)
    if (masking := recipe.method.masking) is not None:
        must = f"at most {min(crop)}, the shorter side of a crop"
        holds = masking.kind == "token" or masking.size <= min(crop)
        yield from _unless(holds, "method.masking.size", must, masking.size)
    if (regional := recipe.method.regional) is not None:
        most = min(crop) // recipe.model.output_stride
        fits = f"at most {most} cells, the crop's shorter side"
        size = regional.region_size
        yield from _unless(size <= most, "method.regional.region_size", fits, size)


def _crops(recipe: Recipe) -> Problems:
    """Yield crops that are too small for the network or the discriminator."""
    least = _DISCRIMINATOR_STRIDE
    must = f"at least {least} px a side, one cell of the discriminator"
    crops = {"source.crop": recipe.source.crop, "target.crop": recipe.target.crop}
    stages = recipe.method.stages if isinstance(recipe.method, Staged) else ()
    kinds: list[tuple[str, dict[str, tuple[int, int]]]] = []
    if not stages:
        kinds.append((recipe.method.kind, crops))
    for number, stage in enumerate(stages):
        own = dict(crops)
        if stage.target is not None:
            del own["target.crop"]
            key, cell = f"method.stages[{number}].target.crop", recipe.model.output_stride
            own[key] = side = stage.target.crop
            yield from _unless(min(side) >= cell, key, f"at least {cell} px, one cell", side)
        kinds.append((stage.objective.kind, own))
    for kind, used in kinds:
        for key, crop in used.items():
            holds = kind != "adversarial" or min(crop) >= least
            yield from _unless(holds, key, must, crop)


def _repeated(recipe: Recipe) -> Problems:
    if recipe.optimizer.repeated == "released":
        kind, backbone = recipe.optimizer.kind, recipe.model.backbone
        is_released = kind == "sgd" and backbone in RESNETS
        must = "once: the releases list tensors of a ResNet several times, for SGD"
        got = f"released with {kind} and {backbone}"
        yield from _unless(is_released, "optimizer.repeated", must, got)


def _frozen(recipe: Recipe) -> Problems:
    """Yield what needs a part of the backbone to learn that does not."""
    model, method = recipe.model, recipe.method
    if model.train == "head" and model.frozen_stages > 0:
        must = "0 with model.train=head, which freezes all stages"
        yield from _unless(False, "model.frozen_stages", must, model.frozen_stages)
    if model.train == "head" or model.frozen_stages > 0:
        must = "0 with a frozen backbone, whose batch norms keep their statistics"
        count = method.target_statistics
        yield from _unless(count == 0, "method.target_statistics", must, count)
    if model.train == "head" and (names := _contrasts(recipe)):
        must = f"all with {', '.join(names)}, which teaches the backbone and not the head"
        yield from _unless(False, "model.train", must, model.train)


def _contrasts(recipe: Recipe) -> list[str]:
    """Return the keys of all regularizers and of stages that contrast features."""
    method, keys = recipe.method, []
    parts: list[tuple[str, object]] = [("method", method)]
    if isinstance(method, Staged):
        stages = enumerate(method.stages)
        parts = [(f"method.stages[{n}].objective", stage.objective) for n, stage in stages]
    for key, part in parts:
        if isinstance(part, SelfTraining):
            keys += [f"{key}.{name}" for name in methods.regularizer_specs(part)]
        elif isinstance(part, methods.PrototypeAlignment):
            keys.append(f"{key}.prototypes")
    return keys


def _adapters(recipe: Recipe) -> Problems:
    """Yield adapters without their way of training, and the other way round."""
    model = recipe.model
    if model.train == "adapters" and model.adapters is None:
        yield (
            "model.adapters",
            "must be given with model.train=adapters; add model.adapters={}, the defaults",
        )
    if model.train != "adapters" and model.adapters is not None:
        yield "model.adapters", f"must be left out (null) with model.train={model.train}"
    holds = model.train != "adapters" or model.frozen_stages == 0
    must = "0 with model.train=adapters, which are in all stages"
    yield from _unless(holds, "model.frozen_stages", must, model.frozen_stages)


def _unless(holds: bool, key: str, must: str, value: object) -> Problems:
    if not holds:
        yield key, f"must be {must}, got {value}"


def _unless_rising(key: str, pair: tuple[float, float]) -> Problems:
    yield from _unless(pair[0] <= pair[1], key, "[LOWEST, HIGHEST]", list(pair))
