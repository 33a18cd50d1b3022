"""The losses of DACS, AdvEnt, MinEnt and FDA as released on a fixed batch, written out again.

Only the network and its weights are shared. Each quirk is in the expected side, so a recipe with
the setting of udaseg in its place gives another loss.
"""

import copy
import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.methods.test_augmentation import as_kornia
from tests.support.small import shipped, small_segmenter
from udaseg.data.loading.batches import Batch
from udaseg.methods import build
from udaseg.recipe.stages import stages_of

CLASSES, SIZE, SEED = 19, (48, 64), 5


def _batch(progress=0.75):
    generator = torch.Generator().manual_seed(3)

    def patches(channels, high):
        drawn = torch.randint(0, high, (2, channels, 6, 8), generator=generator).float()
        return F.interpolate(drawn, SIZE, mode="bilinear" if high > 19 else "nearest").byte()

    labels = patches(1, CLASSES)[:, 0]
    labels[:, :7] = 255
    return Batch(9, progress, SEED, patches(3, 256), labels, patches(3, 256))


def _objective(monkeypatch, name, *overrides):
    """Return the objective of a recipe for GTA5, on a small network."""
    recipe = shipped(f"gta5_cityscapes/{name}", overrides)
    small = small_segmenter(classes=CLASSES, projector=False)
    small.align_corners = recipe.model.align_corners
    # an untrained network is nearly undecided everywhere
    small.head.branches[0].weight.data *= 20
    monkeypatch.setattr(build, "build_segmenter", lambda *_, **__: small)
    return build.build_objective(recipe, CLASSES, stage=stages_of(recipe)[0]).train()


def _unit(images):
    return images.float() / 255


def _enlarged(logits):
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)


def _logits(objective, images):
    """Return the logits of the network as it was before any step, with batch statistics."""
    return copy.deepcopy(objective.student)(images.contiguous()).logits


def _entropy(logits):
    shares = logits.softmax(1)
    return -(shares * (shares + 1e-30).log()).sum(1)


def _supervised(objective, images, batch):
    wide = _enlarged(_logits(objective, images))
    return F.cross_entropy(wide, batch.source_labels.long(), ignore_index=255)


def _same(report, expected):
    assert set(report.parts) == set(expected)
    return all(
        report.parts[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-9)
        for name, value in expected.items()
    )


