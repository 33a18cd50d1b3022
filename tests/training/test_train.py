"""`udaseg.train`, `udaseg.adapt` and `udaseg.run_seeds` called from Python."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

import udaseg
from tests.cli.test_fit import assert_same, tensors, without_checkpoints
from tests.support.toy import SMALL
from udaseg.errors import CheckpointError, EnvironmentFault, RecipeError, UsageError
from udaseg.recipe.library import find_recipe
from udaseg.recipe.load import dump, load
from udaseg.recipe.request import Overrides, requested_recipe
from udaseg.runs.best import warm_up_folder
from udaseg.training.resume import refuse_different_settings
from udaseg.training.train import TrainOptions, read_recipe

TINY = {
    **SMALL,
    "model.backbone": "timm:test_efficientnet",
    "model.weights": "random",
    "model.head_channels": 16,
}


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    return udaseg.adapt(
        "dacs",
        source="toyland",
        target="toyland-target",
        steps=2,
        seed=3,
        overrides=TINY,
        out=tmp_path_factory.mktemp("runs") / "dacs",
        options=TrainOptions(root=root),
    )


def read(recipe="rccr", *, overrides=None, options=None, **changes):
    return read_recipe(recipe, Overrides(**changes), overrides, options or TrainOptions())


def test_a_run_has_its_recipe_its_checkpoints_and_its_scores(run):
    assert run.finished
    assert (run.recipe.name, run.recipe.steps, run.recipe.seed) == ("dacs", 2, 3)
    assert [path.name for path in run.checkpoints] == ["step-000001.pt", "step-000002.pt"]
    assert 0 <= run.scores["toyland-target-val"].miou <= 1
    assert (run.path / "command.txt").read_text() == "udaseg.adapt\n"
    assert repr(run) == f"Run({str(run.path)!r})"
    assert udaseg.Run(os.fspath(run)) == udaseg.Run(run) == run


def test_the_checkpoint_at_the_end_of_the_warm_up_is_kept(root, tmp_path):
    sets, options = {"source": "toyland", "target": "toyland-target"}, TrainOptions(root=root)
    changes = {**TINY, "method.warm_up": 0.4, "validation.data": None}
    warm = tmp_path / "warm"
    run = udaseg.adapt("dacs", **sets, steps=4, overrides=changes, out=warm, options=options)
    assert [path.name for path in run.checkpoints] == ["step-000003.pt", "step-000004.pt"]
    kept = udaseg.load(warm_up_folder(warm))
    assert kept.step == 2
    changes = {**TINY, "machine.keep_checkpoints": 4, "validation.data": None}
    plain = tmp_path / "plain"
    udaseg.adapt("source_only", **sets, steps=4, overrides=changes, out=plain, options=options)
    of_plain = udaseg.load(plain / "checkpoints/step-000002.pt").segmenter.state_dict()
    assert_same(kept.segmenter.state_dict(), of_plain)


def test_nothing_is_printed_to_stdout_and_finished_runs_are_told(run, root, tmp_path, capsys):
    told = []
    options = TrainOptions(root=root, on_finish=lambda *what: told.append(what))
    again = udaseg.adapt(replace(run.recipe, steps=1), out=tmp_path / "run", options=options)
    ((same, scores),) = told
    assert same == again
    assert scores.miou == again.scores["toyland-target-val"].miou
    assert capsys.readouterr().out == ""


def test_a_run_is_resumed_with_its_own_recipe(run, root, tmp_path):
    whole = tensors(run.path)
    out = tmp_path / "run"
    first = udaseg.adapt(run.recipe, out=out, options=TrainOptions(root=root))
    assert_same(tensors(out), whole)
    for kind in ("pt", "json"):
        (out / f"checkpoints/step-000002.{kind}").unlink()
    again = udaseg.adapt(options=TrainOptions(root=root, resume=first))
    assert again == first
    assert_same(tensors(out), whole)
    without_checkpoints(out)
    udaseg.adapt(again.recipe, options=TrainOptions(root=str(root), resume=str(out)))
    assert_same(tensors(out), whole)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("rccr", {"source": "gta5", "target": "photos"}),
        ("dacs", {"source": "toyland", "target": "toyland-target", "steps": 7, "seed": 2}),
        ("toyland/spcl", {"overrides": {"machine.workers": 3, "optimizer.lr": 1e-5}}),
    ],
)
def test_a_recipe_is_what_the_command_line_makes_of_the_same_words(recipe, words):
    everyday = {name: words[name] for name in words if name != "overrides"}
    arguments = [f"{key}={value}" for key, value in words.get("overrides", {}).items()]
    method = None if "/" in recipe else recipe
    named = [recipe] if "/" in recipe else []
    expected = requested_recipe([*named, *arguments], Overrides(**everyday), "rccr", method)
    assert read(recipe, **words) == expected


def test_a_recipe_may_be_a_file_or_an_object(tmp_path):
    recipe = load(find_recipe("toyland/dacs"))
    path = tmp_path / "a=b.yaml"
    path.write_text(dump(recipe))
    assert read(path, seed=4) == (replace(recipe, seed=4), path)
    assert read(str(path))[0] == recipe
    assert read(recipe)[0] == recipe
    changed, _ = read(recipe, seed=4, overrides={"machine.workers": 2})
    assert changed == replace(recipe, seed=4, machine=replace(recipe.machine, workers=2))
    # as on the command line: other data has no validation, other numbers no expected score
    other, _ = read(recipe, target="photos")
    assert (other.validation.data, other.expected) == (None, None)
    assert (
        read(recipe, target="photos", overrides={"validation.data": "mine"})[0].validation.data
        == "mine"
    )


def test_a_wrong_value_in_a_recipe_object_is_refused():
    recipe = udaseg.load_recipe("toyland/rccr")
    assert read(recipe)[0] == recipe
    wrong = replace(recipe, steps=0, seed=-1)
    with pytest.raises(RecipeError, match=r"seed: must be in.*\n.*steps: must be at least 1"):
        read(wrong)


def test_a_relative_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    recipe = load(find_recipe("toyland/dacs"))
    (tmp_path / "steps=9.yaml").write_text(dump(recipe))
    monkeypatch.chdir(tmp_path)
    assert read("steps=9.yaml")[0] == recipe


@pytest.mark.parametrize(
    ("words", "error", "expected"),
    [
        ({"recipe": "rcrr"}, UsageError, "no method 'rcrr'; did you mean 'rccr'?"),
        ({"recipe": "toyland/rcrr"}, RecipeError, "no such file or shipped recipe"),
        ({"overrides": {"optimizer.rate": 1}}, RecipeError, "optimizer.rate"),
        ({"overrides": {"optimizer/lr=": 1}}, UsageError, "write dotted names"),
        ({"overrides": {"optimizer.lr": object()}}, UsageError, "optimizer.lr"),
        ({"recipe": "dacs", "options": TrainOptions(resume="runs/x")}, UsageError, "leave out"),
        ({"options": TrainOptions(resume="runs/x")}, CheckpointError, "not a run folder"),
    ],
)
def test_misuse_is_named(words, error, expected):
    with pytest.raises(error, match=expected.replace("?", r"\?")):
        read(**words)


def test_arguments_that_contradict_each_other_are_refused(run):
    for words in ({"out": "x"}, {"options": TrainOptions(resume=run, overwrite=True)}):
        options = words.pop("options", TrainOptions(resume=run))
        with pytest.raises(UsageError, match="--resume cannot be combined"):
            udaseg.adapt(options=options, **words)
    with pytest.raises(UsageError, match="udaseg adapt"):
        udaseg.train(run.recipe)
    with pytest.raises(UsageError, match="the same call again continues"):
        udaseg.run_seeds([0], options=TrainOptions(resume=run))


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_are_different_and_at_least_one(seeds):
    with pytest.raises(UsageError, match="one or more different whole"):
        udaseg.run_seeds(seeds, "toyland/dacs")


def test_numbers_of_numpy_are_numbers():
    recipe = read("toyland/dacs", steps=np.int64(7), overrides={"optimizer.lr": np.float32(0.5)})[0]
    assert (recipe.steps, recipe.optimizer.lr) == (7, 0.5)
    with pytest.raises(UsageError, match=r"source\.data: must be a plain value, got bytes"):
        read(source=b"toyland")


@pytest.mark.slow
def test_several_seeds_give_runs_and_statistics(root, tmp_path):
    words = {"target": "toyland-target", "source": "toyland", "steps": 1, "overrides": TINY}
    options = TrainOptions(root=root)
    two = udaseg.run_seeds([0, 1], "source_only", **words, out=tmp_path / "two", options=options)
    assert [(each.seed, each.run.path.name) for each in two.runs] == [(0, "s0"), (1, "s1")]
    assert two.failed == {}
    values = [each.run.scores["toyland-target-val"].miou for each in two.runs]
    assert two.means["mIoU"].values == tuple(values)
    assert two.means["mIoU"].mean == pytest.approx(sum(values) / 2)
    assert json.loads(two.summary_path.read_text())["means"]["mIoU"]["seeds"] == 2
    before = two.runs[0].run.checkpoints[-1].stat().st_mtime_ns
    again = udaseg.run_seeds([0, 1], "source_only", **words, out=tmp_path / "two", options=options)
    assert again == two
    assert two.runs[0].run.checkpoints[-1].stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("key", "error", "told"),
    [
        (
            "seed",
            RecipeError,
            "different settings: seed is 3 in process 0 on .*, other in process 1",
        ),
        ("the list of target", EnvironmentFault, "files: .* other in process 1 on far .start of"),
    ],
)
def test_a_process_that_has_other_settings_or_files_is_refused(
    root, tmp_path, monkeypatch, key, error, told
):
    """The process itself is alone; the other one is made up."""

    def gather(value):
        _, values = value
        return [value, ("far", {**values, key: "other"} if key in values else values)]

    monkeypatch.setattr("udaseg.distributed.all_gather_object", gather)
    with pytest.raises(error, match=told):
        udaseg.adapt(
            "dacs",
            source="toyland",
            target="toyland-target",
            steps=2,
            seed=3,
            overrides=TINY,
            out=tmp_path / "run",
            options=TrainOptions(root=root),
        )


def test_devices_and_loaders_of_processes_may_differ(monkeypatch):
    recipe = load(find_recipe("toyland/rccr"))
    found = []
    monkeypatch.setattr(
        "udaseg.distributed.all_gather_object", lambda value: found.append(value) or [value]
    )
    for machine in (recipe.machine, replace(recipe.machine, device="cuda", workers=3)):
        refuse_different_settings(replace(recipe, machine=machine))
    assert found[0] == found[1]
    assert found[0][1]["batch.source"] == recipe.batch.source


def test_an_oracle_is_scored_if_its_set_has_labels_to_score(root, capsys, caplog):
    small = {"model.backbone": "mobilenet_v2", "model.weights": "random", "machine.device": "cpu"}
    options = TrainOptions(root=root, dry_run=True)

    def plan(**overrides):
        udaseg.train(
            "toyland/source_only",
            source="toyland",
            target="toyland",
            overrides={**small, **overrides},
            options=options,
        )
        return capsys.readouterr().err

    assert "scored on  toyland val: 2 images" in plan()
    assert "scored on" not in plan(**{"validation.split": "none"})
    assert "toyland has no labelled split 'none', so the run is not scored" in caplog.text


@pytest.mark.slow
def test_a_run_with_all_options_of_self_training_is_resumed_in_and_after_its_warm_up(
    root, tmp_path
):
    changes = {
        **TINY,
        "method.warm_up": 0.5,
        "method.mix_ramp": 0.5,
        "method.teacher.mirror": True,
        "method.teacher.prior": {"exponent": 0.25, "towards": "source"},
        "method.mixing.share_over": "class",
        "method.masking": {"kind": "block", "size": 16},
        "machine.micro_batches": 2,
        "machine.activation_checkpointing": True,
        "machine.keep_checkpoints": 4,
        "validation.data": None,
    }
    sets, options = {"source": "toyland", "target": "toyland-target"}, TrainOptions(root=root)
    whole = udaseg.adapt(
        "rccr", **sets, steps=4, overrides=changes, out=tmp_path / "run", options=options
    )
    expected, warm = tensors(whole.path), warm_up_folder(whole.path) / "step-000002.pt"
    of_warm_up = udaseg.load(warm).segmenter.state_dict()
    for kept in (3, 1):
        for step in range(kept + 1, 5):
            for kind in ("pt", "json"):
                (whole.path / f"checkpoints/step-{step:06d}.{kind}").unlink()
        if kept == 1:
            shutil.rmtree(warm.parent)
        udaseg.adapt(options=TrainOptions(root=root, resume=whole))
        assert_same(tensors(whole.path), expected)
    assert_same(udaseg.load(warm).segmenter.state_dict(), of_warm_up)
