"""Loggers: what they get, and that a record continues without doubled steps.

The programs themselves are run, each against its own local store, which its own reader reads.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tests.cli.running import udaseg
from tests.support.text_record import TextRecord
from tests.support.toy import TINY
from udaseg.cli import options
from udaseg.data.files.images import write_png
from udaseg.recipe import requirements
from udaseg.recipe.load import load, to_dict
from udaseg.recipe.stages import leaves
from udaseg.training.callbacks.loggers.wandb import _earlier_id
from udaseg.training.callbacks.metrics import MetricsFile
from udaseg.training.callbacks.previews import preview_path


def after(step):
    return SimpleNamespace(step=step)


class Training:
    """What a training loop tells the metrics file and a record in the same folder."""

    def __init__(self, folder):
        self.folder, self.callbacks = folder, (MetricsFile(folder), TextRecord(folder))

    def begin(self, step):
        for callback in self.callbacks:
            callback.begin(after(step))
        return self

    def line(self, step, **event):
        for callback in self.callbacks:
            callback.on_event(after(step), event or {"losses": {"total": float(step)}})

    def preview(self, step):
        picture = np.zeros((8, 8, 3), np.uint8)
        write_png(preview_path(self.folder, step), picture)
        self.callbacks[1].on_preview(after(step), picture)

    def rewind(self, step):
        for callback in self.callbacks:
            callback.on_rewind(after(step))

    def end(self, step):
        self.callbacks[1].end(after(step), None)


def record(folder):
    return [json.loads(line) for line in (folder / "record.txt").read_text().splitlines()]


def test_all_lines_and_the_preview_of_a_step_are_one_entry(tmp_path):
    run = Training(tmp_path).begin(0)
    run.line(1, losses={"total": float("nan"), "source": 2.0}, dropped={"in_a_row": 1}, stage="a")
    run.line(1, select={"infomax": 0.5})
    run.preview(1)
    run.preview(2)
    run.line(3)
    assert len(record(tmp_path)) == 2
    run.end(3)
    assert record(tmp_path) == [
        [1, {"losses/source": 2.0, "select/infomax": 0.5}, True],
        [2, {}, True],
        [3, {"losses/total": 3.0}, False],
    ]


def test_steps_that_are_run_again_after_a_kill_are_not_doubled_and_none_is_missing(tmp_path):
    killed = Training(tmp_path).begin(0)
    for step in range(1, 6):
        killed.line(step)
    assert [step for step, *_ in record(tmp_path)] == [1, 2, 3, 4]
    again = Training(tmp_path).begin(2)
    for step in range(3, 7):
        again.line(step)
    again.end(6)
    assert record(tmp_path) == [
        [step, {"losses/total": float(step)}, False] for step in range(1, 7)
    ]


def test_a_record_that_began_later_gets_the_earlier_steps_and_previews(tmp_path):
    metrics = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        metrics.on_event(after(step), {"losses": {"total": float(step)}})
    for step in (2, 9):  # the run was killed after step 9
        write_png(preview_path(tmp_path, step), np.zeros((8, 8, 3), np.uint8))
    run = Training(tmp_path).begin(2)
    run.end(2)
    assert record(tmp_path) == [[1, {"losses/total": 1.0}, False], [2, {"losses/total": 2.0}, True]]


def test_going_back_forgets_the_step_that_is_not_written(tmp_path):
    run = Training(tmp_path).begin(0)
    for step in (1, 2, 3, 4):
        run.line(step)
    run.rewind(2)
    run.line(3)
    run.line(4, losses={"total": 40.0})
    run.end(4)
    values = [(step, values["losses/total"]) for step, values, _ in record(tmp_path)]
    assert values == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_record_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    run = Training(tmp_path).begin(0)
    run.line(1)
    (tmp_path / "record.txt").mkdir()
    for step in (2, 3, 4):
        run.line(step)
    run.end(4)
    assert caplog.text.count("wandb: cannot write") == 1
    assert "the run continues without" in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("records", "is_offline", "expected", "left"),
    [
        ([], True, None, 0),
        (["offline-run-20260101_0-a"], True, "a", 0),
        (["offline-run-20260101_0-a"], False, "a", 0),
        (["run-20260101_0-a"], False, "a", 1),
        (["run-20260101_0-a"], True, None, 1),  # the server has steps that nobody can ask for
        (["offline-run-20260101_0-a/x.wandb.synced"], True, None, 1),
        (["offline-run-20260101_0-a/x.wandb.synced"], False, "a", 1),
        (["run-20260101_0-a", "offline-run-20260102_0-b"], False, "b", 1),
    ],
)
def test_a_record_of_wandb_is_continued_unless_only_a_server_knows_its_steps(
    tmp_path, records, is_offline, expected, left
):
    for name in records:
        (tmp_path / name).mkdir(parents=True)
    assert _earlier_id(tmp_path, is_offline=is_offline) == expected
    assert len(list(tmp_path.iterdir())) == left  # what is not uploaded is written anew


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_refused_before_anything_runs(
    root, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(requirements, "is_installed", lambda _: False)
    words = ["adapt", "toyland/dacs", *TINY, "--root", root, "--out", tmp_path / "run"]
    output = udaseg(*words, "--logger", name, cwd=tmp_path, expect=5)
    assert f"{name} is not installed; run pip install 'udaseg[{name}]'" in output.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_the_name_of_a_package_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "some_logger").mkdir()  # as W&B writes ./wandb
    monkeypatch.syspath_prepend(tmp_path)
    assert not requirements.is_installed("some_logger")
    assert requirements.is_installed("json")


@pytest.mark.parametrize(
    ("names", "old", "expected"),
    [
        (None, None, None),
        (["wandb", "mlflow", "wandb"], None, ["wandb", "mlflow"]),
        (["none"], None, []),
        (None, True, ["tensorboard"]),
        (None, False, []),
        (["wandb"], True, ["wandb", "tensorboard"]),
    ],
)
def test_the_options_say_which_loggers_a_run_has(names, old, expected, caplog):
    assert options.chosen_loggers(names, old) == expected
    assert ("is now --logger" in caplog.text) == (old is not None)


def test_a_logger_without_a_name_of_one_is_refused(tmp_path):
    words = ["adapt", "toyland/dacs", "--dry-run"]
    output = udaseg(*words, "--logger", "neptune", cwd=tmp_path, expect=2)
    assert "machine.loggers" in output.stderr
    assert "wandb" in output.stderr
    output = udaseg(*words, "--logger", "none", "--logger", "wandb", cwd=tmp_path, expect=2)
    assert "--logger none cannot be combined" in output.stderr


STEPS = 8
WORDS = [
    *("adapt", "toyland/dacs", *TINY, f"steps={STEPS}", "validation.data=null"),
    *("machine.log_every=1", "machine.checkpoint_every=4", "machine.preview_every=4"),
    *("--keep-best", "infomax"),
]
KILLED_AT = 6
KILLED = f"""
import os, signal
from udaseg.cli.main import main
from udaseg.training.callbacks.progress import Progress

