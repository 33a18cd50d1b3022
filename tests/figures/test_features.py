"""`udaseg features`: each number against its rule, each point where its cell is."""

import base64
import csv
import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import udaseg
from tests.cli.running import udaseg as command
from tests.cli.test_report import write_city, write_run
from tests.support.colors import COLORS, loaded_colors, random_labels
from tests.support.loading import replace_load
from tests.support.small import small_segmenter
from udaseg.errors import DataError, EnvironmentFault
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.figures import plane
from udaseg.figures.cells import Domain, look_at
from udaseg.figures.distances import class_distances
from udaseg.figures.pseudo_labels import quality_table
from udaseg.inference import run_data
from udaseg.models.segmenter import SegmenterOutput
from udaseg.selection.images import choose_images

OVERRIDES = ["validation.resize=null", "validation.data=city", "source.resize=null"]


class Colors(nn.Module):
    """Labels by colour; its features are the mean colours of cells of 4 x 4 pixels."""

    feature_channels = 3

    def forward(self, images):
        return SegmenterOutput(10 * images, F.avg_pool2d(images, 4), None)


class Doubtful(Colors):
    """Predicts road for sky with low confidence, and all else with high confidence."""

    def forward(self, images):
        road, sky, car = images.unbind(1)
        logits = torch.stack([20 * road + 1 * sky, 0 * sky, 20 * car], 1)
        return SegmenterOutput(logits, F.avg_pool2d(images, 4), None)


def stands_in(network, **more):
    return loaded_colors(OVERRIDES, network, **more)


def domain(vectors, classes, number):
    """Return a domain of these cells: their sums and counts."""
    sums, cells = np.zeros((number, vectors.shape[1])), np.zeros(number, np.int64)
    for vector, name in zip(vectors, classes, strict=True):
        sums[name] += vector / np.sqrt((vector**2).sum())
        cells[name] += 1
    return Domain(None, True, sums, cells, None, {})


def by_the_rule(vectors, classes, number):
    """Return centres, distances within and between classes, in loops over cells and classes."""
    centres, within, between = {}, {}, {}
    unit = [vector / math.sqrt(sum(vector**2)) for vector in vectors]
    for name in range(number):
        own = [x for x, label in zip(unit, classes, strict=True) if label == name]
        if len(own) < 10:
            continue
        mean = sum(own) / len(own)
        centres[name] = mean / math.sqrt(sum(mean**2))
        within[name] = sum(1 - sum(x * centres[name]) for x in own) / len(own)
    for name, centre in centres.items():
        others = [other for key, other in centres.items() if key != name]
        between[name] = sum(1 - sum(centre * other) for other in others) / len(others)
    return centres, within, between


def test_distances_follow_their_definition():
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(4, 6))
    cells = {}
    for title in ("source", "target"):
        classes = rng.choice(4, 80, p=[0.4, 0.3, 0.25, 0.05])
        cells[title] = middle[classes] + rng.normal(size=(80, 6)), classes
    tables = class_distances("abcd", *(domain(*cells[title], 4) for title in cells))
    rule = {title: by_the_rule(*cells[title], 4) for title in cells}
    for table, (title, (_, classes)) in zip(tables, cells.items(), strict=True):
        centres, within, between = rule[title]
        assert 3 not in centres, "the last class is rare, so it has no distances"
        for index, name in enumerate("abc"):
            row = table.rows[name]
            assert row["cells"] == (classes == index).sum()
            assert row["within"] == pytest.approx(within[index], abs=1e-12)
            assert row["between"] == pytest.approx(between[index], abs=1e-12)
            assert row["within / between"] == pytest.approx(within[index] / between[index])
        assert all(math.isnan(value) for key, value in table.rows["d"].items() if key != "cells")
        assert table.rows["mean"]["within"] == pytest.approx(sum(within.values()) / 3)
    for index, name in enumerate("abc"):
        gap = 1 - sum(rule["source"][0][index] * rule["target"][0][index])
        assert tables[1].rows[name]["to the source"] == pytest.approx(gap, abs=1e-12)


