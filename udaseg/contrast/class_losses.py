"""SePiCo's losses: a vector against a Gaussian or against a bank of rows of every class."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.contrast.vectors import LENGTH_EPS

_CHUNK = 4096
_IGNORE = 255


def distribution_loss(
    embeddings: Tensor,
    labels: Tensor,
    means: Tensor,
    variances: Tensor,
    seen: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Return DistCL, the bound on contrast with infinitely many samples of each class's Gaussian.

    With t the temperature, q a unit vector, and k over seen classes, the mean over vectors of
    logsumexp_k(q.mu_k / t + (q q).var_k / (2 t^2)) - q.mu_y / t. Without variance this is
    `prototype_loss`.

    Args:
        embeddings: (N, D), scaled to unit length here; the only input that gets a gradient.
        labels: (N,) integer; 255 is left out, and so is a class that is not seen.
        means: (K, D), as they are.
        variances: (K, D), of each channel.
        seen: (K,) bool; classes that are not seen yet are in no denominator.
        temperature: Above 0.

    Returns:
        A scalar; exactly 0, with a graph, when no vector counts.

    Raises:
        ValueError: Shapes that do not fit, or a temperature of 0 or less.

    Reference:
        Xie et al., SePiCo (2023), DistCL. Differs: classes that never occurred are left out.
    """
    total, count = distribution_sum(embeddings, labels, means, variances, seen, temperature)
    return total / count.clamp_min(1)


