"""Losses that contrast vectors with the prototype, the Gaussian, or the bank rows of each class."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.data.labels.classes import IGNORE
from udaseg.methods.fused import with_gradient
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
    """Return the sum over counted vectors and the count; see `prototype_loss`.

    With q = f / |f| the gradient of f is (g - q (q . g)) / |f|, where g, the gradient of q, is
    (softmax . prototypes - prototype of the label) / temperature.
    """
    counted = _counted_mask(embeddings, labels, prototypes.shape, seen, temperature)
    scaled_KD = prototypes.detach().float() / temperature

    def chunk_loss(part: slice, gradient: Tensor) -> Tensor:
        feature_nD = embeddings[part].float()
        length_n = (torch.linalg.vector_norm(feature_nD, dim=1).square() + LENGTH_EPS**2).sqrt_()
        weight_n = counted[part].float()
        label_n1 = labels[part].long().masked_fill(~counted[part], 0)[:, None]
        # divided after the product, so no unit vectors of size n x D are stored
        similarity_nK = (feature_nD @ scaled_KD.T).div_(length_n[:, None])
        score_nK = similarity_nK.masked_fill(~seen, -torch.inf)
        # if no class was seen, all scores are -inf; such rows are not counted, keep them finite
        top_n1 = score_nK.amax(1, keepdim=True).nan_to_num_(neginf=0.0)
        label_score_n = (score_nK.gather(1, label_n1) - top_n1)[:, 0].nan_to_num_(neginf=0.0)
        share_nK = (score_nK - top_n1).exp_()
        total_n = share_nK.sum(1).clamp_min_(torch.finfo(torch.float32).tiny)
        loss = ((total_n.log() - label_score_n) * weight_n).sum()
        share_nK.mul_((weight_n / total_n)[:, None])
        share_nK.scatter_add_(1, label_n1, -weight_n[:, None])
        along_n = (share_nK * similarity_nK).sum(1)
        torch.mm(share_nK.div_(length_n[:, None]), scaled_KD, out=gradient)
        gradient.addcmul_(feature_nD, (along_n / length_n.square())[:, None], value=-1)
        return loss

    # once: features are large
    return _sum_over_chunks(embeddings, chunk_loss, once=True), counted.sum()


def distribution_loss(
    embeddings: Tensor,
    labels: Tensor,
    means: Tensor,
    variances: Tensor,
    seen: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Return DistCL, a bound on the contrast with infinitely many samples of class Gaussians.

    With t the temperature, q a unit vector, and k over seen classes, the mean over vectors of
    logsumexp_k(q.mu_k / t + (q q).var_k / (2 t^2)) - q.mu_y / t. Without variance this is
    `prototype_loss`.

    Args:
        embeddings: (N, D), normalised to unit length here; the only input with a gradient.
        labels: (N,) integer; vectors with label 255 or of a class not yet seen are not counted.
        means: (K, D), used without normalisation.
        variances: (K, D), per channel.
        seen: (K,) bool; classes not yet seen are in no denominator.
        temperature: Above 0.

    Returns:
        A scalar; exactly 0, with a graph, if no vector is counted.

    Raises:
        ValueError: Shapes do not match, or the temperature is not above 0.

    Reference:
        Xie et al., SePiCo (2023), DistCL. Differs: classes that never occurred are excluded.
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
    """Return the sum over counted vectors and the count; see `distribution_loss`.

    The gradient of q is softmax . means / t + q (softmax . variances) / t^2 - mean_y / t.
    """
    if variances.shape != means.shape:
        raise ValueError(f"means {tuple(means.shape)} but variances {tuple(variances.shape)}")
    counted = _counted_mask(embeddings, labels, means.shape, seen, temperature)
    mean_KD = means.detach().float() / temperature
    spread_KD = variances.detach().float() / temperature**2

    def chunk_loss(part: slice, gradient: Tensor) -> Tensor:
        query_nD, length_n1 = _unit_vectors(embeddings[part])
        counted_n1 = counted[part][:, None]
        label_n1 = labels[part].long()[:, None].masked_fill(~counted_n1, 0)
        score_nK = query_nD @ mean_KD.T
        label_score_n1 = score_nK.gather(1, label_n1)
        score_nK.addmm_(query_nD.square(), spread_KD.T, alpha=0.5).masked_fill_(~seen, -torch.inf)
        share_nK, level_n1 = _softmax(score_nK)
        share_nK.mul_(counted_n1)
        torch.mm(share_nK, spread_KD, out=gradient).mul_(query_nD)
        share_nK.scatter_add_(1, label_n1, -counted_n1.float())
        gradient.addmm_(share_nK, mean_KD)
        _unit_backward_(gradient, query_nD, length_n1)
        # if no class was seen, the level is -inf and no vector counts; NaN is not hidden
        return torch.where(counted_n1, level_n1 - label_score_n1, 0.0).sum()

    return _sum_over_chunks(embeddings, chunk_loss), counted.sum()


def bank_loss(
    embeddings: Tensor, labels: Tensor, rows: Tensor, filled: Tensor, *, temperature: float
) -> Tensor:
    """Return BankCL: each row of the vector's class against the mean score of every other class.

    With t the temperature, q a unit vector of class y, p_m the rows of y, b_k the mean of the rows
    of k: the mean over vectors and over m of -log(e^{q.p_m / t} / (e^{q.p_m / t} + sum over k != y
    of e^{q.b_k / t})).

    Args:
        embeddings: (N, D), normalised to unit length here; the only input with a gradient.
        labels: (N,) integer; vectors with label 255 or of a class without rows are not counted.
        rows: (K, L, D), used without normalisation.
        filled: (K,) integer; the first `filled` rows of each class are in use.
        temperature: Above 0.

    Returns:
        A scalar; exactly 0, with a graph, if no vector is counted.

    Raises:
        ValueError: Shapes do not match, or the temperature is not above 0.

    Reference:
        Xie et al., SePiCo (2023), BankCL; as in the release, the scores of a class are averaged
        before the exponential. Differs: classes without rows are excluded; softplus instead of the
        logarithm of a quotient.
    """
    total, count = bank_sum(embeddings, labels, rows, filled, temperature)
    return total / count.clamp_min(1)


def bank_sum(
    embeddings: Tensor, labels: Tensor, rows: Tensor, filled: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the sum over counted vectors and the count; see `bank_loss`.

    A positive p_m with w_m = sigmoid(level of the negatives - q.p_m / t), over the number of
    positives, gives q the gradient w_m (softmax of the negatives . means - p_m) / t.
    """
    if rows.ndim != 3:
        raise ValueError(f"rows must be (K, L, D), got {tuple(rows.shape)}")
    class_shape, seen = (rows.shape[0], rows.shape[2]), filled > 0
    counted = _counted_mask(embeddings, labels, class_shape, seen, temperature)
    valid_KL = torch.arange(rows.shape[1], device=rows.device) < filled[:, None]
    row_weight_KL = valid_KL / valid_KL.sum(1, keepdim=True).clamp_min(1)
    row_KLD = (rows.detach().float() / temperature).masked_fill_(~valid_KL[..., None], 0.0)
    mean_KD = (row_KLD * row_weight_KL[..., None]).sum(1)

    def chunk_loss(part: slice, gradient: Tensor) -> Tensor:
        query_nD, length_n1 = _unit_vectors(embeddings[part])
        label_n = labels[part].long().masked_fill(~counted[part], IGNORE)
        is_label_nK = label_n[:, None] == torch.arange(len(seen), device=label_n.device)
        score_nK = (query_nD @ mean_KD.T).masked_fill_(is_label_nK | ~seen, -torch.inf)
        share_nK, level_n1 = _softmax(score_nK)
        loss, weight_n1 = _positive_terms(
            query_nD, is_label_nK, level_n1, row_KLD, row_weight_KL, gradient.zero_()
        )
        gradient.addmm_(share_nK.mul_(weight_n1), mean_KD)
        _unit_backward_(gradient, query_nD, length_n1)
        return loss

    return _sum_over_chunks(embeddings, chunk_loss), counted.sum()