def test_means_are_over_the_classes_that_both_domains_have():
    rng = np.random.default_rng(1)
    source = rng.normal(size=(60, 4)) + 1, np.repeat([0, 1, 2], 20)
    target = rng.normal(size=(40, 4)) + 1, np.repeat([0, 1], 20)
    table, _ = class_distances("abc", domain(*source, 3), domain(*target, 3))
    assert not math.isnan(table.rows["c"]["within"])
    both = (table.rows["a"]["within"] + table.rows["b"]["within"]) / 2
    assert table.rows["mean"]["within"] == pytest.approx(both)


def test_cells_have_the_class_at_their_centre_and_features_of_unit_length(tmp_path):
    images = choose_images(write_city(tmp_path), "val", 6)
    truths = [random_labels(16, 24, index)[::4, ::4] for index in range(6)]
    truths[4][:] = 0  # as the data set has it
    seen = look_at(stands_in(Colors()), images, points=5)
    count = np.bincount(np.concatenate(truths).ravel(), minlength=3)
    assert seen.cells.tolist() == count.tolist()
    # a cell of one colour has this colour as its unit vector
    assert np.allclose(seen.sums, np.diag(count))
    assert np.bincount(seen.points.classes).tolist() == [5, 5, 5]
    assert np.allclose(seen.points.vectors, np.eye(3)[seen.points.classes])
    for (image, row, column), label in zip(seen.points.places, seen.points.classes, strict=True):
        assert truths[image][row, column] == label
    assert len({tuple(place) for place in seen.points.places.tolist()}) == 15
    assert len(set(seen.points.places[:, 0])) > 2, "points come from many images"
    again = look_at(stands_in(Colors()), images, points=5)
    assert np.array_equal(seen.points.places, again.points.places)


def test_points_are_the_last_feature_map_of_a_network(tmp_path):
    network = small_segmenter(classes=3, projector=False).train()
    images = choose_images(write_city(tmp_path), "val", 2)
    seen = look_at(stands_in(network), images, points=3).points
    assert network.training, "a loaded model keeps its mode"
    network.eval()
    for vector, (image, row, column), guess in zip(
        seen.vectors, seen.places, seen.predicted, strict=True
    ):
        path = tmp_path / "images" / images.samples[image].image
        pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            maps = network.backbone((pixels - network.mean) / network.std)
            logits = network.head(maps)[0, :, row, column]
        feature = maps[-1][0, :, row, column]
        assert np.allclose(vector, feature / feature.square().sum().sqrt(), atol=1e-6)
        assert guess == logits.argmax()


def test_each_domain_is_seen_at_its_own_size(home, monkeypatch):
    _, state = home
    sizes = []

    class Noting(Colors):
        def forward(self, images):
            sizes.append(tuple(images.shape[2:]))
            return super().forward(images)

    overrides = ["validation.resize=[8,12]", "validation.data=city", "source.resize=[32,48]"]
    state["run"] = loaded_colors(overrides, Noting())
    udaseg.features("run", options=udaseg.FeatureOptions(points=3, images=2))
    assert sizes == [(32, 48)] * 2 + [(8, 12)] * 2


def test_without_labels_the_predictions_are_the_classes(tmp_path):
    images = choose_images(write_city(tmp_path, labelled=False), "val", 6)
    seen = look_at(stands_in(Doubtful()), images, points=5, confidences=(0.0,))
    assert seen.cells[1] == 0, "it never predicts sky"
    assert not seen.labelled
    assert seen.predictions == {}


