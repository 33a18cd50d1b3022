"""Makes the pictures of the docs, with the tool itself: `python docs/images/make.py [--root DATA]`.

`terminal.svg` shows what `udaseg adapt` prints in a terminal, by rich's own export;
`adaptation.jpg` is the picture of `udaseg demo`: masks of the networks before and after adaptation.
Both take minutes on a CPU. `report-*.png` shows the report of a run of toyland, which `--run`
names, in chromium.
"""

import argparse
import io
import itertools
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
COLUMNS = 110
_CONTROL = re.compile(r"\x1b\[(\d*)A|\x1b\[2K|\x1b\[\?\d+[hl]|\r|\n")


def main() -> None:
    """Make the pictures that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        choices=["terminal", "adaptation", "report"],
        help="all by default, but for the report without --run",
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of prepared data")
    parser.add_argument("--run", type=Path, help="run of toyland whose report is shown")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "terminal" in (arguments.names or ["terminal"]):
            record_terminal(arguments.root, Path(folder))
        if "adaptation" in (arguments.names or ["adaptation"]):
            draw_adaptation(arguments.root, Path(folder))
        if arguments.run is not None and "report" in (arguments.names or ["report"]):
            show_report(arguments.run, arguments.root, Path(folder))


def record_terminal(root: Path, folder: Path) -> None:
    """Write what a short adaptation between the toy cities prints, as `terminal.svg`."""
    shown = "udaseg adapt toyland/rccr --steps 100"
    words = [*shlex.split(shown)[1:], "--root", root, "--out", folder / "toyland-rccr-s0"]
    screen = run_in_terminal([sys.executable, "-m", "udaseg", *map(str, words)])
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ {shown}", style="bold"))
    console.print(
        Text.from_ansi(screen.replace(f"{folder}/", "runs/").replace(f"{HERE.parents[1]}/", ""))
    )
    console.save_svg(str(HERE / "terminal.svg"), title="udaseg")


def run_in_terminal(command: list[str]) -> str:
    """Run a command in a terminal, and return the lines that are left on its screen."""
    master, slave = pty.openpty()
    variables = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=variables)
    os.close(slave)
    written = b""
    while True:
        try:
            written += os.read(master, 65536)
        except OSError:  # the command has ended
            break
    if process.wait() != 0:
        raise SystemExit(written.decode(errors="replace"))
    return left_on_screen(written.decode())


def left_on_screen(written: str) -> str:
    """Return the last state of the lines that a command writes, erases and writes again."""
    lines, row, start = [""], 0, 0
    for match in _CONTROL.finditer(written):
        lines[row] += written[start : match.start()]
        start = match.end()
        if match[1] is not None:
            row = max(row - int(match[1] or 1), 0)
        elif match[0] == "\x1b[2K":
            lines[row] = ""
        elif match[0] == "\n":
            row += 1
            lines += [""] * (row == len(lines))
    return "\n".join(lines).rstrip()


def draw_adaptation(root: Path, folder: Path) -> None:
    """Write the picture of the demo as `adaptation.jpg`."""
    udaseg("demo", "--root", root, "--out", folder / "demo")
    with Image.open(folder / "demo" / "side_by_side.png") as picture:
        picture.thumbnail((1400, 1400))
        picture.convert("RGB").save(HERE / "adaptation.jpg", quality=82)


def show_report(run: Path, root: Path, folder: Path) -> None:
    """Write the top of the report of a run at three widths, light and dark: `report-*.png`."""
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.support.browser import Browser

    page = folder / "report.html"
    udaseg("report", run, "--root", root, "--out", page)
    for width, mode in itertools.product((1400, 800, 400), ("light", "dark")):
        path, profile = HERE / f"report-{width}-{mode}.png", folder / f"{width}-{mode}"
        with Browser(profile, width=width, height=1300, dark=mode == "dark") as browser:
            browser.open(page)
            browser.picture(path)
        with Image.open(path) as picture:
            # this method keeps the colours of small things, such as the legend's
            colors = picture.convert("RGB").quantize(
                128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
            )
        colors.save(path, optimize=True)


def udaseg(*words: object) -> None:
    """Run a command of udaseg."""
    subprocess.run([sys.executable, "-m", "udaseg", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
