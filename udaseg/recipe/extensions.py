"""What other installed packages add to a recipe: sections of regularizers, and package names."""

import re
import types
import typing
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from udaseg.documents import Document, ListNode, MappingNode, ScalarNode, is_null
from udaseg.errors import EnvironmentFault
from udaseg.recipe.hints import key_hint
from udaseg.recipe.methods import SelfTraining, built_in_regularizers
from udaseg.recipe.schema import BACKBONES, PACKAGE_NAME, TIMM_PREFIX, Recipe
from udaseg.text import did_you_mean, instead, shortened
from udaseg.validation import field_type, validate

if TYPE_CHECKING:
    from udaseg.plugins import Plugin


def report_missing_packages(document: Document) -> bool:
    """Add an error for each package that the recipe names and that is not installed.

    Returns:
        Whether there is one. Then names of plug-ins can be unknown because of it.
    """
    _, node = document.root.entries.get("packages", ("", None))
    items = node.items if isinstance(node, ListNode) else []
    names = [item for item in items if isinstance(item, ScalarNode)]
    names = [name for name in names if re.fullmatch(PACKAGE_NAME, name.text)]
    missing = [name for name in names if not _is_installed(name.text)]
    for name in missing:
        problem = f"the recipe needs the package '{name.text}', which is not installed; install it"
        document.problems.add(name.position, "packages", problem)
    return bool(missing)


def plugin_settings(document: Document, *, packages_missing: bool) -> dict[str, Any]:
    """Take the settings of plug-ins out of `method.regularizers`, and return them by name.

    Args:
        document: The recipe; `method.regularizers` is empty afterwards.
        packages_missing: Packages are missing, so an unknown plug-in is no error of its own.

    Raises:
        EnvironmentFault: A package is broken.
    """
    _, method = document.root.entries.get("method", ("", None))
    entries = method.entries if isinstance(method, MappingNode) else {}
    position, node = entries.get("regularizers", ("", None))
    if not isinstance(node, MappingNode):
        return {}
    entries["regularizers"] = (position, MappingNode({}, node.position))
    settings: dict[str, Any] = {}
    for name, (position, child) in node.entries.items():
        key = f"method.regularizers.{name}"
        section = None if is_null(child) else _regularizer_section(name)
        if section is not None and isinstance(child, MappingNode):
            part = Document(MappingNode(child.entries, position), document.problems)
            settings[name] = validate(section, part, key, key_hint=key_hint, yaml_1_1=True)
        elif section is not None:
            document.problems.add(position, key, "must be a section")
        elif not is_null(child) and not packages_missing:
            document.problems.add(position, key, _unknown_regularizer(name))
    return settings


def _regularizer_section(name: str) -> type | None:
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
    for field_name in _unreadable_fields(section):
        raise EnvironmentFault(
            f"package {plugin.package}: the regularizer '{name}' has a setting '{field_name}' of a "
            "type that recipes cannot hold; they hold str, int, float, bool, Literal, tuple, a "
            "frozen dataclass, and X | None"
        )
    return section


def _unreadable_fields(section: type) -> list[str]:
    """Return the fields of a dataclass, and of those in it, whose types a recipe cannot hold."""
    hints = typing.get_type_hints(section, include_extras=True)
    return [part.name for part in fields(section) if not _is_readable(hints[part.name])]


def _is_readable(annotation: Any) -> bool:
    expected = field_type(annotation).type
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return all(isinstance(each, str | int) for each in arguments)
    if origin in (typing.Union, types.UnionType, tuple):
        return all(each is Ellipsis or _is_readable(each) for each in arguments)
    if isinstance(expected, type) and is_dataclass(expected):
        return not _unreadable_fields(expected)
    return expected in (str, int, float, bool)


def _unknown_regularizer(name: str) -> str:
    """Return the error for a name that no installed package has, with the name that was meant."""
    from udaseg.plugins import list_plugins

    built_in = built_in_regularizers()
    others = [plugin.name for plugin in list_plugins("udaseg.regularizers")]
    hint = did_you_mean(name, [*others, *built_in])
    meant = "" if hint is None else f"; did you mean '{hint}'?"
    if hint in built_in:
        meant = f"; a built-in one is written as method.{hint}"
    return f"no installed package has this regularizer{meant}"


def unknown_backbone(name: str) -> str | None:
    """Return the error for a backbone that is neither built in nor of an installed package.

    None if it is known, or a name of timm, which is asked when the network is built.
    """
    if name == TIMM_PREFIX:
        return f"write a name of timm after {TIMM_PREFIX}, such as {TIMM_PREFIX}convnext_tiny"
    if name in BACKBONES or name.startswith(TIMM_PREFIX) or _backbone(name) is not None:
        return None
    from udaseg.plugins import list_plugins

    others = [plugin.name for plugin in list_plugins("udaseg.backbones")]
    meant = instead(did_you_mean(name, [*BACKBONES, *others]))
    listed = ", ".join([*BACKBONES, f"{TIMM_PREFIX}NAME"])
    return f"unknown '{shortened(name)}'; {meant}choose one of {listed}"


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
