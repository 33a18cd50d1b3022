"""Train with RCCR's regularizer in a plain PyTorch loop.

    python examples/own_loop.py [STEPS]

Any network works that returns features, embeddings and logits. The images are toyland's.
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.io import read_image

import udaseg
from udaseg.contrast import CUTMIX, TARGET, RegionalContrast, Views, cell_view, labels_on_cells
from udaseg.models import build_segmenter

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
STRIDE, BATCH = 16, 4

source, target = udaseg.prepare("toyland")
SIZE = next(source.samples).height
CELLS = SIZE // STRIDE


def crop(path: Path, mode: str = "RGB") -> torch.Tensor:
    """Return the upper left corner of an image."""
    return read_image(str(path), mode=mode)[:, :SIZE, :SIZE]


def read_batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return source images and labels and target images."""
    pick = range(BATCH * step, BATCH * (step + 1))
    sources = [source.dataset.split("train")[i % source.counts["train"]] for i in pick]
    targets = [target.dataset.split("train")[i % target.counts["train"]] for i in pick]
    images = torch.stack([crop(source.dataset.image_path(sample)) for sample in sources])
    labels = torch.cat([crop(source.dataset.label_path(s), "UNCHANGED") for s in sources]).long()
    photos = torch.stack([crop(target.dataset.image_path(sample)) for sample in targets])
    return images / 255, labels, photos / 255


recipe = udaseg.load_recipe("toyland/rccr")
spec = recipe.method.regional
student = build_segmenter(recipe.model, len(source.classes), projector=spec.projector)
teacher = copy.deepcopy(student).eval().requires_grad_(False)
regularizer = RegionalContrast(spec, channels=spec.projector.channels)
optimizer = torch.optim.AdamW(student.parameters(), 1e-3)

for step in range(STEPS):
    images, labels, photos = read_batch(step)
    # paste a square of the target, aligned with the cells of the feature map
    square = torch.zeros(BATCH, CELLS, CELLS, dtype=torch.bool)
    square[:, CELLS // 4 : 3 * CELLS // 4, CELLS // 4 : 3 * CELLS // 4] = True
    inside = square.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)[:, None]
    pasted = student(torch.where(inside, photos, images), embed=True)
    target_view = cell_view(teacher(photos, embed=True), None)
    mixed_labels = torch.where(square, target_view.labels, labels_on_cells(labels, pasted))
    cutmix_view = replace(cell_view(pasted, mixed_labels), square=square)

    logits = F.interpolate(student(images).logits, (SIZE, SIZE), mode="bilinear")
    loss = F.cross_entropy(logits, labels, ignore_index=255)
    views = Views(step, step / STEPS, step, {CUTMIX: cutmix_view, TARGET: target_view})
    contrast = regularizer(views)
    optimizer.zero_grad()
    (loss + contrast).backward()
    optimizer.step()

    regularizer.update(views)  # fills the memory bank
    with torch.no_grad():
        for average, weight in zip(teacher.parameters(), student.parameters(), strict=True):
            average.lerp_(weight, 0.01)
    if (step + 1) % 20 == 0 or step + 1 == STEPS:
        print(f"step {step + 1}: loss {loss.item():.3f}, contrast {contrast.item():.5f}")
