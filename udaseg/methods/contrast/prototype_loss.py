"""The prototype loss, with its gradient from the forward pass, and class sums of unit vectors."""

from typing import Any

import torch
from torch import Tensor

from udaseg.data.labels.classes import IGNORE
from udaseg.models.projector import LENGTH_EPS

_CHUNK = 4096


def prototype_loss(
    embeddings: Tensor, labels: Tensor, prototypes: Tensor, seen: Tensor, *, temperature: float
) -> Tensor:
    """Return the mean cross-entropy of the vectors' labels, with prototype similarities as logits.

    Args:
        embeddings: (N, D), normalised to unit length here; the only input with a gradient.
        labels: (N,) integer; vectors with label 255 or of a class without a prototype are not
            counted.
        prototypes: (K, D), used without normalisation.
        seen: (K,) bool; prototypes of classes not yet seen are in no denominator.
        temperature: Divides every similarity; above 0.

    Returns:
        A scalar; exactly 0, with a graph, if no vector is counted.

    Raises:
        ValueError: Shapes do not match, or the temperature is not above 0.

    Reference:
        Xie et al., SPCL (2021), L_cl. Differs: classes without a prototype are excluded.
    """
    total, count = prototype_sum(embeddings, labels, prototypes, seen, temperature)
    return total / count.clamp_min(1)


def prototype_sum(
    embeddings: Tensor, labels: Tensor, prototypes: Tensor, seen: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the sum over counted vectors and the count; see `prototype_loss`."""
    if labels.shape != embeddings.shape[:1] or prototypes.shape[1:] != embeddings.shape[1:]:
        shapes = tuple(embeddings.shape), tuple(labels.shape), tuple(prototypes.shape)
        raise ValueError(
            f"embeddings (N, D), labels (N,), prototypes (K, D) do not match: {shapes}"
        )
    if seen.shape != prototypes.shape[:1]:
        raise ValueError(f"seen {tuple(seen.shape)} but {len(prototypes)} prototypes")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    known = labels != IGNORE
    counted = known & seen[labels.long().masked_fill(~known, 0)]
    with torch.autocast(embeddings.device.type, enabled=False):
        total: Tensor = _PrototypeSum.apply(
            embeddings, labels.long(), prototypes.detach(), seen, temperature, counted
        )
    return total, counted.sum()


class _PrototypeSum(torch.autograd.Function):
    """The sum, with its gradient computed in the forward pass, chunk by chunk.

    With q = f / |f| the gradient of f is (g - q (q . g)) / |f|, where g, the gradient of q, is
    (softmax . prototypes - prototype of the label) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        seen: Tensor,
        temperature: float,
        counted: Tensor,
    ) -> Tensor:
        """Return the sum; store the gradient for `backward`."""
        scaled_KD = prototypes.float() / temperature
        unseen_K = ~seen
        gradient_ND = torch.empty(embeddings.shape, device=embeddings.device)
        loss = gradient_ND.new_zeros(())
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            feature_nD = embeddings[part].detach().float()
            length_n = (
                torch.linalg.vector_norm(feature_nD, dim=1).square() + LENGTH_EPS**2
            ).sqrt_()
            weight_n = counted[part].float()
            label_n1 = labels[part].masked_fill(~counted[part], 0)[:, None]
            # divided after the product, so no unit vectors of size n x D are stored
            similarity_nK = (feature_nD @ scaled_KD.T).div_(length_n[:, None])
            score_nK = similarity_nK.masked_fill(unseen_K, -torch.inf)
            # if no class was seen, all scores are -inf; such rows are not counted, keep them finite
            top_n1 = score_nK.amax(1, keepdim=True).nan_to_num_(neginf=0.0)
            label_score_n = (score_nK.gather(1, label_n1) - top_n1)[:, 0].nan_to_num_(neginf=0.0)
            share_nK = (score_nK - top_n1).exp_()
            total_n = share_nK.sum(1).clamp_min_(torch.finfo(torch.float32).tiny)
            loss = loss + ((total_n.log() - label_score_n) * weight_n).sum()
            share_nK.mul_((weight_n / total_n)[:, None])
            share_nK.scatter_add_(1, label_n1, -weight_n[:, None])
            along_n = (share_nK * similarity_nK).sum(1)
            share_nK.div_(length_n[:, None])
            gradient_nD = gradient_ND[part]
            torch.mm(share_nK, scaled_KD, out=gradient_nD)
            gradient_nD.addcmul_(feature_nD, (along_n / length_n.square())[:, None], value=-1)
        # not a saved tensor: backward scales it in place, which saves one copy of the features
        ctx.gradient = gradient_ND.to(embeddings.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the embeddings; the other inputs have none."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("prototype_loss: backward already called; compute the loss again")
        return (gradient.mul_(grad), *[None] * 5)


def class_sums(embeddings: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum (K, D) and the number (K,) of the unit vectors of each class.

    Args:
        embeddings: (N, D), normalised to unit length here; no gradient flows.
        labels: (N,) integer; 255 is ignored.
        num_classes: K.
    """
    sums = torch.zeros(num_classes, embeddings.shape[1], device=embeddings.device)
    counts = torch.zeros(num_classes, device=embeddings.device)
    classes = torch.arange(num_classes, device=embeddings.device)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            feature_nD = embeddings[part].float()
            # compared, not one_hot: one_hot reads the largest label and waits for the device
            member_nK = (labels[part, None] == classes).float()
            counts += member_nK.sum(0)
            # scales the small factor by the lengths, so the embeddings are not copied
            squares = torch.linalg.vector_norm(feature_nD, dim=1).square_()
            sums += (member_nK * torch.rsqrt(squares + LENGTH_EPS**2)[:, None]).T @ feature_nD
    return sums, counts
