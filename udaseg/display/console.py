"""The console of the commands: what it prints can be shown on any terminal."""

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.measure import Measurement
from rich.segment import Segment

from udaseg.text import printable


def open_console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Return a console that escapes control, direction and invisible characters."""
    console = Console(stderr=stderr, soft_wrap=soft_wrap, highlight=False)
    console.push_render_hook(_Escape())
    return console


class _Escape(RenderHook):
    """Escapes the text of everything that a console renders."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    """A renderable with the text of its segments escaped."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._renderable)
