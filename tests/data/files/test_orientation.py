"""Photos with an EXIF orientation: image and label keep the stored orientation and stay aligned."""

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.doctor.doctor import doctor
from udaseg.data.loading.cache import open_cache
from udaseg.data.loading.cache_write import write_cache
from udaseg.data.loading.crops import CropSource
from udaseg.data.prepare.prepare import prepare_dataset

YAML = "name: own\nimages: images/*\nlabels: labels/*\nclasses: [dark, bright]\n"


def _turned(ids, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray((ids * 255).astype(np.uint8)).convert("RGB")
    return files.coded(picture, "JPEG", quality=95, exif=exif)


@pytest.mark.parametrize("size", [(48, 48), (48, 80)], ids=["square", "wide"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_label_stay_aligned_pixel_by_pixel(tmp_path, orientation, size):
    cells = np.random.default_rng(orientation).integers(0, 2, (size[0] // 8, size[1] // 8))
    ids = np.kron(cells, np.ones((8, 8), int))
    files.put(tmp_path / "images/a.jpg", _turned(ids, orientation))
    files.put(tmp_path / "labels/a.png", files.gray_png(ids))
    yaml = str(files.dataset_yaml(tmp_path, YAML))
    dataset = prepare_dataset(yaml, root=tmp_path).dataset
    (sample,) = dataset.split("train")
    assert (sample.height, sample.width) == size
    write_cache(dataset, size, workers=1)
    cache = open_cache(dataset, "train", size, labelled=True)
    for how in (None, cache):
        resize = None if how is None else size
        crops = CropSource(dataset, "train", resize, (24, 32), flip=True, labelled=True, cache=how)
        for seed in range(6):
            rng = np.random.default_rng(seed)
            image, labels = crops.crop_image(sample, *crops.read(sample), rng)
            np.testing.assert_array_equal(image[..., 0] > 127, labels == 1)
    codes = [finding.code for finding in doctor(yaml, root=tmp_path).findings]
    assert ("exif-orientation" in codes) == (orientation != 1)
