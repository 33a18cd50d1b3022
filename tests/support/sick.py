"""Write a small clean dataset and add faults, each with the findings expected of doctor."""

import os
import shutil
import struct
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.support import files

HEIGHT, WIDTH = 48, 64
TRAIN, VAL = 60, 12
"""Number of pairs per split, enough for all faults at once."""
CLASSES = ("road", "sky", "car", "tree")
YAML = """\
name: small
images: {train: train/images/*, val: val/images/*}
labels: {train: train/labels/*, val: val/labels/*}
match: stem
classes: [road, sky, car, tree]
ignore: [255]
"""


def picture(seed, height=HEIGHT, width=WIDTH):
    """Return a smooth random RGB image, different for every seed."""
    cells = np.random.default_rng([1, seed]).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)


def ids(seed, height=HEIGHT, width=WIDTH):
    """Return ids of all four classes and the ignore id, in cells."""
    cells = np.random.default_rng([2, seed]).choice([0, 1, 2, 3, 255], (6, 8))
    cells[0, :5] = (0, 1, 2, 3, 255)
    return cv2.resize(cells.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)


def rgb_png(pixels):
    return files.coded(Image.fromarray(pixels), "PNG")


@cache
def _coded(seed, number):
    own = [1000 + seed, number]  # faults use the seeds [8, ...] and [9, ...]
    return rgb_png(picture(own)), files.gray_png(ids(own))


def clean(folder, seed=0, text=YAML, train=TRAIN):
    """Write a dataset without faults and return the path of its YAML."""
    for split, numbers in (("train", range(train)), ("val", range(TRAIN, TRAIN + VAL))):
        for number in numbers:
            name = f"{split}/images/{number:03d}.png"
            image, label = _coded(seed, number)
            files.put(folder / name, image)
            files.put(folder / name.replace("images", "labels"), label)
    return files.dataset_yaml(folder, text)


class Patient:
    """A dataset folder that gives each fault its own files.

    Args:
        folder: Folder of the YAML.
        outside: A folder outside `folder`.
    """

    def __init__(self, folder, outside):
        self.folder, self.outside = Path(folder), Path(outside)
        self._next = iter(range(TRAIN))
        self._next_val = iter(range(TRAIN, TRAIN + VAL))

    def pair(self, split="train"):
        """Return an image and label that no other fault uses."""
        number = next(self._next if split == "train" else self._next_val)
        name = f"{number:03d}.png"
        return self.folder / split / "images" / name, self.folder / split / "labels" / name

    def edit_yaml(self, old, new):
        path = self.folder / "own.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


FAULTS = {}


def fault(function):
    """Register a fault: it damages a patient and returns the expected (code, path) findings."""
    FAULTS[function.__name__] = function
    return function


def _jpeg(pixels, quality=95, **how):
    return files.coded(Image.fromarray(pixels), "JPEG", quality=quality, **how)


def _both(patient, name, split="train"):
    """Rename an unused pair to another stem."""
    image, label = patient.pair(split)
    moved = [path.rename(path.with_name(f"{name}.png")) for path in (image, label)]
    return moved[0], moved[1]


# files that cannot be read


@fault
def cut_png_image(patient):
    image, _ = patient.pair()
    image.write_bytes(image.read_bytes()[:-200])
    return [("damaged", image)]


