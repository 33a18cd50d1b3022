"""Backbones, regularizers and label formats of other installed packages.

A package offers them as entry points, in the groups `udaseg.backbones`, `udaseg.regularizers` and
`udaseg.label_formats`. Entry points are read only for a name that is not built in.
"""

import hashlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from udaseg.errors import EnvironmentFault

Group = Literal["udaseg.backbones", "udaseg.regularizers", "udaseg.label_formats"]


@dataclass(frozen=True)
class Plugin:
    """A named object of an installed package."""

    name: str  # in recipes and dataset YAML
    package: str  # as pip knows it
    _entry: EntryPoint

    def fingerprint(self) -> str:
        """Return a digest that changes with the version of the package or the file of the object.

        Only a package around the module of the object is imported, not the module.
        """
        version = "" if self._entry.dist is None else self._entry.dist.version
        try:
            spec = find_spec(self._entry.module)
        except Exception:  # noqa: BLE001  # the package around it can fail in any way
            spec = None
        code = b""
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            code = Path(spec.origin).read_bytes()
        return hashlib.sha256(f"{self.package} {version} ".encode() + code).hexdigest()

    def load(self) -> Any:
        """Import and return the object."""
        try:
            return self._entry.load()
        except Exception as error:
            raise EnvironmentFault(
                f"package {self.package}: cannot import {self._entry.value} for '{self.name}' "
                f"({type(error).__name__}: {error}); update or reinstall the package"
            ) from error


def list_plugins(group: Group) -> list[Plugin]:
    """Return the installed plug-ins of a group, sorted by name."""
    plugins = [
        Plugin(entry.name, entry.dist.name if entry.dist is not None else "?", entry)
        for entry in entry_points(group=group)
    ]
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.package))


def find_plugin(group: Group, name: str) -> Plugin | None:
    """Return the plug-in of this name, or None if no installed package has one."""
    matches = [plugin for plugin in list_plugins(group) if plugin.name == name]
    packages = sorted({plugin.package for plugin in matches})
    if len(packages) > 1:
        raise EnvironmentFault(
            f"'{name}' is in several packages: {', '.join(packages)}; uninstall all but one"
        )
    return matches[0] if matches else None


def is_installed(package: str) -> bool:
    """Return whether a package is installed."""
    try:
        distribution(package)
    except (PackageNotFoundError, ValueError):
        return False
    return True
