"""Progress: a bar that keeps count, rate and ETA at every width, and plain lines in a pipe."""

import logging
import re

import pytest

from tests.support.terminal import drawn_on_terminal, plain
from udaseg.display import progress
from udaseg.display.progress import WorkProgress

LOSSES = {"total": 1.6361, "source": 1.152, "confident": 0.4838, "uncertainty": 0.25}


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def last_frame(width, show):
    """Return the lines that a terminal shows when the bar ends."""
    frame = plain(drawn_on_terminal(width, show).split("\x1b[2K")[-1])
    return [line for line in frame.splitlines() if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bar_keeps_count_rate_and_eta_beside_figures(width, clock):
    def show():
        with WorkProgress("step", 250_000, unit="", first=123_400) as bar:
            clock[0] += 10
            bar.update(123_456, values=LOSSES, brief=("total", "confident"), images_per_item=4)

    line, figures = last_frame(width, show)
    eta = "6:16:37"  # (250,000 - 123,456) / 5.6 a second
    assert re.fullmatch(
        rf"step ━+\S* +123456/250000  22\.4 img/s  ETA {eta}(  0:00:10 elapsed)?", line.rstrip()
    )
    assert line.count("━") >= 6
    assert len(line.rstrip()) <= width
    assert figures.strip() == "total 1.636  confident 0.4838"


@pytest.mark.parametrize("width", [60, 80])
def test_a_long_name_is_cut_and_not_the_count(width, clock):
    def show():
        with WorkProgress(f"predict {'long' * 40}.mp4", 90_000, unit="frames") as bar:
            clock[0] += 10
            bar.update(45_000)

    (line,) = last_frame(width, show)
    assert line.startswith("predict lo")
    assert "…" in line
    assert "45000/90000  4500.0 frames/s  ETA 0:00:10" in line
    assert len(line.rstrip()) <= width


def test_figures_that_do_not_fit_are_left_out_whole(clock):
    def show():
        with WorkProgress("step", 9) as bar:
            clock[0] += 1
            bar.update(1, values={f"loss_{number}": 1 / 3 for number in range(9)})

    _, figures = last_frame(60, show)
    assert figures.split("  ")[1:] == [f"loss_{number} 0.3333" for number in range(4)]


def test_a_pipe_gets_early_lines_and_whole_ones(clock, caplog):
    caplog.set_level(logging.INFO, "udaseg")
    with WorkProgress("step", 60, unit="", line_interval=50, early_lines=(1, 2, 5, 10, 20)) as bar:
        for done in range(1, 61):
            clock[0] += 1
            bar.update(done, values=LOSSES, brief=["total"])
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[1] for line in lines] == [f"{n}/60" for n in (1, 2, 5, 10, 20, 50, 60)]
    assert lines[0] == (
        "step 1/60  1.0 img/s  ETA 0:00:59  total 1.636  source 1.152  confident 0.4838  "
        "uncertainty 0.25"
    )


def test_the_last_line_is_written_once(clock, caplog):
    caplog.set_level(logging.INFO, "udaseg")
    with WorkProgress("predict", 2) as bar:
        for done in (1, 2, 2):
            clock[0] += 1
            bar.update(done)
    assert [record.getMessage().split()[1] for record in caplog.records] == ["2/2"]
