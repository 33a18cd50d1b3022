"""`udaseg predict` with bad paths, a full disk, signals and bad inputs."""

import csv
import errno
import hashlib
import json
import os
import signal
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.colors import COLORS, loaded_colors, painted, random_labels
from tests.support.predicting import ids_of, predict, write_image
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import DataError, EnvironmentFault, Interrupted, PartialError, UsageError
from udaseg.evaluation.prediction_files import recorded_classes
from udaseg.prediction import outputs
from udaseg.prediction.inputs import Inputs
from udaseg.prediction.plan import plan_outputs

pytestmark = pytest.mark.usefixtures("run")


def files_below(folder):
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


class Everywhere(torch.nn.Module):
    """Predicts class 2 everywhere; after `calls` images it sends the process a signal."""

    def __init__(self, calls=None, number=signal.SIGINT):
        super().__init__()
        self.calls, self.number = calls, number

    def forward(self, images):
        if self.calls is not None:
            self.calls -= 1
            if self.calls == 0:
                signal.raise_signal(self.number)
        logits = torch.zeros(1, 3, *images.shape[-2:])
        logits[:, 2] = 9
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (7, 5), (1, 700), (333, 517)])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"window": (8, 16)}])
def test_a_per_pixel_network_is_met_exactly_at_every_size(size, options):
    labels = write_image("in/a.png", random_labels(*size))
    predict(
        "in",
        **({"window": (64, 128)} if options and size[0] > 99 and "window" in options else options),
    )
    assert (ids_of("masks/ids/a.png") == labels).all()


@pytest.mark.parametrize("form", ["rgba.png", "palette.png", "plain.tif", "plain.webp", "cmyk.jpg"])
def test_other_forms_of_the_same_colours_give_the_same_mask(form):
    labels = random_labels(12, 16)
    picture = Image.fromarray(painted(labels))
    if form.startswith("rgba"):
        picture.putalpha(40)
    elif form.startswith("palette"):
        picture = picture.quantize(8)
    elif form.startswith("cmyk"):
        picture = picture.convert("CMYK")
    Path("in").mkdir()
    picture.save(Path("in", form), **({"lossless": True} if form.endswith("webp") else {}))
    predict("in")
    assert (ids_of(Path("masks/ids", form).with_suffix(".png")) == labels).all()


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_grey_is_seen_as_three_equal_channels_of_its_upper_8_bits(run, depth):
    class Bright(torch.nn.Module):
        def forward(self, images):
            assert (images[:, 0] == images[:, 2]).all()
            red = images[:, :1]
            return SimpleNamespace(logits=torch.cat([1 - red, red, torch.zeros_like(red)], 1))

    run["run"] = loaded_colors(network=Bright())
    bright = random_labels(12, 16) > 0
    Path("in").mkdir()
    Image.fromarray(bright.astype(depth) * np.iinfo(depth).max).save("in/a.png")
    predict("in")
    assert (ids_of("masks/ids/a.png") == bright).all()


def test_the_screen_ends_with_the_share_of_each_class(capsys):
    # the first images are all road, the last all car: every image must be counted
    for index, name in enumerate("abcdefgh"):
        write_image(f"in/{name}.png", np.full((1, 4), 0 if index < 6 else 2, np.uint8))
    predict("in")
    assert capsys.readouterr().out.splitlines()[-1] == "pixels: road 75.00 %, car 25.00 %"