def distribution_sum(
    embeddings: Tensor,
    labels: Tensor,
    means: Tensor,
    variances: Tensor,
    seen: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the sum over counted vectors and their number; see `distribution_loss`."""
    if variances.shape != means.shape:
        raise ValueError(f"means {tuple(means.shape)} but variances {tuple(variances.shape)}")
    counted = _counted(embeddings, labels, means.shape, seen, temperature)
    with torch.autocast(embeddings.device.type, enabled=False):
        total: Tensor = _DistributionSum.apply(
            embeddings,
            labels.long(),
            means.detach(),
            variances.detach(),
            seen,
            temperature,
            counted,
        )
    return total, counted.sum()


def bank_loss(
    embeddings: Tensor, labels: Tensor, rows: Tensor, filled: Tensor, *, temperature: float
) -> Tensor:
    """Return BankCL: each row of the own class against the mean score of every other class.

    With t the temperature, q a unit vector of class y, p_m the rows of y, b_k the mean of the rows
    of k: the mean over vectors and over m of -log(e^{q.p_m / t} / (e^{q.p_m / t} + sum over k != y
    of e^{q.b_k / t})).

    Args:
        embeddings: (N, D), scaled to unit length here; the only input that gets a gradient.
        labels: (N,) integer; 255 is left out, and so is a class without rows.
        rows: (K, L, D), as they are.
        filled: (K,) integer, rows of each class that hold something, from the first on.
        temperature: Above 0.

    Returns:
        A scalar; exactly 0, with a graph, when no vector counts.

    Raises:
        ValueError: Shapes that do not fit, or a temperature of 0 or less.

    Reference:
        Xie et al., SePiCo (2023), BankCL; that a class's scores are averaged before the
        exponential is as released. Differs: classes without rows are left out; softplus instead of
        the logarithm of a quotient.
    """
    total, count = bank_sum(embeddings, labels, rows, filled, temperature)
    return total / count.clamp_min(1)


def bank_sum(
    embeddings: Tensor, labels: Tensor, rows: Tensor, filled: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the sum over counted vectors and their number; see `bank_loss`."""
    if rows.ndim != 3:
        raise ValueError(f"rows must be (K, L, D), got {tuple(rows.shape)}")
    valid_KL = torch.arange(rows.shape[1], device=rows.device) < filled[:, None]
    counted = _counted(embeddings, labels, (rows.shape[0], rows.shape[2]), filled > 0, temperature)
    with torch.autocast(embeddings.device.type, enabled=False):
        total: Tensor = _BankSum.apply(
            embeddings, labels.long(), rows.detach(), valid_KL, temperature, counted
        )
    return total, counted.sum()


def _counted(
    embeddings: Tensor,
    labels: Tensor,
    classes: tuple[int, ...],
    seen: Tensor,
    temperature: float,
) -> Tensor:
    """Return which vectors (N,) have a class that is seen.

    `classes` is the shape (K, D) of what they are compared with; one that does not fit raises
    ValueError, as a temperature of 0 or less does.
    """
    if labels.shape != embeddings.shape[:1] or classes[1:] != embeddings.shape[1:]:
        shapes = tuple(embeddings.shape), tuple(labels.shape), tuple(classes)
        raise ValueError(f"embeddings (N, D), labels (N,), classes (K, D) do not fit: {shapes}")
    if seen.shape != classes[:1]:
        raise ValueError(f"seen or filled {tuple(seen.shape)} but {classes[0]} classes")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    known = labels != _IGNORE
    return known & seen[labels.long().masked_fill(~known, 0)]


class _DistributionSum(torch.autograd.Function):
    """The sum with its gradient formed in the forward pass, a chunk of vectors at a time.

    The gradient of q is softmax . means / t + q (softmax . variances) / t^2 - own mean / t.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        means: Tensor,
        variances: Tensor,
        seen: Tensor,
        temperature: float,
        counted: Tensor,
    ) -> Tensor:
        """Return the sum; keep the gradient for `backward`."""
        mean_KD, spread_KD = means.float() / temperature, variances.float() / temperature**2
        gradient_ND = torch.empty(embeddings.shape, device=embeddings.device)
        loss = gradient_ND.new_zeros(())
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            query_nD, length_n1 = _units(embeddings[part])
            weight_n1 = counted[part].float()[:, None]
            label_n1 = labels[part].masked_fill(~counted[part], 0)[:, None]
            score_nK = query_nD @ mean_KD.T
            own_n1 = score_nK.gather(1, label_n1)
            score_nK.addmm_(query_nD.square(), spread_KD.T, alpha=0.5).masked_fill_(
                ~seen, -torch.inf
            )
            share_nK, level_n1 = _softmax(score_nK)
            # nothing seen: the level is -inf and no row counts; what is not finite is not hidden
            loss = loss + torch.where(counted[part][:, None], level_n1 - own_n1, 0.0).sum()
            share_nK.mul_(weight_n1)
            towards_nD = (share_nK @ spread_KD).mul_(query_nD)
            share_nK.scatter_add_(1, label_n1, -weight_n1)
            towards_nD.addmm_(share_nK, mean_KD)
            gradient_ND[part] = _through_unit(towards_nD, query_nD, length_n1)
        ctx.save_for_backward(gradient_ND.to(embeddings.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the embeddings alone."""
        (gradient,) = ctx.saved_tensors
        return (gradient * grad.to(gradient.dtype), *[None] * 6)


class _BankSum(torch.autograd.Function):
    """The sum with its gradient formed in the forward pass, a chunk of vectors at a time.

    A positive p_m with w_m = sigmoid(level of the negatives - q.p_m / t), over the number of
    positives, gives q the gradient w_m (softmax of the negatives . means - p_m) / t.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        rows: Tensor,
        valid: Tensor,
        temperature: float,
        counted: Tensor,
    ) -> Tensor:
        """Return the sum; keep the gradient for `backward`."""
        seen = valid.any(1)
        equal_KL = valid / valid.sum(1, keepdim=True).clamp_min(1)
        row_KLD = (rows.float() / temperature).masked_fill_(~valid[..., None], 0.0)
        mean_KD = (row_KLD * equal_KL[..., None]).sum(1)
        gradient_ND = torch.empty(embeddings.shape, device=embeddings.device)
        loss = gradient_ND.new_zeros(())
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            query_nD, length_n1 = _units(embeddings[part])
            label_n = labels[part].masked_fill(~counted[part], _IGNORE)
            own_nK = label_n[:, None] == torch.arange(len(seen), device=label_n.device)
            score_nK = (query_nD @ mean_KD.T).masked_fill_(own_nK | ~seen, -torch.inf)
            share_nK, level_n1 = _softmax(score_nK)
            part_loss, weight_n1, towards_nD = _positives(
                query_nD, own_nK, level_n1, row_KLD, equal_KL
            )
            loss = loss + part_loss
            towards_nD.addmm_(share_nK.mul_(weight_n1), mean_KD)
            gradient_ND[part] = _through_unit(towards_nD, query_nD, length_n1)
        ctx.save_for_backward(gradient_ND.to(embeddings.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the embeddings alone."""
        (gradient,) = ctx.saved_tensors
        return (gradient * grad.to(gradient.dtype), *[None] * 5)


def _positives(
    queries: Tensor, own: Tensor, level: Tensor, rows: Tensor, equal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the weight (n, 1) of each vector's negatives, its positives' gradient.

    Args:
        queries: (n, D) unit vectors.
        own: (n, K) bool, the class of each; of a vector that does not count, none.
        level: (n, 1) logsumexp of the negatives.
        rows: (K, L, D) over the temperature, zero where nothing lies.
        equal: (K, L) one over the number of a class's rows, 0 where nothing lies.
    """
    loss = queries.new_zeros(())
    weight_n1, towards_nD = torch.zeros_like(level), torch.zeros_like(queries)
    for own_n, row_LD, equal_L in zip(own.T, rows, equal, strict=True):
        # their number must come to the host: on a GPU waiting for it costs more than all products
        index = torch.arange(len(own_n), device=own_n.device) if own_n.is_cuda else own_n.nonzero()
        index = index.flatten()
        part_mL = own_n[index].float()[:, None] * equal_L
        behind_mL = level[index] - queries[index] @ row_LD.T
        loss = loss + (F.softplus(behind_mL) * part_mL).sum()
        pull_mL = behind_mL.sigmoid_().mul_(part_mL)
        weight_n1.index_add_(0, index, pull_mL.sum(1, keepdim=True))
        towards_nD.index_add_(0, index, pull_mL @ row_LD, alpha=-1)
    return loss, weight_n1, towards_nD


def _units(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors (n, D) in float32 and the lengths (n, 1) they were divided by."""
    wide = embeddings.detach().float()
    length_n1 = (wide.square().sum(1, keepdim=True) + LENGTH_EPS**2).sqrt_()
    return wide / length_n1, length_n1


def _through_unit(towards: Tensor, queries: Tensor, lengths: Tensor) -> Tensor:
    """Return the gradient of f, q = f / |f|, in place of that of q: (g - q (q . g)) / |f|."""
    along_n1 = (towards * queries).sum(1, keepdim=True)
    return towards.addcmul_(queries, along_n1, value=-1).div_(lengths)


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax, in place, and logsumexp (n, 1); zeros and -inf in a row of -inf."""
    top_n1 = scores.amax(1, keepdim=True).nan_to_num_(neginf=0.0)
    shares = scores.sub_(top_n1).exp_()
    total_n1 = shares.sum(1, keepdim=True)
    shares.div_(total_n1.clamp_min(torch.finfo(torch.float32).tiny))
    return shares, total_n1.log() + top_n1
