"""The losses of `sepico_release` on fixed batches, against the rules of the release written out.

Only random choices (crops, masks, augmentation) come from the same functions; every loss, label,
weight, average and memory is implemented again with loops, in float64.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from tests.support.parity import assert_same_networks, blocks, step_alike
from tests.support.small import shipped, small_segmenter
from udaseg.data.labels.classes import IGNORE
from udaseg.data.loading.batches import Batch
from udaseg.methods import build
from udaseg.methods.augmentation import generator_for, strong_augment
from udaseg.methods.mixing import balanced_crop, class_mask
from udaseg.models.projector import Projector

CLASSES, SIDE, STRIDE, STEPS, START = 6, 64, 8, 3, 1
HEAT = 0.2
# the temperature of the release makes every contrast ln K to three digits; an untrained network
# has low confidence
SETTINGS = [
    f"method.semantic.temperature={HEAT}",
    f"method.semantic.start={START}",
    "method.semantic.channels=4",
    "method.semantic.bank_rows=3",
    "method.teacher.momentum=0.6",
    "method.mixing.confidence=0.2",
    "method.mixing.ignore_rows=[3, 9]",
    "source.crop=[64, 64]",
    "target.crop=[80, 96]",
    "source.rare_class.min_crop_pixels=0",
]


def _batch(step):
    generator = torch.Generator().manual_seed(step)

    # blocks that are no cells, and classes 4 and 5 in the last step alone
    most = 4 if step < STEPS - 1 else 6
    labels = blocks(generator, 1, 0, most, (SIDE, SIDE), 16)[:, 0].roll((3, 5), (1, 2))
    labels[:, :9] = IGNORE
    images = blocks(generator, 3, 0, 256, (SIDE, SIDE))
    return Batch(
        step, step / STEPS, 31 + step, images, labels, blocks(generator, 3, 0, 256, (80, 96))
    )


class Released:
    """SePiCo in loops: a student, a teacher, and the source vectors of each class so far."""

    def __init__(self, objective, spec):
        self.student = copy.deepcopy(objective.student)
        self.teacher = copy.deepcopy(objective.teacher.network)
        self.spec = spec
        self.vectors = [torch.zeros(0, 4).double() for _ in range(CLASSES)]
        self.counted = []
        self.batch_means = [[torch.zeros(4).double()] for _ in range(CLASSES)]

    def taught(self, images):
        """Return the teacher's logits at the size of the images and its unit embeddings."""
        self.teacher.train()
        before = copy.deepcopy(self.teacher.state_dict())
        with torch.no_grad():
            seen = self.teacher(images, embed=True)
        self.teacher.load_state_dict(before)
        wide = F.interpolate(seen.logits, images.shape[-2:], mode="bilinear", align_corners=False)
        return wide.double().softmax(1), seen.embeddings.double()

    def losses(self, batch):
        """Return the loss terms; the statistics have this step's source before the contrast."""
        spec, seed = self.spec, batch.seed
        source, target = (
            (images.float() / 255).contiguous(memory_format=torch.channels_last)
            for images in (batch.source_images, batch.target_images)
        )
        labels = batch.source_labels.long()
        guessed = self.taught(target)[0].argmax(1).to(torch.uint8)
        generator = generator_for(seed, "crop")
        target = balanced_crop(target, guessed, (SIDE, SIDE), CLASSES, generator, spec.target_crop)
        shares, guessed = self.taught(target)[0].max(1)
        weight = torch.full(guessed.shape, float((shares >= 0.2).double().mean())).double()
        weight[:, :3], weight[:, -9:] = 0, 0

        self.learn(self.taught(source)[1], _on_cells(labels))
        parts = {"semantic": torch.zeros(()).double()}

        strong = self.strong(source, generator_for(seed, "source"))
        seen = self.student(strong, embed=batch.step >= START)
        # void pixels have loss 0 and are counted
        parts["source"] = _cross_entropies(seen.logits, labels).mean()
        if batch.step >= START:
            parts["semantic"] += self.contrast(seen.embeddings.double(), _on_cells(labels))
            strong = self.strong(target, generator_for(seed, "augmented"))
            seen = self.student(strong, embed=True)
            trusted = guessed.masked_fill(weight == 0, IGNORE)
            parts["semantic"] += self.contrast(seen.embeddings.double(), _on_cells(trusted))

        generator = generator_for(seed, "mixed")
        rules = {"ignore_is_class": True, "classes_of": "batch"}
        mask = class_mask(batch.source_labels, CLASSES, generator, **rules)
        images = self.strong(torch.where(mask[:, None], source, target), generator)
        logits = self.student(images).logits
        each = _cross_entropies(logits, torch.where(mask, labels, guessed))
        parts["mixed"] = (each * torch.where(mask, 1.0, weight)).mean()
        return parts

    def strong(self, images, generator):
        return strong_augment(images, generator, self.spec.augmentation)

    def learn(self, maps, labels):
        """Append the vectors of each class, and their mean in this batch."""
        for k in range(CLASSES):
            new = maps.movedim(1, 3)[labels == k]
            self.vectors[k] = torch.cat([self.vectors[k], new])
            if len(new):
                self.batch_means[k].append(new.mean(0))

    def contrast(self, maps, labels):
        """Return the loss of a view and the term on its mean embedding."""
        queries, known = maps.movedim(1, 3)[labels != IGNORE], labels[labels != IGNORE]
        self.counted.append(len(queries))
        if len(queries) == 0:
            return 0.0
        held = [v if len(v) else torch.zeros(1, 4).double() for v in self.vectors]
        means = torch.stack([vectors.mean(0) for vectors in held])
        variances = torch.stack([vectors.var(0, unbiased=False) for vectors in held])
        scores = queries @ means.T / HEAT
        own = scores[range(len(known)), known]
        if self.spec.semantic.variant == "distribution":
            spread = queries.square() @ variances.T / (2 * HEAT**2)
            loss = (torch.logsumexp(scores + spread, 1) - own).mean()
        elif self.spec.semantic.variant == "prototype":
            loss = (torch.logsumexp(scores, 1) - own).mean()
        else:
            loss = self.against_bank(queries / HEAT, known)
        even = (means @ queries.mean(0) / HEAT).log_softmax(0).sum()
        return loss + even / (CLASSES * math.log(CLASSES))

    def against_bank(self, queries, known):
        """Return the loss against the last three rows of each class, of which one is zero first."""
        similarities = [queries @ torch.stack(rows[-3:]).T for rows in self.batch_means]
        levels = torch.stack([each.mean(1).exp() for each in similarities])
        terms = []
        for place, k in enumerate(known.tolist()):
            others = levels[:, place].sum() - levels[k, place]
            own = similarities[k][place].exp()
            terms.append(-(own / (own + others)).log().mean())
        return torch.stack(terms).mean()

    def follow(self, step):
        """Move the teacher as the release does before iteration `step + 1`."""
        keep = min(1 - 1 / (step + 1 + 1), 0.6)
        ours = dict(self.student.named_parameters())
        with torch.no_grad():
            for name, weight in self.teacher.named_parameters():
                weight.copy_(keep * weight.double() + (1 - keep) * ours[name].double())