@pytest.mark.parametrize("name", ["a.gif", "A.GIF", "a.pdf", "a.zip", "a.tar.gz"])
def test_what_is_no_image_by_its_name_is_named_and_not_tried(name):
    labels = write_image("in/a.png", random_labels(8, 8))
    Path(name).write_bytes(b"GIF89a")
    if name.lower().endswith("gif"):  # OpenCV could read the first frame
        Image.fromarray(painted(labels)).save(name, format="GIF")
    with pytest.raises(PartialError, match="1 of 2 images failed"):
        predict(name, "in")
    with Path("masks/failures.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert Path(row["image"]).name == name
    assert "not an image; " in row["reason"]
    assert (ids_of("masks/ids/in/a.png") == labels).all()


def test_a_folder_named_like_an_image_is_a_folder():
    labels = write_image("in/x.png/a.png", random_labels(8, 8))
    predict("in")
    assert (ids_of("masks/ids/x.png/a.png") == labels).all()


def test_a_mask_where_another_needs_a_folder_gets_a_name_of_its_own():
    one = write_image("in/x.bmp", random_labels(8, 8))
    other = write_image("in/x.png/a.png", random_labels(8, 8, seed=1))
    predict("in")
    assert (ids_of("masks/ids/x.png/a.png") == other).all()
    (path,) = Path("masks/ids").glob("x-*.png")
    assert (ids_of(path) == one).all()


def test_videos_whose_names_differ_in_case_share_no_output():
    names = ["A.mov", "a.mov", "b.mov", "b.mov.frames/1.png"]
    images = tuple(f"in/{name}" for name in names)
    inputs = Inputs(images, (Path("in"),))
    written = list(plan_outputs(inputs, Path("masks"), ["ids", "color"]).all_outputs())
    found = [path.lower() for path in written]
    assert len(set(found)) == len(found) == 1 * 2 + 3 * 3
    assert "masks/ids/b.mov.frames" not in found
    assert {"masks/ids/A.mov.frames", "masks/color/A.mp4", "masks/videos/A.mov.json"} <= {*written}


@pytest.mark.parametrize(
    ("words", "out"),
    [(["in"], "."), (["in/a.png"], "in"), (["in/a.png"], "link"), (["link/a.png"], "in")],
)
def test_an_input_inside_the_output_folder_is_refused(words, out):
    write_image("in/a.png", random_labels(8, 8))
    Path("link").symlink_to("in", target_is_directory=True)
    before = hashlib.sha256(Path("in/a.png").read_bytes()).hexdigest()
    with pytest.raises(UsageError, match="inside the output folder"):
        predict(*words, out=Path(out), overwrite=True)
    assert hashlib.sha256(Path("in/a.png").read_bytes()).hexdigest() == before
    assert files_below(".") == ["a.png"]


def test_a_link_to_nothing_counts_as_a_mask_that_exists():
    write_image("in/a.png", random_labels(8, 8))
    Path("masks/ids").mkdir(parents=True)
    Path("masks/ids/a.png").symlink_to("elsewhere.png")
    with pytest.raises(UsageError, match="1 of the masks exist"):
        predict("in")


def test_an_interrupted_overwrite_does_not_pass_old_masks_on_to_resume(run):
    for index, name in enumerate("abcdefgh"):
        write_image(f"in/{name}.png", random_labels(8, 12, seed=index))
    predict("in")
    run["run"] = loaded_colors(network=Everywhere(calls=2), step=8)
    with pytest.raises(Interrupted):
        predict("in", overwrite=True)
    run["run"] = loaded_colors(network=Everywhere(), step=8)
    predict("in", resume=True)
    for name in "abcdefgh":
        assert (ids_of(f"masks/ids/{name}.png") == 2).all()


def test_overwrite_leaves_no_old_mask_of_an_image_that_fails_now():
    write_image("in/a.png", random_labels(8, 8))
    write_image("in/b.png", random_labels(8, 8))
    predict("in")
    Path("in/b.png").write_bytes(b"no image any more")
    with pytest.raises(PartialError):
        predict("in", overwrite=True)
    assert files_below("masks/ids") == ["a.png"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_after_the_image_and_resume_does_the_rest(run, capsys, number):
    for name in "abcdefgh":
        write_image(f"in/{name}.png", random_labels(8, 12))
    run["run"] = loaded_colors(network=Everywhere(calls=3, number=number))
    with pytest.raises(Interrupted, match="stopped after 3 of 8 images") as stopped:
        predict("in")
    assert stopped.value.exit_code == 128 + number
    assert "--resume" in str(stopped.value)
    assert files_below("masks") == ["a.png", "b.png", "c.png", "prediction.json"]
    run["run"] = loaded_colors(network=Everywhere())
    predict("in", resume=True)
    assert "5 images predicted, 3 kept from an earlier run" in capsys.readouterr().out


def test_a_full_disk_leaves_whole_masks_and_no_partial_file(monkeypatch):
    labels = {n: write_image(f"in/{n}.png", random_labels(8, 12, seed=n)) for n in range(10, 18)}
    command = import_module("udaseg.prediction.images")
    real, before = command.write_masks, []

    def fill(masks, *looked):
        if len(before) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        before.append(masks["ids"])
        real(masks, *looked)

    monkeypatch.setattr(command, "write_masks", fill)
    with pytest.raises(EnvironmentFault, match="No space left on device"):
        predict("in")
    assert files_below("masks") == ["10.png", "11.png", "12.png", "prediction.json"]
    for mask in before:
        assert (ids_of(mask) == labels[int(mask.stem)]).all()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_output_that_is_a_file_is_an_environment_fault(out):
    write_image("in/a.png", random_labels(8, 8))
    Path("file").write_text("mine")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        predict("in", out=Path(out))
    assert Path("file").read_text() == "mine"


def test_a_folder_where_a_mask_should_be_is_never_removed():
    write_image("in/a.png", random_labels(8, 8))
    Path("masks/ids/a.png").mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match=r"a\.png: cannot be written"):
        predict("in", overwrite=True)
    assert Path("masks/ids/a.png").is_dir()


def test_only_what_is_no_image_is_bad_data():
    Path("a.gif").write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.gif: not an image; use its frames as images"):
        predict("a.gif")
    assert not Path("masks").exists()
    Path("a.png").write_bytes(b"no")
    with pytest.raises(DataError, match="none of 1 images"):
        predict("a.png")


def test_a_closed_screen_is_not_taken_for_a_full_disk():
    with pytest.raises(BrokenPipeError), outputs.convert_write_errors(Path("masks")):
        raise BrokenPipeError


def test_masks_of_two_networks_in_one_folder_are_told_and_never_taken_for_one(run, caplog):
    for name in "ab":
        write_image(f"{name}.png", random_labels(8, 12))
    predict("a.png")
    predict("b.png")
    assert "also" not in caplog.text
    Path("masks/ids/b.png").unlink()
    classes = ClassSpace(("x", "y", "z"), COLORS.colors)
    run["run"] = loaded_colors(step=8, classes=classes)
    predict("b.png")
    message = "masks of other images that were made with a different step, classes, such as masks"
    assert message in caplog.text
    (also,) = json.loads(Path("masks/prediction.json").read_text())["also_there"]
    assert also["step"] == 7
    with pytest.raises(UsageError, match="masks of several networks"):
        predict("a.png", "b.png", resume=True)
    with pytest.raises(DataError, match="networks with different classes"):
        recorded_classes(Path("masks/ids"))
    predict("b.png", overwrite=True)
    assert len(json.loads(Path("masks/prediction.json").read_text())["also_there"]) == 1
    predict("a.png", "b.png", overwrite=True)  # every existing mask is replaced
    assert "also_there" not in json.loads(Path("masks/prediction.json").read_text())
    assert recorded_classes(Path("masks/ids")).names == ("x", "y", "z")


def test_resume_notices_a_network_that_was_trained_anew_in_the_same_place(run):
    write_image("a.png", random_labels(8, 12))
    run["run"] = loaded_colors(sha256="one")
    predict("a.png")
    predict("a.png", resume=True)
    run["run"] = loaded_colors(sha256="other")
    with pytest.raises(UsageError, match="a different checkpoint_sha256"):
        predict("a.png", resume=True)
