"""Networks of which a part does not learn: `model.train=head` and `model.frozen_stages`."""

import re

import pytest
import torch
from torch import nn

from tests.cli.running import udaseg
from tests.cli.test_fit import assert_same, tensors
from tests.methods.test_self_training import _objective
from tests.support.injections import differing, everything, tiny_fit, trained
from tests.support.small import shipped, small_segmenter
from tests.support.toy import TINY, toy_pair
from tests.training.test_footprint import real_peak
from tests.training.test_optimizer import Blocks
from udaseg.errors import RecipeError
from udaseg.methods.objectives.source_only import SourceOnly
from udaseg.methods.teacher import Teacher
from udaseg.models.freezing import frozen_parameters
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.segmenter import Segmenter
from udaseg.training.footprint import estimate_footprint, peak_step_memory
from udaseg.training.optimizer import build_optimizer
from udaseg.training.setup import build_setup
from udaseg.training.snapshot import Snapshot

LOW = ("low.0.weight", "low.0.bias", "low.1.weight", "low.1.bias")
REST = ("rest.0.weight", "rest.0.bias", "rest.1.weight", "rest.1.bias")


def dacs(frozen, **changes):
    """Return DACS with a teacher on a network of two layers, of which parameters are frozen."""
    objective = _objective()
    objective.student = small_segmenter(
        projector=False, frozen=frozen, batch_norm="affine_frozen", head_norm=True
    )
    objective.teacher = Teacher(objective.student, momentum=0.9, **changes)
    return objective.train()


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("frozen", [LOW, LOW + REST])
def test_what_is_frozen_does_not_change_in_student_or_teacher(frozen, batch_statistics):
    objective = dacs(frozen, batch_statistics=batch_statistics)
    run = tiny_fit(objective=objective, steps=2)
    kept = tuple({f"backbone.{name.rpartition('.')[0]}." for name in frozen})
    affine = ("backbone.rest.1.weight", "backbone.rest.1.bias")  # of batch_norm=affine_frozen
    before = everything(run)
    assert trained(run) == 2
    after = everything(run)
    for name in objective.student.state_dict():
        for key in (f"student.{name}", f"teacher.network.{name}"):
            stays = name.startswith(kept) or name in affine or name in ("mean", "std")
            assert torch.equal(before[key], after[key]) == stays, key
    parts = {name: part.training for name, part in objective.student.named_modules()}
    assert not parts["backbone.low.1"]
    assert (parts["backbone.rest.1"], parts["head.norm"]) == (frozen == LOW, True)
    norm = objective.teacher.network.backbone.low[1]
    assert not norm.training, "its weights fit the frozen statistics"
    assert objective.teacher.network.head.norm.training == batch_statistics


def test_the_frozen_part_has_no_graph():
    network = small_segmenter(projector=False, frozen=LOW)
    low, high = network.backbone(torch.rand(2, 3, 32, 32))
    assert not low.requires_grad
    assert high.requires_grad
    network.recompute = True
    network(torch.rand(2, 3, 32, 32)).logits.sum().backward()
    assert all(
        (part.grad is None) == (name in LOW) for name, part in network.backbone.named_parameters()
    )


def test_teacher_and_rollback_copy_hold_the_frozen_part_once():
    objective = dacs(LOW + REST, batch_statistics=False)
    student, teacher = objective.student.backbone, objective.teacher.network.backbone
    assert [one is two for one, two in zip(student.parameters(), teacher.parameters(), strict=True)]
    run = tiny_fit(objective=objective, steps=1)
    writes = [part._version for part in teacher.parameters()]
    trained(run)
    assert [part._version for part in teacher.parameters()] == writes
    copy = Snapshot(1, objective, run.optimizer)
    held = list(copy._objective.values())
    storages = {value.untyped_storage()._cdata: value.nbytes for value in held}
    once = sum(part.nbytes for part in student.parameters())
    assert sum(value.nbytes for value in held) - sum(storages.values()) == once
    expected = everything(run)
    with torch.no_grad():
        for part in objective.parameters():
            part.fill_(float("nan"))
    copy.restore(objective, run.optimizer)
    assert differing(everything(run), expected) == []


def segmenter(spec, **changes):
    """Return 12 blocks with a dropout in each, frozen as the recipe says."""
    torch.manual_seed(0)
    backbone = Blocks()
    for block in backbone.blocks:
        block.append(nn.Dropout(0.5))
    head = DeepLabV2((4,), 3, (1,))
    return Segmenter(backbone, head, frozen=frozen_parameters(backbone, spec), **changes)


