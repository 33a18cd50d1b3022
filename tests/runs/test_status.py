"""A run's records can be read back, whatever the values and wherever writing was interrupted."""

import json
import logging
import math
import re
from types import SimpleNamespace

import pytest

from udaseg.display.progress import WorkProgress
from udaseg.errors import RecipeError
from udaseg.files import write_json
from udaseg.runs.status import RunStatus, log_to_file
from udaseg.training.callbacks.metrics import MetricsFile


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(folder, step, **event):
    MetricsFile(folder).on_event(SimpleNamespace(step=step), event)


def go_back(folder, step):
    MetricsFile(folder).begin(SimpleNamespace(step=step))


@pytest.fixture
def screen(caplog):
    """Capture the package's messages at the level shown without -v or -q."""
    caplog.set_level(logging.INFO, logger="udaseg")
    return caplog


def test_every_event_is_one_line_and_there_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, 1, losses={"total": 0.5})
    assert lines(path) == [{"step": 1, "losses": {"total": 0.5}}]
    write(tmp_path, 2, name="two\nlines")
    assert [event["step"] for event in lines(path)] == [1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_becomes_null(tmp_path, value):
    write(tmp_path, 1, losses={"total": value, "parts": [value, 1.0]})
    write_json(tmp_path / "status.json", {"miou": value})
    assert lines(tmp_path / "metrics.jsonl")[0]["losses"] == {"total": None, "parts": [None, 1.0]}
    assert (tmp_path / "status.json").read_text() == '{\n  "miou": null\n}\n'


def test_a_resumed_log_has_rising_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (50, 100, 150, 200):
        write(tmp_path, step)
    go_back(tmp_path, 100)
    for step in (150, 200, 250):
        write(tmp_path, step)
    assert [event["step"] for event in lines(path)] == [50, 100, 150, 200, 250]


def test_a_line_that_a_kill_cut_off_is_dropped_wherever_it_was_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 50, "loss": 1.5}\n'
    last = b'{"step": 100, "loss": 1.25}\n'
    for cut in range(len(last) - 1):
        path.write_bytes(whole + last[:cut])
        go_back(tmp_path, 100)
        write(tmp_path, 150)
        assert [event["step"] for event in lines(path)] == [50, 150]


def test_truncating_a_log_that_is_not_there_does_nothing(tmp_path):
    go_back(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})
    with pytest.raises(TypeError):
        write_json(path, {"state": object()})
    write_json(path, {"state": "done"})
    assert json.loads(path.read_text()) == {"state": "done"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_the_status_tells_how_the_run_stands(tmp_path):
    path = tmp_path / "status.json"
    status = RunStatus(path)
    seen = []
    for tell in (
        lambda: status.write("running", step=0),
        lambda: status.write("interrupted", step=7, signal=15),
        lambda: status.write("failed", code=6, reason="diverged"),
        lambda: status.write("done", step=10, seconds=1.3, miou=math.nan),
    ):
        tell()
        seen.append(json.loads(path.read_text()))
    assert [event["state"] for event in seen] == ["running", "interrupted", "failed", "done"]
    assert (seen[1]["step"], seen[1]["signal"]) == (7, 15)
    assert (seen[2]["code"], seen[2]["reason"]) == (6, "diverged")
    assert (seen[3]["seconds"], seen[3]["miou"]) == (1.3, None)
    assert all(event["unix_time"] > 1.7e9 for event in seen)


def test_messages_reach_the_log_of_the_run_while_it_lasts(tmp_path):
    logger = logging.getLogger("udaseg.somewhere")
    with log_to_file(tmp_path / "train.log"):
        logger.warning("inside")
    logger.warning("outside")
    text = (tmp_path / "train.log").read_text()
    assert re.search(r"WARNING udaseg\.somewhere: inside\n$", text)
    assert "outside" not in text


def test_without_any_logging_the_file_has_all_and_stderr_the_warnings(
    tmp_path, monkeypatch, capsys
):
    package, logger = logging.getLogger("udaseg"), logging.getLogger("udaseg.somewhere")
    for each in (logging.root, package):
        monkeypatch.setattr(each, "handlers", [])
    monkeypatch.setattr(package, "level", logging.NOTSET)
    with log_to_file(tmp_path / "train.log"):
        logger.info("a step")
        logger.warning("careful")
    assert (package.handlers, package.level) == ([], logging.NOTSET)
    text = (tmp_path / "train.log").read_text()
    assert "a step" in text
    assert "careful" in text
    assert capsys.readouterr().err == "careful\n"


def test_piped_training_says_steps_rate_and_losses_every_n_steps(screen):
    with WorkProgress("step", 10, unit="", first=4, line_interval=2) as progress:
        for done in range(5, 11):
            losses = {"total": 1.25 * done, "mixed": 0.5} if done % 2 == 0 else None
            progress.update(done, values=losses, images_per_item=4)
    messages = [record.getMessage() for record in screen.records]
    assert [line.split()[1] for line in messages] == ["6/10", "8/10", "10/10"]
    assert all("img/s" in line and "ETA" in line for line in messages)
    assert "total 7.5  mixed 0.5" in messages[0]


def test_piped_work_says_its_end(screen):
    with WorkProgress("predict", 3) as progress:
        for _ in range(3):
            progress.advance()
    assert [record.getMessage().split()[:3] for record in screen.records] == [
        ["predict", "3/3", "images"]
    ]


def test_an_error_leaves_its_traceback_in_the_log_and_goes_on(tmp_path):
    with pytest.raises(ZeroDivisionError), log_to_file(tmp_path / "train.log"):
        1 / 0  # noqa: B018 (raises)
    text = (tmp_path / "train.log").read_text()
    assert "Traceback" in text
    assert "ZeroDivisionError" in text


def test_a_refused_resume_leaves_no_trace_in_the_log(tmp_path):
    with pytest.raises(RecipeError), log_to_file(tmp_path / "train.log"):
        raise RecipeError("--resume needs the same settings")
    assert (tmp_path / "train.log").read_text() == ""
