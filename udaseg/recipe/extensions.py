"""What other installed packages add to a recipe: sections of regularizers, and package names."""

from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING

from udaseg.errors import EnvironmentFault
from udaseg.recipe.bounds import unreadable_fields
from udaseg.recipe.methods import SelfTraining, built_in_regularizers
from udaseg.recipe.nodes import ErrorList, ListNode, MappingNode, ScalarNode
from udaseg.recipe.schema import BACKBONES, PACKAGE_NAME, TIMM_PREFIX, Recipe
from udaseg.text import did_you_mean

if TYPE_CHECKING:
    from udaseg.plugins import Plugin


def report_missing_packages(root: MappingNode, faults: ErrorList) -> bool:
    """Add an error for each package that the recipe names and that is not installed.

    Returns:
        Whether there is one. Then names of plug-ins can be unknown because of it.
    """
    _, node = root.entries.get("packages", ("", None))
    items = node.items if isinstance(node, ListNode) else []
    names = [item for item in items if isinstance(item, ScalarNode)]
    missing = [
        name for name in names if PACKAGE_NAME.matches(name.text) and not _is_installed(name.text)
    ]
    for name in missing:
        problem = f"the recipe needs the package '{name.text}', which is not installed; install it"
        faults.add(name.position, "packages", problem)
    return bool(missing)


def regularizer_section(name: str) -> type | None:
    """Return the dataclass of the settings of another package's regularizer, None if it is unknown.

    Raises:
        EnvironmentFault: The package cannot be imported, or its regularizer has no such dataclass.
    """
    plugin = _regularizer(name)
    if plugin is None:
        return None
    section = getattr(plugin.load(), "spec_class", None)
    if (
        not isinstance(section, type)
        or not is_dataclass(section)
        or not section.__dataclass_params__.frozen  # type: ignore[attr-defined]  # not in typeshed
    ):
        raise EnvironmentFault(
            f"package {plugin.package}: the regularizer '{name}' has no attribute spec_class with "
            "a frozen dataclass of its settings; update or reinstall the package"
        )
    for field_name in unreadable_fields(section):
        raise EnvironmentFault(
            f"package {plugin.package}: the regularizer '{name}' has a setting '{field_name}' of a "
            "type that recipes cannot hold; they hold str, int, float, bool, Literal, tuple, a "
            "frozen dataclass, and X | None"
        )
    return section


def unknown_regularizer(name: str) -> str:
    """Return the error for a name that no installed package has, with the name that was meant."""
    from udaseg.plugins import list_plugins

    built_in = built_in_regularizers()
    others = [plugin.name for plugin in list_plugins("udaseg.regularizers")]
    hint = did_you_mean(name, [*others, *built_in])
    meant = "" if hint is None else f"; did you mean '{hint}'?"
    if hint in built_in:
        meant = f"; a built-in one is written as method.{hint}"
    return f"no installed package has this regularizer{meant}"


def with_packages(recipe: Recipe) -> Recipe:
    """Return the recipe with the packages of every plug-in that it uses, sorted."""
    names = recipe.method.regularizers if isinstance(recipe.method, SelfTraining) else {}
    used = [*map(_regularizer, names), _backbone(recipe.model.backbone)]
    packages = {*recipe.packages, *(plugin.package for plugin in used if plugin is not None)}
    return replace(recipe, packages=tuple(sorted(packages)))


# udaseg.plugins imports importlib.metadata, which takes longer to import than the whole schema


def _regularizer(name: str) -> "Plugin | None":
    if name in built_in_regularizers():
        return None
    from udaseg.plugins import find_plugin

    return find_plugin("udaseg.regularizers", name)


def _backbone(name: str) -> "Plugin | None":
    if name in BACKBONES or name.startswith(TIMM_PREFIX):
        return None
    from udaseg.plugins import find_plugin

    return find_plugin("udaseg.backbones", name)


def _is_installed(package: str) -> bool:
    from udaseg.plugins import is_installed

    return is_installed(package)
