"""Three steps of `rccr_release` equal RCCR's released rule; leaving out any quirk is detected.

The rule is written out here in plain torch and float64 and uses nothing of udaseg. Both sides get
the same random numbers; jitter and blur, which have tests of their own, are off.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.parity import blocky_batch
from tests.support.small import shipped
from udaseg.methods import build
from udaseg.models.backbones.sequential import SequentialBackbone
from udaseg.models.heads.deeplab_v2 import DeepLabV2
from udaseg.models.projector import Projector
from udaseg.models.segmenter import Segmenter
from udaseg.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rate

CLASSES, SIDE, STRIDE, STEPS, ALL_STEPS, VOID = 5, 64, 8, 3, 10, 255
WIDTH, EMBEDDING = 12, 6
CONFIDENT, SURE, TEMPERATURE, PICKED, MOMENTUM = 0.24, 0.21, 0.01, 60, 0.7
OVERRIDES = [
    f"steps={ALL_STEPS}",
    "optimizer.lr=0.01",  # so that three steps move far enough
    "method.augmentation.jitter_probability=0",
    "method.augmentation.blur_probability=0",
    f"method.mixing.confidence={CONFIDENT}",
    f"method.teacher.momentum={MOMENTUM}",
    f"method.regional.min_confidence={SURE}",
    f"method.regional.temperature={TEMPERATURE}",
    f"method.regional.cells_per_view={PICKED}",
    f"method.regional.projector.channels={EMBEDDING}",
]


class _Block(nn.Module):
    """A residual block whose tensors have the names of a ResNet's."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH)
        shortcut = nn.Conv2d(6, WIDTH, 1, 2, bias=False)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(WIDTH))

    def forward(self, maps):
        return (self.bn1(self.conv1(maps)) + self.downsample(maps)).relu()


def _network(spec, num_classes, *, projector):
    torch.manual_seed(1)
    stem = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
    pool = nn.MaxPool2d(3, 2, 1, ceil_mode=spec.ceil_pool)
    low = nn.Sequential(stem, nn.BatchNorm2d(6), nn.ReLU(), pool)
    body = SequentialBackbone(
        low, nn.Sequential(nn.Sequential(_Block())), ends=(1,), channels=(WIDTH,), strides=(8,)
    )
    head = DeepLabV2((WIDTH,), num_classes, spec.aspp_dilations)
    with torch.no_grad():
        for branch in head.branches:  # an untrained head is sure of nothing
            branch.weight.normal_(0, 0.1)
    return Segmenter(
        body,
        head,
        batch_norm=spec.batch_norm,
        projector=Projector.from_spec(projector, WIDTH),
        align_corners=spec.align_corners,
    )


def _batch(step):
    return blocky_batch(
        step, seed=step, steps=ALL_STEPS, classes=CLASSES, size=(SIDE, SIDE), void_rows=20
    )


class Draws:
    """The random numbers of a step, the same for both sides."""

    def __init__(self, step):
        generator = torch.Generator().manual_seed(90 + step)
        self.classes = torch.rand(2, CLASSES + 1, generator=generator)
        self.classes[:, CLASSES] = 0.0  # void is chosen first, if it is a class
        self.squares = [torch.tensor(each) for each in ((0.3, 0.99, 0.99), (0.6, 0.2, 0.4))]
        self.seed = step

    def picks(self, cells, view):
        generator = torch.Generator().manual_seed(10 * self.seed + view)
        return torch.empty(cells).uniform_(generator=generator).argsort()

    def give_to(self, monkeypatch):
        """Replace torch's random numbers of masks, squares and cells by these."""
        plain, squares = torch.rand, iter(self.squares)
        plain_order, views = torch.randperm, iter((0, 1))

        def rand(*size, **settings):
            if size == ((2, CLASSES + 1),):
                return self.classes.clone()
            return next(squares) if size == (3,) else plain(*size, **settings)

        def randperm(count, **settings):
            if count < SIDE:  # the order of jitter's operations
                return plain_order(count, **settings)
            return self.picks(count, next(views))

        monkeypatch.setattr(torch, "rand", rand)
        monkeypatch.setattr(torch, "randperm", randperm)


