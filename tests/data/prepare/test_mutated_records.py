"""JSON beside prepared data and masks, mutated: refused or written again, never half understood."""

import json
import random
import shutil

import pytest

import udaseg
from tests.support import mutations
from tests.support.own import own_set
from udaseg.data.datasets.index import read_index
from udaseg.data.loading.cache import open_cache
from udaseg.data.prepare.manifest import read_manifest
from udaseg.data.prepare.prepare import prepare_with_last_options
from udaseg.data.prepare.rules import CacheOptions, PrepareOptions
from udaseg.data.prepare.verify import verify_dataset
from udaseg.errors import DataError
from udaseg.evaluation.prediction_files import recorded_classes
from udaseg.files import sha256

MANY = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a root with a prepared set that has a cache, and its YAML."""
    root = tmp_path_factory.mktemp("root")
    yaml = own_set(root / "own")
    udaseg.prepare(str(yaml), root=root, options=PrepareOptions(cache=CacheOptions((6, 8))))
    return root, yaml


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "root")
    return tmp_path / "root"


def mutated(path, mutate, many=MANY):
    """Write `many` mutated versions of a file in turn, yield what was done, and restore it."""
    whole = path.read_bytes()
    for number in range(many):
        what, data = mutate(whole, random.Random(number))
        path.write_bytes(data)
        yield what
    path.write_bytes(whole)


def signed(data, rng):
    """Mutate a manifest and give it the digest of what it holds now."""
    what, body = mutations.of_json_lines(data[: data.rstrip().rindex(b"\n") + 1], rng)
    body = body.rstrip(b"\n") + b"\n"
    return what, body + json.dumps({"sha256": sha256(body)}).encode()


def test_an_index_is_refused_or_has_the_types_of_one(root):
    folder, refused = root / "prepared/own", 0
    for what in mutated(folder / "index.json", mutations.of_json):
        try:
            dataset = read_index(folder)
        except DataError as error:
            refused += 1
            assert "index.json" in str(error)
            continue
        for sample in (each for split in dataset.splits.values() for each in split):
            assert isinstance(sample.image, str), what
            assert isinstance(sample.label, str | None), what
            sizes = (sample.height, sample.width, *sample.class_pixels)
            assert all(type(size) is int and 0 <= size < 2**63 for size in sizes), what
            assert len(sample.class_pixels) in (0, len(dataset.classes or ())), what
    assert refused > MANY / 2


def test_a_manifest_is_refused_even_with_the_right_digest(root):
    folder = root / "prepared/own"
    for _ in mutated(folder / "manifest.jsonl", signed):
        try:
            read_manifest(folder)
            verify_dataset("own", root=root, workers=1)
        except DataError as error:
            assert "manifest.jsonl" in str(error)


@pytest.mark.parametrize("name", ["source.json", "index.json", "manifest.jsonl"])
def test_what_is_damaged_is_prepared_again(made, root, name):
    prepared, yaml = root / "prepared", str(made[1])
    wanted = read_index(made[0] / "prepared/own")
    mutate = signed if name.endswith("l") else mutations.of_json
    for what in mutated(prepared / "own" / name, mutate, many=12):
        assert prepare_with_last_options(yaml, root=root).dataset.splits == wanted.splits, what
        shutil.rmtree(prepared)
        shutil.copytree(made[0] / "prepared", prepared)


def test_a_damaged_cache_is_not_used_or_what_it_was(root):
    folder = root / "prepared/own"
    dataset = read_index(folder)
    for what in mutated(folder / "cache-8x6/cache.json", mutations.of_json):
        cache = open_cache(dataset, "train", (6, 8), labelled=True)
        assert cache is None or cache.format == "png", what


def test_a_prediction_says_which_classes_it_has_or_is_refused(tmp_path):
    facts = {"classes": {"names": ["a", "b"], "colors": [[0, 0, 0], [1, 1, 1]]}}
    path = tmp_path / "prediction.json"
    path.write_text(json.dumps({**facts, "also_there": [facts]}))
    for what in mutated(path, mutations.of_json):
        try:
            classes = recorded_classes(tmp_path)
        except DataError as error:
            assert "prediction.json" in str(error)
        else:
            assert all(isinstance(name, str) for name in classes.names), what
