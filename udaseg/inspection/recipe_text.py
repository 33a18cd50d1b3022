"""The settings of a recipe as text, for `info` and the report."""

from udaseg.recipe.methods import SelfTraining, regularizer_specs
from udaseg.recipe.schema import Domain, Recipe, Validation
from udaseg.recipe.stages import stages_of
from udaseg.text import format_size


def method_text(recipe: Recipe) -> str:
    """Return what a run minimises: its loss terms, or its stages with their last steps."""
    stages = stages_of(recipe)
    if stages[0].name is not None:
        parts = [f"{stage.name} ({stage.objective.kind}) to {stage.end}" for stage in stages]
        return f"{recipe.method.kind}: {', '.join(parts)}"
    method = recipe.method
    terms = regularizer_specs(method) if isinstance(method, SelfTraining) else {}
    return " + ".join([method.kind, *terms])


def domain_text(domain: Domain | Validation) -> str:
    """Return a data set, its split, and the size of its images and crops."""
    if domain.data is None:
        return "nothing"
    parts = [domain.data, domain.split]
    if domain.resize is not None:
        parts.append(f"resized to {format_size(domain.resize)}")
    if isinstance(domain, Domain):
        parts.append(f"crops of {format_size(domain.crop)}")
    return ", ".join(parts)