def test_quality_of_pseudo_labels_is_counted_by_class():
    rng = np.random.default_rng(0)
    truth, given = rng.integers(0, 3, 500), rng.choice([0, 1, 2, 255], 500)
    truth[:20] = 255  # void: counts nowhere
    matrix = ConfusionMatrix(3)
    matrix.update(given[None].astype(np.uint8), truth[None].astype(np.uint8))
    rows = quality_table("", "abc", matrix).rows
    known = truth < 255
    for index, name in enumerate("abc"):
        labelled, true = (given == index) & known, truth == index
        hits = (labelled & true).sum()
        assert rows[name]["precision"] == hits / labelled.sum()
        assert rows[name]["recall"] == hits / true.sum()
        assert rows[name]["labelled"] == (true & (given < 255)).sum() / true.sum()
    right = (given == truth) & known
    assert rows["all pixels"]["precision"] == right.sum() / (known & (given < 255)).sum()
    assert rows["all pixels"]["labelled"] == (known & (given < 255)).sum() / known.sum()


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Provide a run, a source and a target, whose images are those of one set."""
    state = {"run": stands_in(Doubtful()), "toyland": write_city(tmp_path / "a", count=4)}
    state["city"] = state["toyland-target"] = write_city(tmp_path / "b")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    replace_load(monkeypatch, lambda path, **_: state["run"])
    monkeypatch.setattr(run_data, "open_dataset", lambda data, *, root: state[data])
    return tmp_path, state


def features(folder, *words, expect=0):
    return command("features", "run", "--points", 4, *words, cwd=folder, expect=expect)


def test_the_command_writes_picture_points_and_tables(home):
    folder, _ = home
    out = " ".join(features(folder).stdout.split())
    written = folder / "run/features/city-val"
    assert "Labels of the target were looked at" in out
    assert "classes of the target: its labels" in out
    names = ["distances_source.csv", "distances_target.csv", "features.json", "features.png"]
    names += ["points.csv", "pseudo_labels_1.csv", "pseudo_labels_2.csv"]
    assert sorted(path.name for path in written.iterdir()) == sorted(names)
    picture = np.asarray(Image.open(written / "features.png"))
    for color in (*COLORS.colors, *plane.DOMAIN_COLORS.values()):
        assert (picture == color).all(-1).sum() > 15 * 15  # more than its square in the legend
    with (written / "points.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert [point["domain"] for point in points] == ["source"] * 12 + ["target"] * 12
    for point in points:
        number = int(point["image"].removesuffix(".png"))
        truth = random_labels(16, 24, number) if number != 4 else np.zeros((16, 24), int)
        name = truth[4 * int(point["row"]), 4 * int(point["column"])]
        assert point["class"] == COLORS.names[name]
        assert point["predicted"] == ("road" if name == 1 else COLORS.names[name])
    # points of one colour lie at one place
    places = {point["class"]: (point["pca_1"], point["pca_2"]) for point in points}
    assert len(set(places.values())) == 3
    document = json.loads((written / "features.json").read_text())
    everything, sure = document["tables"][2:]
    assert everything["rows"]["sky"] == {"precision": None, "recall": 0, "labelled": 1}
    assert sure["title"].startswith("predictions with a confidence of 0.9 or more")
    assert sure["rows"]["sky"]["labelled"] == 0
    assert sure["rows"]["all pixels"]["precision"] == 1
    first = (written / "points.csv").read_bytes()
    features(folder)
    assert (written / "points.csv").read_bytes() == first


def test_without_target_labels_nothing_is_looked_at(home):
    folder, state = home
    state["city"] = write_city(folder / "bare", labelled=False)
    out = features(folder, "--out", "here").stdout
    assert "looked at" not in out
    assert "classes of the target: the network's predictions" in out
    assert not (folder / "run/features").exists()
    assert not list((folder / "here").glob("pseudo_labels*"))


def test_stored_pseudo_labels_are_compared_with_the_training_labels(home):
    folder, state = home
    stage = folder / "run/stages/3-self_distillation/pseudo_labels"
    stage.mkdir(parents=True)
    for index, sample in enumerate(state["toyland-target"].split("train")):
        labels = np.asarray(Image.open(folder / "b/labels" / sample.image)).copy()
        labels[labels == 2] = 255  # no pseudo-labels of cars
        labels[labels == 1] = 0 if index else 1
        half = labels[::2, ::2]  # as stages write them: at the size of the network's input
        Image.fromarray(half).save(stage / f"{sample.image}.png")
    options = udaseg.FeatureOptions(points=3)
    assert len(udaseg.features("run", options=options).pseudo_labels) == 2, "they are not complete"
    stage.with_suffix(".json").write_text("{}")
    seen = udaseg.features("run", options=options)
    stored = seen.pseudo_labels[-1]
    assert stored.title.startswith("pseudo-labels of stage 3-self_distillation, toyland-target")
    assert stored.rows["car"]["labelled"] == 0
    assert stored.rows["road"]["recall"] == 1
    truths = [random_labels(16, 24, index) for index in (0, 1, 2, 3, 5)]
    skies = [(truth == 1).sum() for truth in truths]
    assert stored.rows["sky"]["recall"] == skies[0] / sum(skies)
    assert stored.rows["sky"]["precision"] == 1


def test_the_report_shows_the_newest_look_and_says_that_labels_were_looked_at(home):
    folder, _ = home
    write_run(folder / "seen")
    command("report", "seen", "--images", 0, cwd=folder)
    page = folder / "seen/report.html"
    assert 'id="s-features"' not in page.read_text()
    command("features", "seen", "--points", 3, "--out", "seen/features/city-val", cwd=folder)
    command("report", "seen", "--images", 0, cwd=folder)
    text = page.read_text()
    section = text[text.index('id="s-features"') : text.index('id="s-what-was-run"')]
    picture = base64.b64decode(re.search('src="data:image/png;base64,([^"]*)"', section)[1])
    assert picture == (folder / "seen/features/city-val/features.png").read_bytes()
    assert "Labels of the target were looked at" in section
    for column in ("within / between", "to the source", "precision", "recall"):
        assert f'<th scope="col">{column}</th>' in section
    with (folder / "seen/features/city-val/distances_target.csv").open(newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert f">{float(rows['road']['within']):.4f}</td>" in section
    (folder / "seen/features/city-val/features.json").write_text('{"facts": {"a": 1}}')
    command("report", "seen", "--images", 0, cwd=folder)
    assert (
        "features/city-val cannot be read; run <code>udaseg features</code> again"
        in page.read_text()
    )


def test_without_scikit_learn_it_says_what_to_install(home, monkeypatch):
    folder, _ = home
    monkeypatch.setattr(plane, "find_spec", lambda name: None)
    assert "pip install 'udaseg[features]'" in features(folder, expect=5).stderr
    with pytest.raises(EnvironmentFault):
        udaseg.features("run")


def test_the_plane_keeps_distances_that_fit_in_it_and_groups_stay_together():
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 10)
    flat = np.array([[0, 0], [9, 0], [0, 5]])[group] + rng.normal(size=(30, 2))
    basis, _ = np.linalg.qr(rng.normal(size=(8, 2)))
    seen = plane.to_plane((flat @ basis.T).astype(np.float32))
    assert seen.variance == pytest.approx(1)
    for positions, exact in ((seen.pca, True), (seen.tsne, False)):
        apart = np.linalg.norm(positions[:, None] - positions, axis=2)
        if exact:
            assert np.allclose(apart, np.linalg.norm(flat[:, None] - flat, axis=2), atol=1e-4)
        np.fill_diagonal(apart, np.inf)
        assert (group[apart.argmin(1)] == group).all()


def test_too_few_points_are_refused():
    with pytest.raises(DataError, match="4 labelled cells are too few; use more images"):
        plane.to_plane(np.eye(4, dtype=np.float32))
