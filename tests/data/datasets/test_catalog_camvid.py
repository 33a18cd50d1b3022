"""The original CamVid release: colour labels, and the splits that others published."""

import numpy as np
import pytest
from PIL import Image

from tests.support import files
from udaseg.data.datasets.catalog import read_builtin
from udaseg.data.datasets.pairs import Pair, _name_matches
from udaseg.data.labels.classes import IGNORE
from udaseg.data.labels.read import read_train_ids
from udaseg.data.labels.tables import builtin_label_table
from udaseg.data.prepare.prepare import prepare_dataset

SIZE = (6, 11)
CAMVID = {
    "sky": ["Sky 128 128 128"],
    "building": ["Archway 192 0 128", "Bridge 0 128 64", "Building 128 0 0", "Tunnel 64 0 64"],
    "pole": ["Column_Pole 192 192 128", "TrafficCone 0 0 64"],
    "road": ["Road 128 64 128", "LaneMkgsDriv 128 0 192", "LaneMkgsNonDriv 192 0 64"],
    "pavement": ["Sidewalk 0 0 192", "ParkingBlock 64 192 128", "RoadShoulder 128 128 192"],
    "tree": ["Tree 128 128 0", "VegetationMisc 192 192 0"],
    "signsymbol": ["SignSymbol 192 128 128", "Misc_Text 128 128 64", "TrafficLight 0 64 64"],
    "fence": ["Fence 64 64 128"],
    "car": ["Car 64 0 128", "OtherMoving 128 64 64", "SUVPickupTruck 64 128 192"],
    "pedestrian": ["Pedestrian 64 64 0", "Animal 64 128 64", "CartLuggagePram 64 0 192"],
    "bicyclist": ["Bicyclist 0 128 192", "MotorcycleScooter 192 0 192"],
    None: ["Void 0 0 0"],
}
CAMVID["building"] += ["Wall 64 192 0"]
CAMVID["car"] += ["Train 192 64 128", "Truck_Bus 192 128 192"]
CAMVID["pedestrian"] += ["Child 192 128 64"]


@pytest.mark.parametrize("labels", ["LabeledApproved_full/", ""])
def test_camvid_s_thirty_two_colours_become_eleven_classes(tmp_path, labels):
    names = list(builtin_label_table("camvid11").classes.names)
    colors = [
        ([int(part) for part in line.split()[1:]], IGNORE if name is None else names.index(name))
        for name, lines in CAMVID.items()
        for line in lines
    ]
    assert len(colors) == 32
    frames = {
        "train": ["0001TP_006690", "0001TP_008520", "0006R0_f00930", "0016E5_00390"],
        "val": ["0016E5_07959", "0016E5_08159"],
        "test": ["0001TP_008550", "0001TP_009990", "0001TP_010380", "Seq05VD_f00000"],
    }
    frames["train"] += ["0001TP_007980", "0016E5_08640"]
    order = np.random.default_rng(0).integers(0, 32, SIZE)
    picture = np.array([color for color, _ in colors], np.uint8)[order]
    for stem in [stem for stems in frames.values() for stem in stems]:
        files.put(tmp_path / f"CamVid/701_StillsRaw_full/{stem}.png", files.image_png(*SIZE))
        data = files.coded(Image.fromarray(picture), "PNG")
        files.put(tmp_path / f"CamVid/{labels}{stem}_L.png", data)
    dataset = prepare_dataset("camvid-original", root=tmp_path).dataset
    stems_of_splits = {
        split: sorted(sample.image.split("/")[-1][:-4] for sample in samples)
        for split, samples in dataset.splits.items()
    }
    assert stems_of_splits == {split: sorted(stems) for split, stems in frames.items()}
    np.testing.assert_array_equal(
        read_train_ids(dataset.label_path(dataset.split("train")[0])),
        np.array([train_id for _, train_id in colors])[order],
    )


def test_the_splits_of_camvid_hold_the_published_number_of_its_frames():
    # the frames of each sequence, as named in the split lists of the SegNet tutorial
    frames = [f"0001TP_{number:06d}" for number in range(6690, 10381, 30)]
    frames += [f"0006R0_f{number:05d}" for number in range(930, 3931, 30)]
    frames += [f"0016E5_{number:05d}" for number in range(7959, 8160, 2)]
    frames += [f"Seq05VD_f{number:05d}" for number in range(0, 5101, 30)]
    counts = {
        split: sum(_name_matches(Pair(frame, None, None), rule) for frame in frames)
        for split, rule in read_builtin("camvid-original").splits.items()
    }
    # the other 204 of the 367 are frames of 0016E5 in steps of 30, which all end in 0
    assert counts == {"train": 367 - 204, "val": 101, "test": 233}