def _sum_over_chunks(
    embeddings: Tensor, chunk_loss: Callable[[slice, Tensor], Tensor], *, once: bool = False
) -> Tensor:
    """Return the sum of `chunk_loss`, with a graph to the embeddings.

    Args:
        embeddings: (N, D).
        chunk_loss: Returns the loss of a slice of the vectors, and writes their gradient (n, D)
            into its second argument.
        once: As in `with_gradient`.
    """
    gradient_ND = torch.empty(embeddings.shape, device=embeddings.device)
    total = gradient_ND.new_zeros(())
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            total = total + chunk_loss(part, gradient_ND[part])
    return with_gradient(total, gradient_ND, embeddings, once=once)


def _counted_mask(
    embeddings: Tensor,
    labels: Tensor,
    class_shape: tuple[int, ...],
    seen: Tensor,
    temperature: float,
) -> Tensor:
    """Return a mask (N,) of the vectors whose class was seen; check the inputs.

    `class_shape` is the shape (K, D) of what the vectors are compared with.
    """
    if labels.shape != embeddings.shape[:1] or class_shape[1:] != embeddings.shape[1:]:
        shapes = tuple(embeddings.shape), tuple(labels.shape), tuple(class_shape)
        raise ValueError(f"embeddings (N, D), labels (N,), classes (K, D) do not match: {shapes}")
    if seen.shape != class_shape[:1]:
        raise ValueError(f"seen or filled {tuple(seen.shape)} but {class_shape[0]} classes")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    known = labels != IGNORE
    return known & seen[labels.long().masked_fill(~known, 0)]