def test_frozen_stages_are_evaluated_and_later_ones_learn():
    network = segmenter(shipped("toyland/dacs", ["model.frozen_stages=2"]).model)
    learns = {name for name, part in network.backbone.named_parameters() if part.requires_grad}
    expected = [f"blocks.{block}." for block in range(6, 12)] + ["norm."]
    assert all(
        (name in learns) == name.startswith(tuple(expected))
        for name, _ in network.backbone.named_parameters()
    )
    for mode in (True, False):
        network.train(mode)
        training = [block[2].training for block in network.backbone.blocks]
        assert training == [False] * 6 + [mode] * 6
    teacher = Teacher(network, momentum=0.9, batch_statistics=False)
    for name, part in teacher.network.backbone.named_parameters():
        mine = network.backbone.get_parameter(name)
        assert (part is mine) == (name not in learns)
        assert not part.requires_grad
        assert mine.requires_grad == (name in learns)


def test_of_a_frozen_backbone_the_optimiser_holds_the_head():
    recipe = shipped("toyland/source_only", ["model.train=head"])
    network = segmenter(recipe.model)
    optimizer = build_optimizer(recipe, SourceOnly(network))
    held = [part for group in optimizer.param_groups for part in group["params"]]
    assert list(map(id, held)) == list(map(id, network.head.parameters()))


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        (
            "dacs",
            ["model.train=head", "model.frozen_stages=1"],
            r"model\.frozen_stages: must be 0 with model\.train=head, which freezes all",
        ),
        ("adabn", ["model.frozen_stages=1"], r"method\.target_statistics: must be 0 with a frozen"),
        ("adabn", ["model.train=head"], r"method\.target_statistics: must be 0 with a frozen"),
        ("rccr", ["model.train=head"], r"model\.train: must be all with method\.regional, which"),
        (
            "spcl",
            ["model.train=head"],
            r"must be all with method\.stages\[1\]\.objective\.prototypes",
        ),
    ],
)
def test_what_needs_a_backbone_that_learns_is_refused(recipe, words, message):
    with pytest.raises(RecipeError, match=message):
        shipped(f"toyland/{recipe}", words)


def test_a_recipe_must_leave_one_stage_that_learns():
    with pytest.raises(RecipeError, match=r"must be below 4, the number of .*, got 4; model\.tr"):
        segmenter(shipped("toyland/dacs", ["model.frozen_stages=4"]).model)


@pytest.mark.slow
def test_the_memory_plan_is_that_of_the_part_that_learns(root):
    whole, head = [
        build_setup(shipped("toyland/dacs", [*TINY, "steps=1", word]), *toy_pair(root))
        for word in ("model.train=all", "model.train=head")
    ]
    before, needs = estimate_footprint(whole), estimate_footprint(head)
    network = head.objective.student
    of_head = sum(part.nbytes for part in network.head.parameters())
    of_backbone = sum(part.nbytes for part in network.backbone.parameters())
    assert (needs.gradients, needs.moments) == (of_head, 2 * of_head)
    assert needs.student == before.student
    assert needs.teacher == before.teacher - of_backbone
    assert needs.activations < before.activations / 3
    assert peak_step_memory(head) == pytest.approx(real_peak(head), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["model.train=head", "model.frozen_stages=2"])
def test_a_run_with_a_frozen_part_resumes_exactly(root, tmp_path, word):
    out = tmp_path / "run"
    words = ["--root", root, "--out", out, *TINY, "machine.checkpoint_every=2", word]
    words += ["optimizer.layer_decay=0.8", "optimizer.decay_on=matrices", "optimizer.kind=adamw"]
    said = udaseg("adapt", "toyland/dacs", *words, "--steps", "4", cwd=tmp_path).stderr
    assert re.search(r"M parameters \(\d\.\d\d M trained\)", said)
    last, ended = out / "checkpoints" / "step-000004.pt", tensors(out)
    size = last.stat().st_size
    for path in (last, last.with_suffix(".json")):
        path.unlink()
    udaseg("adapt", "--resume", out, "--root", root, cwd=tmp_path)
    assert last.stat().st_size == pytest.approx(size, rel=1e-3)
    assert_same(tensors(out), ended)
    first = "student.backbone.low.0.0.weight"
    assert (
        ended[first].data_ptr() == ended[first.replace("student.", "teacher.network.")].data_ptr()
    )