def _cross_entropies(logits, labels):
    """Return the loss of each pixel, 0 for void ones, (B, H, W)."""
    wide = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(wide.double(), labels, ignore_index=IGNORE, reduction="none")


def _on_cells(labels):
    """Return the class of 75 % of the pixels of each cell, or void."""
    cells = torch.full((2, SIDE // STRIDE, SIDE // STRIDE), IGNORE)
    for k in range(CLASSES):
        pixels = (labels == k).unfold(1, STRIDE, STRIDE).unfold(2, STRIDE, STRIDE)
        cells[pixels.double().mean((3, 4)) >= 0.75] = k
    return cells


def _objective(monkeypatch, *changes):
    torch.manual_seed(0)
    network = small_segmenter(classes=CLASSES)
    network.projector = Projector(8, 4, kind="norm")
    monkeypatch.setattr(build, "build_segmenter", lambda *_, **__: network)
    settings = dict(word.split("=", 1) for word in (*SETTINGS, *changes))
    words = [f"{key}={value}" for key, value in settings.items()]
    recipe = shipped("gta5_cityscapes/sepico_release", words)
    return build.build_objective(recipe, CLASSES).train(), recipe.method


@pytest.mark.parametrize("variant", ["distribution", "bank", "prototype"])
def test_losses_and_teacher_follow_the_release_over_several_steps(variant, monkeypatch):
    objective, spec = _objective(monkeypatch, f"method.semantic.variant={variant}")
    released = Released(objective, spec)
    released.student.train()
    networks = (objective.student, released.student)
    rules = [torch.optim.SGD(net.parameters(), lr=0.01) for net in networks]
    for step in range(STEPS):
        step_alike(objective, released, rules, _batch(step))
        assert_same_networks(objective, released)
    assert min(released.counted) > 10, "a contrast saw next to no cell"


OUR_DEFAULTS = {
    "method.augment_source=false": {"source", "semantic"},
    "method.source_mean=labelled": {"source"},
    "method.mixing.classes_of=image": {"mixed"},
    "method.mixing.ignore_is_class=false": {"mixed"},
    "method.mixing.ignore_rows=[0, 0]": {"mixed", "semantic"},
    "method.target_crop.max_share=0.3": {"mixed", "semantic"},
    "method.semantic.label_share=null": {"semantic"},
    "method.semantic.mean_weight=0": {"semantic"},
    "method.semantic.unseen=left_out": {"semantic"},
    "method.semantic.second_view=mixed": {"semantic"},
}


@pytest.mark.parametrize("change", OUR_DEFAULTS)
def test_each_setting_of_the_release_alone_changes_what_the_card_says(change, monkeypatch):
    found = []
    for changes in ((), (change,)):
        objective, _ = _objective(monkeypatch, *changes)
        found.append(objective(_batch(START)).parts)
    moved = {name for name in found[0] if abs(found[0][name] - found[1][name]) > 1e-6}
    # a pass more or less does not change another: batch norms use the batch
    assert moved == OUR_DEFAULTS[change]


def test_before_the_contrast_the_head_is_not_trained_and_the_target_is_seen_once(monkeypatch):
    objective, _ = _objective(monkeypatch)
    calls, forward = [], objective.student.forward

    def counted(images, *, embed=False):
        calls.append(embed)
        return forward(images, embed=embed)

    monkeypatch.setattr(objective.student, "forward", counted)
    objective(_batch(START - 1)).total.backward()
    assert calls == [False, False]
    assert all(part.grad is None for part in objective.student.projector.parameters())
    objective(_batch(START)).total.backward()
    assert calls[2:] == [True, True, False]
    assert all(part.grad is not None for part in objective.student.projector.parameters())