def _positive_terms(
    queries: Tensor,
    is_label: Tensor,
    level: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the weights (n, 1) of the negatives; add the positives' gradient.

    Args:
        queries: (n, D) unit vectors.
        is_label: (n, K) bool, true for the class of the vector; all false if it is not counted.
        level: (n, 1) logsumexp of the negatives.
        rows: (K, L, D) divided by the temperature; zero in unused rows.
        row_weights: (K, L), 1 / (number of rows of the class); 0 in unused rows.
        gradient: (n, D), changed in place.
    """
    loss, weight_n1 = queries.new_zeros(()), torch.zeros_like(level)
    for label_n, row_LD, weight_L in zip(is_label.T, rows, row_weights, strict=True):
        if label_n.is_cuda:
            # nonzero needs the count on the host; that wait costs more than all products
            index = torch.arange(len(label_n), device=label_n.device)
        else:
            index = label_n.nonzero().flatten()
        weight_mL = label_n[index].float()[:, None] * weight_L
        margin_mL = level[index] - queries[index] @ row_LD.T
        loss = loss + (F.softplus(margin_mL) * weight_mL).sum()
        pull_mL = margin_mL.sigmoid_().mul_(weight_mL)
        weight_n1.index_add_(0, index, pull_mL.sum(1, keepdim=True))
        gradient.index_add_(0, index, pull_mL @ row_LD, alpha=-1)
    return loss, weight_n1


def _unit_vectors(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors (n, D) in float32 and the lengths (n, 1) of the embeddings."""
    embedding_nD = embeddings.float()
    length_n1 = (embedding_nD.square().sum(1, keepdim=True) + LENGTH_EPS**2).sqrt_()
    return embedding_nD / length_n1, length_n1


def _unit_backward_(gradient: Tensor, queries: Tensor, lengths: Tensor) -> None:
    """Turn the gradient g of q = f / |f| into that of f, (g - q (q . g)) / |f|, in place."""
    along_n1 = (gradient * queries).sum(1, keepdim=True)
    gradient.addcmul_(queries, along_n1, value=-1).div_(lengths)


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax, in place, and logsumexp (n, 1); a row of -inf gives zeros and -inf."""
    top_n1 = scores.amax(1, keepdim=True).nan_to_num_(neginf=0.0)
    shares = scores.sub_(top_n1).exp_()
    total_n1 = shares.sum(1, keepdim=True)
    shares.div_(total_n1.clamp_min(torch.finfo(torch.float32).tiny))
    return shares, total_n1.log() + top_n1
