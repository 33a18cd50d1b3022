"""A very large image is predicted in little memory, measured in a separate process."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 9000, 12_000
LARGEST_MIB = 2048

WORK = """
import sys
from pathlib import Path
import torch
from tests.support.colors import loaded_colors
from tests.support.small import small_segmenter
from udaseg.cli.main import main
from udaseg.inference import trained_model

torch.set_num_threads(1)
network = small_segmenter(classes=3, projector=False).eval().requires_grad_(False)
trained_model.load = lambda path, **_: loaded_colors([sys.argv[1]], network)
try:
    main(["predict", "in", "--checkpoint", "x", "--save", sys.argv[2], "-q"])
finally:
    status = Path("/proc/self/status").read_text()  # ru_maxrss includes the parent process
    print("peak", int(status.split("VmHWM:")[1].split()[0]) // 1024, "MiB")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resize", "images", "save"),
    [("[512, 1024]", "ab", "color,ids,overlay,confidence"), ("null", "a", "color,ids")],
)
def test_12000_by_9000_pixels_are_predicted_below_2_gib(tmp_path, resize, images, save):
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    for name in images:  # memory must not grow with the number of images
        cv2.imwrite(str(tmp_path / f"in/{name}.jpg"), cv2.resize(noise, (WIDTH, HEIGHT)))
    work = subprocess.run(
        [sys.executable, "-c", WORK, f"validation.resize={resize}", save],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    peak = int(work.stdout.split("peak ")[1].split()[0])
    sys.stdout.write(f"predict of {WIDTH}x{HEIGHT}, network input {resize}: peak {peak} MiB\n")
    assert work.stderr == ""
    assert peak < LARGEST_MIB
    for kind in save.split(","):
        data = (tmp_path / "masks" / kind / "a.png").read_bytes()
        assert int.from_bytes(data[16:20], "big") == WIDTH
        assert int.from_bytes(data[20:24], "big") == HEIGHT
