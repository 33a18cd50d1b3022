"""Built-in datasets, which need no YAML by the user."""

from pathlib import Path

from udaseg.data.datasets.declaration import Declaration, RecordedPackage, read_declaration
from udaseg.errors import DataError
from udaseg.text import suggestion

_CATALOG = Path(__file__).parent / "catalog"


def builtin_names() -> list[str]:
    """Return the names of the built-in datasets, sorted."""
    return sorted(path.stem for path in _CATALOG.glob("*.yaml"))


def read_builtin(name: str) -> Declaration:
    """Return the declaration of a built-in dataset."""
    return read_declaration(_CATALOG / f"{name}.yaml", builtin=True)


DOCUMENTS = 1000
"""Approximate bytes of index and manifest per pair."""


def resolve_declaration(
    name: str, *, recorded_package: RecordedPackage | None = None
) -> Declaration:
    """Return the declaration of a dataset, given a YAML's path or a built-in name.

    Args:
        name: The path or name.
        recorded_package: See `read_declaration`.

    Raises:
        DataError: `name` is neither, or the YAML is invalid.
        EnvironmentFault: Several installed packages read its label format.
    """
    if name.endswith((".yaml", ".yml")):
        return read_declaration(Path(name), recorded_package=recorded_package)
    known = builtin_names()
    if name in known:
        return read_builtin(name)
    if Path(name).is_dir():
        raise DataError(
            f"{name}: is a folder; name a built-in data set, with --root for its folder, or write "
            "a dataset YAML with `udaseg init NAME IMAGES LABELS`"
        )
    hint = suggestion(name, known)
    instead = f"{hint} Use one of" if hint else "; use one of"
    raise DataError(
        f"{name}: no dataset of that name{instead} {', '.join(known)}, or a dataset YAML"
    )
