"""A stdout or stderr that is closed, full or gone changes neither results nor exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.running import udaseg
from tests.cli.test_fit import adapt, assert_same, tensors
from tests.support.toy import TINY

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
SICK = [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"]
WORDS = ["machine.log_every=1", "machine.checkpoint_every=0", "validation.data=null"]

_EACH = """
import json, sys
from udaseg.cli.main import main
codes = []
for words in json.load(open("commands.json")):
    sys.argv = ["udaseg", *words]
    try:
        main()
    except SystemExit as stop:
        codes.append(stop.code or 0)
json.dump(codes, open("codes.json", "w"))
"""


def shell(line, cwd):
    """Run a line of the shell and return its exit code, stdout and stderr."""
    python = f"{sys.executable} -m udaseg"
    words = ["sh", "-c", line.replace("udaseg", python, 1)]
    result = subprocess.run(
        words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("streams", SICK)
def test_a_command_that_prints_ends_well(tmp_path, streams):
    code, out, err = shell(f"udaseg recipes cat toyland/rccr {streams}", tmp_path)
    assert code == 0
    full = "warning: stdout is incomplete: No space left on device\n"
    assert err == (full if streams == ">/dev/full" else "")
    assert out == "" or "2>" in streams


@pytest.mark.parametrize("streams", SICK)
def test_a_command_that_fails_keeps_its_code(tmp_path, streams):
    assert shell(f"udaseg adapt none.yaml {streams}", tmp_path)[0] == 2


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
    """A C library that prints would print into the file."""
    script = (
        "import os; from udaseg.cli.streams import open_streams; open_streams(); "
        "file = open('scores.json', 'w'); os.write(1, b'from C'); os.write(2, b'from C'); "
        "file.write('{}')"
    )
    command = f'{sys.executable} -c "{script}" >&- 2>&- <&-'
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=ENVIRONMENT, check=True)
    assert (tmp_path / "scores.json").read_text() == "{}"


@pytest.mark.slow
@pytest.mark.parametrize("streams", [">&- 2>&- <&-", ">/dev/full 2>&1"])
def test_no_command_depends_on_its_streams(root, tmp_path, streams):
    """Three commands fail on purpose; the others train, adapt, read and write the same."""
    calm = tmp_path / "calm"
    for folder in (calm, tmp_path / "sick"):
        folder.mkdir()
        photos = str(root / "toyland/target/val/images")
        names = ["--root", str(root)]
        train = ["--steps", "2", "--seed", "0", *names, *TINY]
        commands = [
            ["train", "toyland/source_only", "--out", "base", *train],
            ["adapt", "toyland/rccr", "--out", "run", *train, "machine.checkpoint_every=1"],
            ["predict", photos, "--checkpoint", "run", "--out", "masks", "--save", "ids"],
            ["eval", "run", "--flip", *names],
            ["eval", "run", "--fail-under", "99", *names],
            ["info", "run"],
            ["info", "nowhere"],
            ["report", "run", "--baseline", "base", "--images", "1", *names],
            ["select", "run", "--images", "2", *names],
            ["calibrate", "run", "--images", "2", *names],
            ["verify", "run"],
            ["doctor", photos],
            ["prepare", "nowhere.yaml", *names],
            ["recipes", "ls"],
            ["methods"],
        ]
        (folder / "commands.json").write_text(json.dumps(commands))
        words = f"{sys.executable} -c '{_EACH}' {'' if folder is calm else streams}"
        subprocess.run(["sh", "-c", words], cwd=folder, env=ENVIRONMENT, check=True)
    codes = [json.loads((tmp_path / name / "codes.json").read_text()) for name in ("calm", "sick")]
    assert codes[0] == codes[1]
    assert [code for code in codes[0] if code] == [7, 3, 3]
    for run in ("base", "run"):
        assert_same(tensors(calm / run), tensors(tmp_path / "sick" / run))
    files = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for folder in (calm, tmp_path / "sick")
    ]
    assert [name for name in files[0] if "tfevents" not in name] == [
        name for name in files[1] if "tfevents" not in name
    ]
    for name in files[0]:
        if name.endswith((".png", "scores.json", "selection.json", "calibration.json")):
            assert (calm / name).read_bytes() == (tmp_path / "sick" / name).read_bytes(), name


def _has_step(run):
    metrics = run / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


@pytest.mark.slow
def test_a_terminal_that_closes_saves_the_run(root, tmp_path):
    adapt(root, tmp_path / "whole", *WORDS, steps=16)
    words = ["-m", "udaseg", "adapt", "toyland/rccr", "--root", str(root), "--out", "run"]
    words += ["--steps", "16", *TINY, *WORDS]
    number, terminal = pty.fork()
    if number == 0:
        os.chdir(tmp_path)
        os.execvpe(sys.executable, [sys.executable, *words], ENVIRONMENT)
    while not _has_step(tmp_path / "run"):
        os.read(terminal, 4096)  # a terminal that nobody reads stops who writes to it
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 129
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["signal"]) == ("interrupted", signal.SIGHUP)
    assert 0 < status["step"] < 16
    udaseg("adapt", "--resume", "run", "--root", root, cwd=tmp_path)
    assert_same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))


@pytest.mark.slow
def test_under_nohup_a_run_goes_on(root, tmp_path):
    words = ["nohup", sys.executable, "-m", "udaseg", "adapt", "toyland/rccr", "--out", "run"]
    words += ["--root", root, "--steps", "8", *TINY, *WORDS]
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not _has_step(tmp_path / "run"):
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