def _dacs(objective, batch, bound):
    source, target = _unit(batch.source_images), _unit(batch.target_images)
    with torch.no_grad():
        sure, guessed = _enlarged(_logits(objective, target)).softmax(1).max(1)
    share = (sure >= bound).float().mean()
    digest = hashlib.sha256(f"{SEED}/mixed".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    order = torch.rand((2, CLASSES + 1), generator=generator)
    draws = [
        (torch.rand(8, generator=generator), torch.randperm(4, generator=generator))
        for _ in range(2)
    ]
    images, labels, weight = target.clone(), guessed.clone(), share.expand(2, *SIZE).clone()
    for b in range(2):
        classes = batch.source_labels[b].unique().tolist()  # void is one of them
        classes.sort(key=lambda k: float(order[b, min(k, CLASSES)]))
        for chosen in classes[: math.ceil(len(classes) / 2)]:
            pasted = batch.source_labels[b] == chosen
            images[b][:, pasted] = source[b][:, pasted]
            labels[b][pasted] = chosen
            weight[b][pasted] = 1.0
        numbers, adjustments = draws[b][0].tolist(), []
        amounts = [*(1 + 0.25 * (2 * n - 1) for n in numbers[1:4]), 0.25 * (2 * numbers[4] - 1)]
        if draws[0][0][0] < 0.8:  # the first image decides for both
            adjustments = [(kind, amounts[kind]) for kind in draws[b][1].tolist()]
        sigma = 0.15 + numbers[6] if draws[0][0][5] < 0.5 else None
        images[b] = as_kornia(images[b], adjustments, sigma)
    wide = _enlarged(_logits(objective, images))
    each = F.cross_entropy(wide, labels, ignore_index=255, reduction="none")
    return {
        "source": _supervised(objective, source, batch),
        "mixed": (each * weight).mean(),
    }


@pytest.mark.parametrize(
    "ours",
    [
        "method.mixing.ignore_is_class=false",
        "method.augmentation.kind=torchvision",
        "method.augmentation.per=image",
        "model.align_corners=false",
    ],
)
def test_dacs_mixes_jitters_and_weights_as_released(monkeypatch, ours):
    batch = _batch()
    first = _objective(monkeypatch, "dacs_release")
    with torch.no_grad():
        sure = _enlarged(_logits(first, _unit(batch.target_images))).softmax(1).amax(1)
    sure = sure.flatten().sort().values
    place = sure.diff()[len(sure) // 3 : len(sure) // 2].argmax() + len(sure) // 3
    bound = float(sure[place] + sure[place + 1]) / 2  # between two pixels, so rounding changes none
    words = f"method.mixing.confidence={bound}"
    objective = _objective(monkeypatch, "dacs_release", words)
    expected = _dacs(objective, batch, bound)
    assert _same(objective(batch), expected)
    assert not _same(_objective(monkeypatch, "dacs_release", words, ours)(batch), expected)


def _fda(objective, batch):
    source, target = _unit(batch.source_images), _unit(batch.target_images)
    spectrum = np.fft.fft2(source.double().numpy())
    amplitude = np.abs(spectrum)
    band = math.floor(min(SIZE) * 0.05)
    window = [*range(band), *range(-band, 0)]
    rows, columns = np.ix_(window, window)
    amplitude[..., rows, columns] = np.abs(np.fft.fft2(target.double().numpy()))[..., rows, columns]
    styled = np.fft.ifft2(amplitude * np.exp(1j * np.angle(spectrum))).real
    robust = ((_entropy(_logits(objective, target)) / 2.9444) ** 2 + 1e-8) ** 2
    counts = batch.progress >= 0.5
    return {
        "source": _supervised(objective, torch.from_numpy(styled).float(), batch),
        "entropy": counts * 0.005 * robust.mean(),
    }


STAGE = "method.stages.fda.objective"


@pytest.mark.parametrize(
    ("ours", "progress"),
    [
        (f"{STAGE}.window=numpy", 0.75),
        (f"{STAGE}.start=0", 0.49),
        (f"{STAGE}.max_entropy=null", 0.5),
        ("model.align_corners=false", 0.75),
    ],
)
def test_fda_styles_the_source_and_adds_entropy_late_as_released(monkeypatch, ours, progress):
    batch, band = _batch(progress), f"{STAGE}.band=0.05"
    objective = _objective(monkeypatch, "fda_release", band)
    expected = _fda(objective, batch)
    assert _same(objective(batch), expected)
    assert not _same(_objective(monkeypatch, "fda_release", band, ours)(batch), expected)


@pytest.mark.parametrize(
    "ours", ["method.stages.minent.objective.at=cells", "model.align_corners=false"]
)
def test_minent_takes_the_entropy_of_pixels_as_released(monkeypatch, ours):
    batch = _batch()
    objective = _objective(monkeypatch, "minent_release")
    wide = _enlarged(_logits(objective, _unit(batch.target_images)))
    expected = {
        "source": _supervised(objective, _unit(batch.source_images), batch),
        "entropy": 0.001 * _entropy(wide).mean() / math.log(CLASSES),
    }
    assert _same(objective(batch), expected)
    assert not _same(_objective(monkeypatch, "minent_release", ours)(batch), expected)


def test_advent_has_the_losses_of_both_networks_as_released(monkeypatch):
    batch = _batch()
    objective = _objective(monkeypatch, "advent_release")
    judged = []
    for images in (batch.source_images, batch.target_images):
        shares = _enlarged(_logits(objective, _unit(images))).softmax(1)
        seen = -shares * torch.log2(shares + 1e-30) / math.log2(CLASSES)
        judged.append(objective.discriminator(seen))
    of_source, of_target = judged
    expected = {
        "source": _supervised(objective, _unit(batch.source_images), batch),
        "adversarial": 0.001 * F.softplus(of_target).mean(),  # 0 is source
        "discriminator": F.softplus(of_source).mean() / 2 + F.softplus(-of_target).mean() / 2,
    }
    assert _same(objective(batch), expected)
    other = _objective(monkeypatch, "advent_release", "model.align_corners=false")
    other.discriminator.load_state_dict(objective.discriminator.state_dict())
    assert not _same(other(batch), expected)
