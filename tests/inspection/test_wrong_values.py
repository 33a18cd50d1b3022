"""Wrong types and numbers in a run's JSON files give a clear error, never an unexpected one."""

import itertools
import json
import shutil
from types import SimpleNamespace

import pytest

from tests.make_fixtures import unpack_run
from tests.support.wrong_values import wrong_documents
from udaseg.errors import UdasegError
from udaseg.files import mismatch, parse_json
from udaseg.inspection.info import info
from udaseg.inspection.report import report
from udaseg.inspection.verify import verify
from udaseg.runs import best
from udaseg.runs.calibration_file import read_temperature
from udaseg.runs.folder import newest_finished_run, read_num_processes
from udaseg.runs.run import Run
from udaseg.runs.status import RunStatus
from udaseg.training.callbacks.metrics import MetricsFile
from udaseg.training.resume import load_start_checkpoint

EVENT = {
    "step": 1,
    "losses": {"total": 0.5},
    "lr": {"head": 0.1},
    "gradient_norm": 1.5,
    "stage": "x",
    "alarms": {"one_class": "text"},
    "pseudo_labels": {"road": 1.0},
    "select": {"infomax": 0.2},
    "dropped": {"in_a_row": 1, "files": ["a"]},
    "oracle_miou": 0.3,
}
FILES = {
    "init.json": {"checkpoint": "x", "sha256": "y", "step": 3},
    "calibration.json": {"student": {"temperature": 1.5, "checkpoint": "x", "sha256": "y"}},
    "checkpoints/best-infomax/best.json": {"steps": {"4": {"value": 0.5, "collapsed": False}}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run with one of every file, but without a checkpoint, so that reading is fast."""
    folder = unpack_run("rccr", tmp_path_factory.mktemp("runs") / "rccr")
    for path in folder.glob("checkpoints/*"):
        path.unlink()
    (folder / "checkpoints/x.pt").touch()  # whose digest is compared with that of the calibration
    for name, document in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(document))
    status = {**json.loads((folder / "status.json").read_text()), "counts": {"dropped_steps": 2}}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.jsonl").write_text(json.dumps(EVENT) + "\n")
    return folder


def readers(folder, name):
    """Return what reads a file of a run."""
    read_all = [
        lambda: json.dumps(info(folder).to_json()),
        lambda: [check.message for check in verify(folder).checks],
        lambda: report(folder, out=folder.parent / "report.html", images=0),
    ]
    own = {
        "init.json": [lambda: load_start_checkpoint(folder)],
        "calibration.json": [lambda: read_temperature(folder / "checkpoints/x.pt", "student")],
        "status.json": [
            *read_all,
            lambda: Run(folder).finished,
            lambda: newest_finished_run(folder.parent),
            lambda: RunStatus(folder / "status.json").write("running", step=3),
        ],
        "environment.json": [lambda: read_num_processes(folder), read_all[2]],
        "metrics.jsonl": [
            *read_all[1:],
            lambda: MetricsFile(folder).begin(SimpleNamespace(step=3)),
        ],
        "best.json": [
            lambda: max(map(int, best.read_record(folder, "infomax")["steps"]), default=0)
        ],
        "scores.json": [
            *read_all,
            lambda: [score.to_markdown() + score.to_csv() for score in Run(folder).scores.values()],
        ],
    }
    return own.get(name.rpartition("/")[2], read_all)


def failures_of(run, name, documents):
    """Return the wrong documents that end a reader with an error that is not ours."""
    path, found = run / name, []
    before = path.read_bytes()
    for document, read in itertools.product(documents, readers(run, name)):
        path.write_text(document)
        try:
            read()
        except UdasegError:
            pass
        except Exception as error:  # noqa: BLE001
            found.append(f"{type(error).__name__} {error}: {document[:300]}")
    path.write_bytes(before)
    return found


NAMES = [
    *(*FILES, "status.json", "environment.json", "cost.json", "metrics.jsonl"),
    "eval/toyland-target-val/scores.json",
]


@pytest.mark.faults
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", NAMES)
def test_no_wrong_value_in_any_place_is_an_unexpected_error(run, name):
    assert failures_of(run, name, wrong_documents((run / name).read_text())) == []


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("metrics.jsonl", '{"step": 1e400}'),
        ("metrics.jsonl", '{"step": 1, "losses": []}'),
        ("metrics.jsonl", '{"step": 1, "losses": {"total": 1e308}}'),
        ("metrics.jsonl", '{"step": 1, "losses": {"a": 1.7e308, "b": -1.7e308}}'),
        ("metrics.jsonl", '{"step": 9000000000000000000, "losses": {"a": 1}}'),
        ("init.json", '{"checkpoint": "\\ud800", "sha256": "y", "step": 3}'),
        ("metrics.jsonl", '{"step": 1, "lr": {"head": []}, "alarms": "x"}'),
        ("status.json", '{"state": "done", "unix_time": 1e400, "seconds": "x", "counts": [1]}'),
        ("status.json", '{"state": [], "seconds": -1e400}'),
        ("environment.json", '{"processes": true}'),
        ("cost.json", '{"step": 1, "seconds": "1e999", "images": 1, "peak_memory_mib": 1}'),
        ("checkpoints/best-infomax/best.json", '{"steps": {"x": 1}}'),
        ("eval/toyland-target-val/scores.json", '{"classes": [1], "confusion": [[1e400]]}'),
    ],
)
def test_some_wrong_values(run, name, document):
    assert failures_of(run, name, [document]) == []


def test_a_damaged_file_is_told_of(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "metrics.jsonl").write_text('{"step": 1e400}\n')
    (copy / "status.json").write_text('{"state": 7}')
    told = " ".join(check.message for check in verify(copy).checks)
    assert "metrics.jsonl: cannot be read (the number 1e400 is not finite)" in told
    assert info(copy).to_json()["status"] == "unreadable"
    page = report(copy, out=tmp_path / "page.html", images=0).read_text()
    assert "1 lines of metrics.jsonl cannot be read" in page
    assert "status.json is damaged" in page


@pytest.mark.parametrize(
    "text", ["1e400", "-1e400", "NaN", "Infinity", "9" * 19, "[" * 9999, "x", r'["\uD800"]']
)
def test_json_that_no_number_of_python_or_numpy_can_hold_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_names_that_are_not_utf_8_and_whole_characters_are_read_from_json():
    for name in ("\udcff.png", "\U0001f600"):
        assert parse_json(json.dumps({"file": name})) == {"file": name}


def test_values_of_a_form_are_not_converted():
    assert mismatch({"a": 1}, dict[str, int]) == ""
    assert mismatch({"a": "1"}, dict[str, int]) == "a: Input should be a valid integer"
    assert mismatch({"a": True}, dict[str, int]) == "a: Input should be a valid integer"
    assert mismatch([], dict[str, int]) == "the value: Input should be a valid dictionary"