class Released:
    """The released rule: a student, a teacher, SGD with repeated tensors, and a list as memory."""

    def __init__(self, network):
        tensors = {name: value.double() for name, value in network.state_dict().items()}
        self.mean, self.std = tensors["mean"], tensors["std"]
        names = [name for name, _ in network.named_parameters()]
        self.student = {name: tensors[name].clone().requires_grad_() for name in names}
        self.teacher = {name: tensors[name].clone() for name in names}
        self.speeds, self.memory = {}, []

    def see(self, weights, images):
        """Return logits (B, K, 9, 9) and unit embeddings; norms use the batch, scale 1, shift 0."""

        def norm(maps):
            centred = maps - maps.mean((0, 2, 3), keepdim=True)
            return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()

        maps = (images - self.mean) / self.std
        maps = norm(F.conv2d(maps, weights["backbone.low.0.weight"], stride=2, padding=1)).relu()
        maps = F.max_pool2d(maps, 3, 2, 1, ceil_mode=True)
        block = "backbone.rest.0.0"
        main = norm(F.conv2d(maps, weights[f"{block}.conv1.weight"], stride=2, padding=1))
        short = norm(F.conv2d(maps, weights[f"{block}.downsample.0.weight"], stride=2))
        maps = (main + short).relu()
        logits = 0.0
        for branch, dilation in (("head.branches.0", 6), ("head.branches.1", 12)):
            logits = logits + _convolved(maps, weights, branch, dilation)
        hidden = _convolved(maps, weights, "projector.layers.0").relu()
        return logits, F.normalize(_convolved(hidden, weights, "projector.layers.2"), dim=1)

    def losses(self, batch, draws):
        source, target = batch.source_images.double() / 255, batch.target_images.double() / 255
        labels = batch.source_labels.long()
        with torch.no_grad():
            cells, keys = self.see(self.teacher, target)
            sure, guessed = _enlarged(cells).softmax(1).max(1)
        on_source, _ = self.see(self.student, source)
        supervised = F.cross_entropy(_enlarged(on_source), labels, ignore_index=VOID)
        mask = _class_mask(labels, draws)
        mixed_labels = torch.where(mask, labels, guessed)
        weight = torch.where(mask, 1.0, (sure >= CONFIDENT).double().mean())
        on_mixed, _ = self.see(self.student, torch.where(mask[:, None], source, target))
        each = F.cross_entropy(
            _enlarged(on_mixed), mixed_labels, ignore_index=VOID, reduction="none"
        )
        mixed = (each * weight).sum() / each.numel()
        contrast = self.contrast(batch, source, target, (cells.softmax(1).max(1), keys), draws)
        return {"source": supervised, "mixed": mixed, "regional": contrast}

    def contrast(self, batch, source, target, taught, draws):
        (sure, guessed), keys = taught
        top, left, side = _square(draws)
        images, square = source.clone(), torch.zeros(9, 9, dtype=torch.bool)
        pixels = slice(8 * top, 8 * (top + side)), slice(8 * left, 8 * (left + side))
        images[:, :, pixels[0], pixels[1]] = target[:, :, pixels[0], pixels[1]]
        square[top : top + side, left : left + side] = True
        _, queries = self.see(self.student, images)
        nearest = torch.arange(9) * SIDE // 9
        on_cells = batch.source_labels[:, nearest][:, :, nearest].long()
        of_image = torch.where(square, guessed, on_cells)
        rows = []
        for view, (maps, of_cells) in enumerate(((queries.detach(), of_image), (keys, guessed))):
            picks = draws.picks(162, view)[:PICKED]
            rows.append((_rows(maps)[picks], of_cells.flatten()[picks]))
        self.memory.append(tuple(torch.cat(part) for part in zip(*rows, strict=True)))
        bank, bank_labels = (torch.cat(part) for part in zip(*self.memory[-3:], strict=True))
        counted = (square & (sure > SURE)).flatten()
        query, key = _rows(queries)[counted], _rows(keys)[counted]
        label = guessed.flatten()[counted]
        self.anchors = len(query)
        scores, own = query @ bank.T / TEMPERATURE, (query * key).sum(1) / TEMPERATURE
        highest = torch.cat([own[:, None], scores], 1).amax(1)
        own = (own - highest).exp()
        others = ((scores - highest[:, None]).exp() * (bank_labels != label[:, None])).sum(1)
        share = own / (own + others + 1e-8)
        ramp = 0.01 * math.exp(-5 * (1 - math.sqrt(batch.step / ALL_STEPS)))
        return ramp * -(share + 1e-8).log().mean()

    def step(self, total, step):
        """SGD in a loop, in which the stem stands once, a block three, a shortcut four times."""
        trained = {
            name: value
            for name, value in self.student.items()
            if name.startswith("head.") or (name.startswith("backbone.") and value.dim() == 4)
        }
        gradients = torch.autograd.grad(total, list(trained.values()))
        decayed = (1 - step / ALL_STEPS) ** 0.9
        with torch.no_grad():
            for (name, weight), gradient in zip(trained.items(), gradients, strict=True):
                times = 4 if "downsample" in name else 3 if "rest" in name else 1
                rate = 0.01 * decayed * (10 if name.startswith("head") else 1)
                for _ in range(times):
                    moved = gradient + 5e-4 * weight
                    speed = self.speeds.get(name)
                    self.speeds[name] = moved if speed is None else 0.9 * speed + moved
                    weight -= rate * self.speeds[name]
            keep = min(1 - 1 / (step + 1), MOMENTUM)
            for name, weight in self.teacher.items():
                weight.mul_(keep).add_((1 - keep) * self.student[name])


