"""The teacher's output for target images, and how much their pixels count."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.distributed import world_size
from udaseg.methods.fused import float32_products
from udaseg.methods.pixel_loss import count_classes
from udaseg.methods.teacher import Teacher
from udaseg.models.segmenter import Segmenter, SegmenterOutput
from udaseg.recipe.methods import Mixing, Prior
from udaseg.recipe.methods import Teacher as TeacherSpec

REMEMBERED = ("histogram", "probability", "source_classes")
"""Names of the sums over ranks that a step adds to the state."""

_RAREST = 1e-4
_SCALE_OF_TOKENS = 1.5
_STRIDE = 4
_BINS = 150
_LOWEST, _PER_UNIT = -3.0, 10
"""Bins of log(p / (1 - p)): from p = 0.05 in steps of 0.025 at 0.5, and of 0.001 at 0.99. The first
has all below, too.
"""
_MOMENTUM = 0.99


@torch.no_grad()
def ask_teacher(teacher: Teacher, images: Tensor, *, embed: bool, mirror: bool) -> SegmenterOutput:
    """Return the teacher's output for images (B, 3, H, W) in [0, 1].

    With `mirror`, the logits are the logarithm of the mean of the probabilities that it gives to
    each cell of the images and of their mirror images; features and embeddings are those of the
    images.
    """
    output: SegmenterOutput = teacher(images, embed=embed)
    if not mirror:
        return output
    mirrored: SegmenterOutput = teacher(images.flip(-1))
    logs = [each.logits.float().log_softmax(1) for each in (output, mirrored)]
    mean = torch.logaddexp(logs[0], logs[1].flip(-1)) - math.log(2)
    return replace(output, logits=mean)


def label_scale(spec: TeacherSpec, student: Segmenter) -> float:
    """Return the multiple of their size at which target images are labelled."""
    if spec.scale is not None:
        return spec.scale
    return _SCALE_OF_TOKENS if student.backbone.has_tokens else 1.0


def enlarged(images: Tensor, scale: float) -> Tensor:
    """Return images (B, 3, H, W) at this multiple of their size."""
    if scale == 1:
        return images
    size = [round(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


class ClassPrior(nn.Module):
    """Corrects the teacher's probabilities for how often it predicts each class.

    The probability of class k becomes p / m^e, or p (s / m)^e towards the source, renormalised. m
    is the running mean of the teacher's uncorrected probability of k over the cells of all images,
    s the running share of k among the source's labels; neither counts as less than 0.0001. Both are
    those of the steps before, so the first step corrects nothing.

    Args:
        spec: The exponent e, where to, and the momentum of the means.
        num_classes: K.
    """

    of_teacher: Tensor
    of_source: Tensor

    def __init__(self, spec: Prior, num_classes: int) -> None:
        super().__init__()
        self.spec, self.num_classes = spec, num_classes
        self.register_buffer("of_teacher", torch.full((num_classes,), 1 / num_classes))
        if spec.towards == "source":
            self.register_buffer("of_source", self.of_teacher.clone())

    def corrected(self, output: SegmenterOutput) -> SegmenterOutput:
        """Return an output of the teacher whose logits are those of corrected probabilities."""
        return replace(output, logits=output.logits.float() + self._shift())

    def numbers(self, corrected: SegmenterOutput, source_labels: Tensor) -> dict[str, Tensor]:
        """Return what has to be summed over ranks, for an output that `corrected` returned."""
        probability = (corrected.logits - self._shift()).softmax(1).sum((0, 2, 3))
        numbers = {"probability": probability}
        if self.spec.towards == "source":
            numbers["source_classes"] = class_counts(source_labels, self.num_classes)
        return numbers

    def update(self, totals: Mapping[str, Tensor], step: int) -> None:
        """Remember the classes of a step, from `numbers` summed over ranks."""
        keep = min(1 - 1 / (step + 1), self.spec.momentum)
        means = {"probability": self.of_teacher}
        if self.spec.towards == "source":
            means["source_classes"] = self.of_source
        for name, mean in means.items():
            counts = totals[name].double()
            share = (counts / counts.sum().clamp_min(1e-9)).float()
            # without a labelled pixel, nothing is learnt of the source
            mean.lerp_(torch.where(counts.sum() > 0, share, mean), 1 - keep)

    def _shift(self) -> Tensor:
        """Return what is added to the logits, (1, K, 1, 1)."""
        shift = -self.of_teacher.clamp_min(_RAREST).log()
        if self.spec.towards == "source":
            shift = shift + self.of_source.clamp_min(_RAREST).log()
        return self.spec.exponent * shift.view(1, -1, 1, 1)


class TargetWeights(nn.Module):
    """How much target pixels count, from how sure the teacher is of them.

    All count as much as the share of sure pixels, that of the batch or of their image. By class,
    there is no share: a sure pixel counts fully, and another not at all. A pixel of a class is sure
    at the class's own limit: the quantile of its confidence in the steps before, or
    `mixing.confidence` if that is lower, or if the class was never predicted. The quantile is read
    from a histogram that fades by 0.99 a step, and rounded down to the start of a bin.

    Args:
        spec: Says of what the share is, and when a pixel is sure.
        num_classes: K.

    Reference:
        Zou et al., CBST (2018) for labels chosen from each class's most confident pixels.
    """

    histogram: Tensor

    def __init__(self, spec: Mixing, num_classes: int) -> None:
        super().__init__()
        self.spec, self.num_classes = spec, num_classes
        if spec.share_over == "class":
            self.register_buffer("histogram", torch.zeros(num_classes, _BINS))

    def limits(self) -> Tensor:
        """Return the confidence at which a pixel of each class is sure, (K,)."""
        upwards = torch.ones(_BINS, _BINS, device=self.histogram.device).triu()
        with float32_products(self.histogram.device):
            below = self.histogram @ upwards  # cumsum has no deterministic form on a GPU
        total = below[:, -1:]
        bins = (below < self.spec.class_quantile * total).sum(1, keepdim=True)
        starts = torch.where(bins > 0, (_LOWEST + bins / _PER_UNIT).sigmoid(), 0.0)
        lowest = torch.where(total > 0, starts, 1.0)[:, 0]
        return lowest.clamp(max=self.spec.confidence)

    def share_of_images(self, confidence: Tensor) -> Tensor:
        """Return the share of sure pixels (B, 1, 1) of each image (B, H, W)."""
        return (confidence >= self.spec.confidence).float().mean((1, 2), keepdim=True)

    def numbers(self, labels: Tensor, confidence: Tensor) -> dict[str, Tensor]:
        """Return what has to be summed over ranks, for labels and confidence (B, H, W)."""
        match self.spec.share_over:
            case "batch":
                return {"share": self.share_of_images(confidence).mean(0, keepdim=True)}
            case "image":
                return {}
            case "class":
                top, bottom = self.spec.ignore_rows
                rows = slice(top, labels.shape[1] - bottom)
                given = labels[:, rows], confidence[:, rows]
                return {"histogram": _class_histogram(*given, self.num_classes)}

    def weight(self, labels: Tensor, confidence: Tensor, totals: Mapping[str, Tensor]) -> Tensor:
        """Return the weight of each pixel from `numbers` summed over ranks.

        It is (B, 1, 1) of each image, (1, 1, 1) of all, or (B, H, W) of each pixel.
        """
        match self.spec.share_over:
            case "batch":
                return (totals["share"] / world_size()).float()
            case "image":
                return self.share_of_images(confidence)
            case "class":
                return (confidence >= self.limits()[labels.long()]).float()

    def update(self, totals: Mapping[str, Tensor]) -> None:
        """Remember the confidence of a step, from those `numbers` that are `REMEMBERED`."""
        if self.spec.share_over == "class":
            self.histogram.mul_(_MOMENTUM).add_(totals["histogram"].float())


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Return the pixels of each class in every fourth row and column of (B, H, W) labels, (K,)."""
    return count_classes(labels[:, ::_STRIDE, ::_STRIDE], num_classes)


def _class_histogram(labels: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
    """Return how often each class has a confidence in each bin, (K, bins)."""
    device = labels.device
    classes, bins = (torch.arange(count, device=device) for count in (num_classes, _BINS))
    every = (..., slice(None, None, _STRIDE), slice(None, None, _STRIDE))
    places = (confidence[every].float().logit(1e-6) - _LOWEST) * _PER_UNIT
    places = places.long().clamp(0, _BINS - 1).flatten(1)
    counts = []
    with float32_products(device):
        # products of ones, because counting at indices is atomic or sorted on a GPU
        for found, place in zip(labels[every].flatten(1), places, strict=True):
            is_class = (found == classes[:, None]).float()
            counts.append(is_class @ (place[:, None] == bins).float())
    return torch.stack(counts).sum(0)