@fault
def cut_jpeg_image(patient):
    image, _ = patient.pair()
    image.unlink()
    data = _jpeg(picture([9, 1]))
    image = files.put(image.with_suffix(".jpg"), data[: len(data) // 2])
    return [("damaged", image)]


@fault
def cut_label(patient):
    _, label = patient.pair()
    label.write_bytes(label.read_bytes()[:60])
    return [("damaged", label)]


@fault
def flipped_bit_in_a_label(patient):
    _, label = patient.pair()
    data = bytearray(label.read_bytes())
    data[data.index(b"IDAT") + 12] ^= 4
    label.write_bytes(bytes(data))
    return [("damaged", label)]


@fault
def no_bytes(patient):
    image, _ = patient.pair()
    image.write_bytes(b"")
    return [("empty-file", image)]


@fault
def text_for_an_image(patient):
    image, _ = patient.pair()
    image.write_text("version https://git-lfs.github.com/spec/v1\n")
    return [("not-an-image", image)]


@fault
def web_page_for_a_label(patient):
    _, label = patient.pair()
    label.write_text("<html>404</html>")
    return [("not-an-image", label)]


@fault
def folder_for_a_label(patient):
    _, label = patient.pair()
    label.unlink()
    label.mkdir()
    return [("not-a-file", label)]


@fault
def pipe_for_an_image(patient):
    image, _ = patient.pair()
    image.unlink()
    os.mkfifo(image)
    return [("not-a-file", image)]


@fault
def link_to_nothing(patient):
    _, label = patient.pair()
    label.unlink()
    label.symlink_to("gone.png")
    return [("broken-link", label)]


@fault
def link_to_itself(patient):
    image, _ = patient.pair()
    image.unlink()
    image.symlink_to(image.name)
    return [("broken-link", image)]


@fault
def bomb(patient):
    image, _ = patient.pair()
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + files.chunk(b"IHDR", head) + files.chunk(b"IEND", b"")
    image.write_bytes(data)
    return [("too-large", image)]


# pairs


@fault
def image_alone(patient):
    image, label = patient.pair()
    label.unlink()
    return [("image-without-label", image)]


@fault
def label_alone(patient):
    image, label = patient.pair()
    image.unlink()
    return [("label-without-image", label)]


@fault
def same_stem_twice(patient):
    image, _ = patient.pair()
    files.put(image.with_suffix(".jpg"), _jpeg(picture([9, 2])))
    return [("duplicate-stem", image)]  # the .jpg sorts first


@fault
def label_a_pixel_wider(patient):
    _, label = patient.pair()
    label.write_bytes(files.gray_png(ids([9, 3], HEIGHT, WIDTH + 1)))
    return [("size-mismatch", label)]


@fault
def label_lying_on_its_side(patient):
    _, label = patient.pair()
    label.write_bytes(files.gray_png(ids([9, 4], WIDTH, HEIGHT)))
    return [("size-mismatch", label)]


# labels


@fault
def colored_label(patient):
    _, label = patient.pair()
    label.write_bytes(rgb_png(picture([9, 5])))
    return [("label-form", label)]


@fault
def sixteen_bit_colored_label(patient):
    _, label = patient.pair()
    label.write_bytes(files.synthia_png(ids([9, 6])))
    return [("label-form", label)]


@fault
def label_with_alpha(patient):
    _, label = patient.pair()
    label.write_bytes(files.coded(Image.fromarray(ids([9, 7])).convert("LA"), "PNG"))
    return [("label-form", label)]


@fault
def jpeg_label(patient):
    _, label = patient.pair()
    label.unlink()
    label = label.with_suffix(".jpg")
    files.put(label, files.coded(Image.fromarray(ids([9, 8])), "JPEG"))
    return [("label-form", label)]


@fault
def id_of_no_class(patient):
    _, label = patient.pair()
    strange = ids([9, 9])
    strange[:2, :3] = 40
    label.write_bytes(files.gray_png(strange))
    return [("unknown-id", label)]


@fault
def id_above_255(patient):
    _, label = patient.pair()
    strange = ids([9, 10]).astype(int)
    strange[0, :7] = 300
    label.write_bytes(files.gray_png(strange, 16))
    return [("unknown-id", label)]


@fault
def all_ignored(patient):
    _, label = patient.pair()
    label.write_bytes(files.gray_png(np.full((HEIGHT, WIDTH), 255)))
    return [("no-class", label)]


@fault
def one_class(patient):
    _, label = patient.pair()
    label.write_bytes(files.gray_png(np.full((HEIGHT, WIDTH), 2)))
    return [("one-class", label)]


# images


@fault
def turned_jpeg(patient):
    image, _ = patient.pair()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.unlink()
    stored = np.ascontiguousarray(np.rot90(picture([9, 11])))
    image = files.put(image.with_suffix(".jpg"), _jpeg(stored, exif=exif))
    return [("exif-orientation", image)]


@fault
def turned_png(patient):
    image, label = patient.pair()
    exif = Image.Exif()
    exif[0x0112] = 3
    image.write_bytes(files.coded(Image.fromarray(picture([9, 12])), "PNG", exif=exif))
    return [("exif-orientation", image), ("turned-label", label)]


@fault
def black_image(patient):
    image, _ = patient.pair()
    image.write_bytes(rgb_png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    return [("blank-image", image)]


@fault
def thumbnail(patient):
    image, label = patient.pair()
    image.write_bytes(rgb_png(picture([9, 13], 24, 32)))
    label.write_bytes(files.gray_png(ids([9, 13], 24, 32)))
    return [("small-image", image), ("mixed-sizes", None)]


@fault
def sixteen_bit_image(patient):
    image, _ = patient.pair()
    deep = picture([9, 14]).astype(np.uint16) * 257
    ok, data = cv2.imencode(".png", deep)
    assert ok
    image.write_bytes(data.tobytes())
    return [("image-form", image)]


@fault
def two_pages(patient):
    image, _ = patient.pair()
    image.unlink()
    pages = [Image.fromarray(picture([9, number])) for number in (28, 29)]
    data = files.coded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    return [("read-in-part", files.put(image.with_suffix(".tif"), data))]


@fault
def jpeg_called_png(patient):
    image, _ = patient.pair()
    image.write_bytes(_jpeg(picture([9, 15])))
    return [("wrong-suffix", image)]


@fault
def copy_in_training(patient):
    (first, _), (second, _) = patient.pair(), patient.pair()
    shutil.copy(first, second)
    return [("duplicate-image", second)]


@fault
def recoded_copy_in_training(patient):
    (first, _), (second, _) = patient.pair(), patient.pair()
    second.unlink()
    second = files.put(second.with_suffix(".jpg"), _jpeg(np.asarray(Image.open(first))))
    return [("near-duplicate", second)]


@fault
def validation_image_in_training(patient):
    (first, _), (second, _) = patient.pair(), patient.pair("val")
    shutil.copy(first, second)
    return [("leaked-image", second)]


@fault
def recoded_validation_image_in_training(patient):
    (first, _), (second, _) = patient.pair(), patient.pair("val")
    second.unlink()
    second = files.put(second.with_suffix(".jpg"), _jpeg(np.asarray(Image.open(first))))
    return [("near-leak", second)]


# names and links


@fault
def control_character_in_a_name(patient):
    image, label = _both(patient, "a\x1b[2Jb")
    return [("odd-name", image), ("odd-name", label)]


@fault
def name_like_an_option(patient):
    image, label = _both(patient, "-rf")
    return [("odd-name", image), ("odd-name", label)]


@fault
def names_that_differ_in_case(patient):
    _both(patient, "CITY")
    image, label = _both(patient, "city")
    return [("name-collision", image), ("name-collision", label)]


@fault
def link_out_of_the_set(patient):
    image, _ = patient.pair()
    patient.outside.mkdir(exist_ok=True)
    image.rename(patient.outside / image.name)
    image.symlink_to(patient.outside / image.name)
    return [("link-outside", image)]


@fault
def link_to_a_folder_above(patient):
    link = patient.folder / "train" / "images" / "again"
    link.symlink_to(patient.folder / "train", target_is_directory=True)
    return [("link-circle", link)]


# the set as a whole


@fault
def split_of_three(patient):
    for number in range(3):
        name = f"test/images/{number}.png"
        files.put(patient.folder / name, rgb_png(picture([8, number])))
        labels = files.gray_png(ids([8, number]))
        files.put(patient.folder / name.replace("images", "labels"), labels)
    patient.edit_yaml("val: val/images/*}", "val: val/images/*, test: test/images/*}")
    patient.edit_yaml("val: val/labels/*}", "val: val/labels/*, test: test/labels/*}")
    return [("tiny-split", None)]


@fault
def split_without_images(patient):
    patient.edit_yaml("{train: train/images/*", "{extra: extra/images/*, train: train/images/*")
    return [("empty-split", None)]


@fault
def class_of_which_there_is_none(patient):
    patient.edit_yaml("car, tree]", "car, tree, {name: ghost, ids: [7]}]")
    return [("class-never-seen", None)]


@fault
def class_of_a_few_pixels(patient):
    _, label = patient.pair()
    few = ids([9, 16])
    few[:3, :3] = 9
    label.write_bytes(files.gray_png(few))
    patient.edit_yaml("[road,", "[{name: bird, ids: [9]}, {name: road, ids: [0]},")
    patient.edit_yaml(
        "sky, car, tree", "{name: sky, ids: [1]}, {name: car, ids: [2]}, {name: tree, ids: [3]}"
    )
    return [("rare-class", None)]


@fault
def image_that_no_split_takes(patient):
    stray = files.put(patient.folder / "train/images/old/7.png", rgb_png(picture([9, 17])))
    return [("unused-file", stray)]
