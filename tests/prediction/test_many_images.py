"""`udaseg predict` of 100,000 images: memory, and the time until a resumed command goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.colors import random_labels
from tests.support.predicting import write_image
from udaseg.prediction.inputs import resolve_inputs
from udaseg.prediction.plan import plan_outputs

REPOSITORY = Path(__file__).resolve().parents[2]
FEW, MANY = 1000, 100_000

WORK = """
import sys, time
from pathlib import Path
from udaseg.cli.main import main
from udaseg.prediction import predict

started = []

def import_torch(_):  # called where the command imports it
    import torch
    from tests.support.colors import loaded_colors
    from udaseg.inference import trained_model
    from udaseg.prediction import images

    torch.set_num_threads(1)
    trained_model.load, write = lambda path, **_: loaded_colors(), images.write_masks

    def noted(*content):
        write(*content)
        started or started.append(time.process_time())

    images.write_masks = noted

predict.refuse_without_checkpoint = import_torch
try:
    main(["predict", *sys.argv[1:], "--checkpoint", "x", "--save", "ids", "--device", "cpu", "-q"])
finally:
    status = Path("/proc/self/status").read_text()
    print("peak", int(status.split("VmHWM:")[1].split()[0]), "first", started[0])
"""


def measured(folder, *words):
    """Return the peak in kB, and the processor time in seconds until the first new mask."""
    work = subprocess.run(
        [sys.executable, "-c", WORK, *words],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    _, peak, _, first = work.stdout.splitlines()[-1].split()
    return int(peak), float(first)


@pytest.mark.slow
def test_100000_images_take_hardly_more_memory_than_1000_and_are_resumed_in_seconds(tmp_path):
    write_image(tmp_path / "one.png", random_labels(8, 8))
    (tmp_path / "x").write_bytes(b"PK")  # begins as a checkpoint does
    for count in (FEW, MANY):
        folder = tmp_path / f"in{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:06d}.png").symlink_to("../one.png")
    few, _ = measured(tmp_path, f"in{FEW}", "--out", "few")
    masks = tmp_path / "many/ids"
    masks.mkdir(parents=True)
    for number in range(MANY - 1):
        (masks / f"{number:06d}.png").symlink_to("../../few/ids/000000.png")
    many, first = measured(tmp_path, f"in{MANY}", "--out", "many", "--resume")
    sys.stdout.write(f"peaks {few} and {many} kB, first mask after {first:.1f} s\n")
    assert many < 1.1 * few
    assert first < 10
    written = masks / f"{MANY - 1:06d}.png"
    assert written.read_bytes() == (tmp_path / "few/ids/000000.png").read_bytes()
    assert sum(not mask.is_symlink() for mask in masks.iterdir()) == 1


def test_a_resumed_command_begins_with_what_is_missing(tmp_path):
    for name in "abcd":
        write_image(tmp_path / f"in/{name}.png", random_labels(8, 8))
    plan = plan_outputs(resolve_inputs([str(tmp_path / "in")]), tmp_path / "out", ["ids", "color"])
    for mask in plan.outputs(plan.inputs[0]) + plan.outputs(plan.inputs[2])[:1]:
        Path(mask).parent.mkdir(parents=True, exist_ok=True)
        Path(mask).touch()
    names = [job.image.stem for job in plan.missing_first()]
    assert names == ["b", "c", "d", "a"]
