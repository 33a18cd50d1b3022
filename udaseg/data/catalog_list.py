"""Built-in datasets, which need no YAML by the user."""

from pathlib import Path

from udaseg.data.declaration import Declaration, read_declaration

_CATALOG = Path(__file__).parent / "catalog"


def builtin_names() -> list[str]:
    """Return the names of the built-in datasets, sorted."""
    return sorted(path.stem for path in _CATALOG.glob("*.yaml"))


def builtin(name: str) -> Declaration:
    """Return the declaration of a built-in dataset."""
    return read_declaration(_CATALOG / f"{name}.yaml", builtin=True)