class Killed(Progress):
    def on_event(self, state, event):
        if state.step == {KILLED_AT}:
            os.kill(os.getpid(), signal.SIGKILL)

Progress.on_event = Killed.on_event
main()
"""


@contextlib.contextmanager
def counted_connections():
    """Yield the environment of a process whose connections all go to a proxy, and its calls."""
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        calls.append(connection.recv(200))

        threading.Thread(target=serve, daemon=True).start()
        proxy = "http://{}:{}".format(*server.getsockname())
        hidden = ("PYTEST_CURRENT_TEST", "CI", "NO_PROXY", "no_proxy")  # they keep programs quiet
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        for name in ("https_proxy", "http_proxy", "all_proxy"):
            env |= {name: proxy, name.upper(): proxy}
        yield {**env, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}, calls


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """Return a run of two processes: one killed after step 5, one that resumed at step 4."""
    folder = tmp_path_factory.mktemp("trained")
    words = [*WORDS, "--root", str(root), "--out", "run"]
    for name in filter(requirements.is_installed, ("wandb", "mlflow")):
        words += ["--logger", name]
    with counted_connections() as (env, calls):

        def start(*command):
            command = [sys.executable, *command]
            return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)

        first = start("-c", KILLED, *words)
        assert first.returncode == -signal.SIGKILL, first.stderr
        again = start("-m", "udaseg", "adapt", "--resume", "run", "--root", str(root))
        assert again.returncode == 0, again.stderr
        assert "cannot write" not in again.stderr
    assert calls == []
    return folder / "run"


def expected_numbers(run):
    """Return the numbers of `metrics.jsonl` by tag: a list of (step, value)."""
    numbers = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        for key, value in leaves(event).items():
            if key not in ("step", "stage"):
                tag = key.replace(".", "/", 1) if "." in key else f"run/{key}"
                numbers.setdefault(tag, []).append((event["step"], value))
    assert len(numbers["losses/total"]) == STEPS
    assert [step for step, _ in numbers["select/infomax"]] == [4, 8]
    return numbers


def assert_is_preview(path, run, step):
    assert np.array_equal(cv2.imread(str(path)), cv2.imread(str(preview_path(run, step))))


@pytest.mark.slow
def test_weights_and_biases_has_the_run(request):
    pytest.importorskip("wandb", reason="pip install 'udaseg[wandb]'")
    run = request.getfixturevalue("trained")
    (log,) = run.glob("wandb/offline-run-*/run-*.wandb")
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    read = subprocess.run(reader, env=env, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in read.splitlines()]
    (started,) = (each["run"] for each in records if each["type"] == "run")
    assert started["project"] == "udaseg"
    config = started["config"]["update"]
    config.pop("_wandb")
    assert config == json.loads(json.dumps(plain_recipe(run)))
    rows = [each["history"]["item"] for each in records if each["type"] == "history"]
    assert [row["_step"] for row in rows] == list(range(1, STEPS + 1))
    expected = expected_numbers(run)
    numbers = {}
    for row in rows:
        for tag, value in row.items():
            if not tag.startswith(("_", "preview")):
                numbers.setdefault(tag, []).append((row["_step"], value))
    assert numbers == expected
    previews = {row["_step"]: row["preview.path"] for row in rows if "preview.path" in row}
    assert list(previews) == [4, 8]
    assert_is_preview(log.parent / "files" / previews[8], run, 8)


def plain_recipe(run):
    return to_dict(load(run / "recipe.yaml", stored=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of third-party packages
def test_mlflow_has_the_run(request, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'udaseg[mlflow]'")
    run = request.getfixturevalue("trained")
    monkeypatch.chdir(run.parent)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("udaseg")
    (stored,) = client.search_runs([experiment.experiment_id])
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "run")
    recipe = leaves(plain_recipe(run))
    assert stored.data.params == {key: str(value) for key, value in recipe.items()}
    expected = expected_numbers(run)
    number = stored.info.run_id
    histories = {tag: client.get_metric_history(number, tag) for tag in stored.data.metrics}
    numbers = {tag: [(each.step, each.value) for each in hist] for tag, hist in histories.items()}
    assert numbers == expected
    names = [each.path for each in client.list_artifacts(number, "images")]
    names = sorted(name for name in names if name.endswith(".png"))
    assert [name.split("+")[:3] for name in names] == [
        ["images/preview", "step", "4"],
        ["images/preview", "step", "8"],
    ]
    path = mlflow.artifacts.download_artifacts(run_id=number, artifact_path=names[1])
    assert_is_preview(path, run, 8)