def _convolved(maps, weights, name, dilation=0):
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.conv2d(maps, weight, bias, padding=dilation, dilation=max(1, dilation))


def _enlarged(logits):
    return F.interpolate(logits, (SIDE, SIDE), mode="bilinear", align_corners=True)


def _rows(maps):
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _class_mask(labels, draws):
    """Return the pixels of half of the classes, of which void is one, with the lowest numbers."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    for image, numbers, chosen in zip(labels, draws.classes, mask, strict=True):
        present = sorted(image.unique().tolist(), key=lambda c: numbers[min(c, CLASSES)].item())
        for each in present[: -(-len(present) // 2)]:
            chosen |= image == each
    return mask


def _square(draws):
    """Return the only square of the batch in cells; the last place of the grid never occurs."""
    share, down, right = draws.squares[0].tolist()
    side = max(1, int(SIDE * math.sqrt(share)) // STRIDE)
    return int(down * (SIDE // STRIDE - side)), int(right * (SIDE // STRIDE - side)), side


def _objective(monkeypatch, overrides=()):
    monkeypatch.setattr(build, "build_segmenter", _network)
    recipe = shipped("gta5_cityscapes/rccr_release", [*OVERRIDES, *overrides])
    objective = build.build_objective(recipe, CLASSES).train()
    return recipe, objective, build_optimizer(recipe, objective)


def _one_step(recipe, objective, optimizer, step, monkeypatch):
    """Run a step of udaseg, which updates student and teacher; return its losses."""
    set_learning_rate(optimizer, learning_rate_factor(step, ALL_STEPS, power=0.9, warmup=0))
    draws = Draws(step)
    with monkeypatch.context() as given:
        draws.give_to(given)
        report = objective(_batch(step))
    optimizer.zero_grad()
    report.total.backward()
    optimizer.step()
    objective.after_step(step, report)
    return {name: value.item() for name, value in report.parts.items()}


def _differing(ours, theirs):
    """Return the parts of the student whose weights differ by 1e-5 of their largest."""
    return {
        name.split(".")[0]
        for name, weight in ours.named_parameters()
        if name in theirs and (weight - theirs[name]).abs().max() > 1e-5 * theirs[name].abs().max()
    }


def test_three_steps_follow_the_released_rule(monkeypatch):
    recipe, objective, optimizer = _objective(monkeypatch)
    released = Released(objective.student)
    before, anchors = copy.deepcopy(released.student), 0
    for step in range(STEPS):
        expected = released.losses(_batch(step), Draws(step))
        losses = _one_step(recipe, objective, optimizer, step, monkeypatch)
        for name, value in expected.items():
            assert losses[name] == pytest.approx(value.item(), rel=1e-5), (step, name)
        released.step(sum(expected.values()), step)
        anchors += released.anchors
        assert not _differing(objective.student, released.student), step
        assert not _differing(objective.teacher.network, released.teacher), step
    assert anchors > 20
    assert _differing(objective.student, before) == {"backbone", "head"}
    for weights, moved in ((released.student, before), (released.teacher, before)):
        name = "backbone.rest.0.0.conv1.weight"
        assert (weights[name] - moved[name]).abs().max() > 1e-3


QUIRKS = {
    "method.regional.square_per=image": {"regional"},
    "method.regional.square_corner=all": {"regional"},
    "method.regional.keep_ignored=false": {"regional"},
    "method.regional.epsilon=0": {"regional"},
    "method.mixing.ignore_is_class=false": {"mixed"},
    "model.align_corners=false": {"source", "mixed"},
    "model.ceil_pool=false": {"source", "mixed", "regional"},
    "model.aspp_dilations=[6,12,18,24]": {"source", "mixed", "regional"},
    "optimizer.repeated=once": {"backbone of the student"},
    "method.regional.projector.trainable=true": {"projector of the student"},
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_each_quirk_alone_changes_what_the_card_says(quirk, monkeypatch):
    released = Released(_objective(monkeypatch)[1].student)
    parts = _objective(monkeypatch, [quirk])
    expected = released.losses(_batch(0), Draws(0))
    losses = _one_step(*parts, 0, monkeypatch)
    found = {
        name
        for name, value in expected.items()
        if losses[name] != pytest.approx(value.item(), rel=1e-5)
    }
    if not found:
        released.step(sum(expected.values()), 0)
        moved = _differing(parts[1].student, released.student)
        found = {f"{part} of the student" for part in moved}
    assert found == QUIRKS[quirk]
