"""ACDC in its published layout."""

import numpy as np

from tests.support import files
from udaseg.data.labels.read import read_train_ids
from udaseg.data.open import open_dataset
from udaseg.data.prepare.prepare import prepare_dataset


def test_acdc_is_read_from_its_layout_of_conditions(tmp_path):
    rng, written = np.random.default_rng(0), {}
    for condition in ("fog", "night"):
        for split in ("train", "val"):
            name = f"{condition}/{split}/GOPR0475/GOPR0475_frame_000041"
            labels = rng.choice([0, 8, 18, 255], (54, 96)).astype(np.uint8)
            written[f"{condition}/{split}"] = labels
            files.put(tmp_path / f"acdc/rgb_anon/{name}_rgb_anon.png", files.image_png(54, 96))
            files.put(tmp_path / f"acdc/gt/{name}_gt_labelTrainIds.png", files.gray_png(labels))
            # other files: other label encodings, and the same places in clear weather
            for form in ("labelIds", "labelColor", "invIds"):
                files.put(tmp_path / f"acdc/gt/{name}_gt_{form}.png", files.gray_png(labels * 0))
            fair = name.replace(f"/{split}/", f"/{split}_ref/")
            files.put(tmp_path / f"acdc/rgb_anon/{fair}_rgb_ref_anon.png", files.image_png(54, 96))
    prepare_dataset("acdc", root=tmp_path)
    dataset = open_dataset("acdc", root=tmp_path)
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {
        "train": 2,
        "val": 2,
    }
    assert dataset.classes is not None
    assert dataset.classes.names[18] == "bicycle"
    for sample in dataset.split("train"):
        train_ids = read_train_ids(dataset.label_path(sample))
        condition = next(word for word in ("fog", "night") if word in sample.image)
        assert np.array_equal(train_ids, written[f"{condition}/train"])
