"""`info`, the report and `select` name as target what a run adapts to, and the network's stride."""

from types import SimpleNamespace

import pytest

import udaseg
from udaseg.errors import UsageError
from udaseg.inspection.record import read_run
from udaseg.recipe.load import dump, to_dict
from udaseg.selection import candidates
from udaseg.selection.candidates import Candidate, check_comparable


def run_of(folder, recipe, **overrides):
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(udaseg.load_recipe(recipe, overrides=overrides)))
    return folder


def test_a_run_on_the_source_alone_has_no_target(tmp_path):
    alone, adapted = (run_of(tmp_path / n, f"toyland/{n}") for n in ("source_only", "adabn"))
    rows = udaseg.info(alone).to_json()
    assert rows["target"] == "none: trained on the source alone"
    assert rows["batch"] == "4 source images"
    content = read_run(alone, "alone", None)
    assert content.facts["target (unlabelled)"] == "none: trained on the source alone"
    assert content.cost["images per step"] == "4 of the source"
    rows = udaseg.info(adapted).to_json()
    assert rows["target"].startswith("toyland-target, train")
    assert rows["batch"] == "4 source and 4 target images"
    content = read_run(adapted, "adapted", None)
    assert content.facts["target (unlabelled)"].startswith("toyland-target, train")
    assert content.cost["images per step"] == "4 of the source and 4 of the target"


@pytest.mark.parametrize(
    ("backbone", "wished", "stride"),
    [("timm:test_vit", 8, 16), ("mobilenet_v2", 8, 8), ("timm:vgg11_bn", 8, 32)],
)
def test_info_has_the_stride_of_the_network_itself(tmp_path, backbone, wished, stride):
    words = {"model.backbone": backbone, "model.output_stride": wished}
    details = udaseg.info(run_of(tmp_path / "run", "toyland/dacs", **words))
    assert details.stride == stride
    assert f", stride {stride}, initialised from" in details.to_json()["network"]


def test_networks_are_compared_on_the_target_of_those_that_adapt(tmp_path, monkeypatch):
    targets = {"alone": "a_city", "one": "photos", "two": "photos", "other": "films"}

    def found(path):
        method = "source_only" if path.name == "alone" else "dacs"
        data = {"target.data": targets[path.name]}
        recipe = udaseg.load_recipe(f"toyland/{method}", overrides=data)
        classes = {"names": ["road"]}
        return SimpleNamespace(path=path, step=3, classes=classes, recipe=to_dict(recipe))

    monkeypatch.setattr(candidates, "find_checkpoint", found)
    three, two = ([Candidate(tmp_path, tmp_path / n) for n in names] for names in NAMES)
    assert check_comparable(three, same_target=True).target.data == "photos"
    assert [each.step for each in three] == [3, 3, 3]
    assert check_comparable(three[:1], same_target=True).target.data == "a_city"
    with pytest.raises(UsageError, match=r"other: was adapted to films, .*one to photos"):
        check_comparable(two, same_target=True)
    check_comparable(two, same_target=False)


NAMES = ("alone", "one", "two"), ("one", "other")
