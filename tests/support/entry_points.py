"""Plug-ins that seem to be installed, without a package."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from udaseg import plugins
from udaseg.recipe.contrast import Projector

PACKAGE = "udaseg-gram"


@dataclass(frozen=True)
class GramSpec:
    """Settings of `Gram`."""

    weight: Annotated[float, Ge(0)]
    kind: Literal["linear", "cosine"]
    layers: tuple[Annotated[int, Ge(1)], ...] = (1,)
    momentum: Annotated[float, Interval(ge=0, le=1)] | None = None
    projector: Projector | None = None


class Gram:
    """What an entry point of `udaseg.regularizers` refers to."""

    spec_class = GramSpec


class FakeEntryPoint:
    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value, self.dist = name, repr(value), SimpleNamespace(name=PACKAGE)
        self._value = value

    def load(self) -> Any:
        return self._value


def install(monkeypatch: Any, found: dict[tuple[str, str], Any]) -> list[str]:
    """Replace what is installed by `found`, (group, name) -> object of the package `PACKAGE`.

    Returns:
        The groups that were looked up, filled while the test runs.
    """
    looked_up: list[str] = []

    def entry_points(*, group: str) -> list[FakeEntryPoint]:
        looked_up.append(group)
        return [FakeEntryPoint(name, value) for (g, name), value in found.items() if g == group]

    def distribution(name: str) -> object:
        if name != "torch" and (name != PACKAGE or not found):
            raise PackageNotFoundError(name)
        return object()

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    monkeypatch.setattr(plugins, "distribution", distribution)
    return looked_up
