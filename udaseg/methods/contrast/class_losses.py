"""Losses that contrast vectors with the prototype, the Gaussian, or the bank rows of each class."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.data.labels.classes import IGNORE
from udaseg.methods.fused import float32_products, rows_at_once, with_gradient
from udaseg.models.projector import LENGTH_EPS


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
    label_N, counted_N = _known_labels(embeddings, labels, prototypes.shape, seen, temperature)
    scaled_KD = prototypes.detach().float() / temperature
    class_K = torch.arange(len(seen), device=embeddings.device)

    def chunk_loss(part: slice, gradient: Tensor) -> Tensor:
        feature_nD = embeddings[part].float()
        length_n1 = torch.linalg.vector_norm(feature_nD, dim=1, keepdim=True)
        length_n1 = (length_n1.square_() + LENGTH_EPS**2).sqrt_()
        weight_n1 = counted_N[part, None].float()
        label_n1 = label_N[part, None]
        # divided after the product, so no unit vectors of size n x D are stored
        similarity_nK = (feature_nD @ scaled_KD.T).div_(length_n1)
        # the lowest number, not -inf: if no class was seen, the rows stay finite
        score_nK = similarity_nK.masked_fill(~seen, torch.finfo(torch.float32).min)
        log_share_nK = score_nK.log_softmax(1)
        loss = (log_share_nK.gather(1, label_n1) * weight_n1).sum().neg_()
        share_nK = log_share_nK.exp_().sub_((label_n1 == class_K).float()).mul_(weight_n1)
        along_n1 = (share_nK * similarity_nK).sum(1, keepdim=True)
        torch.mm(share_nK.div_(length_n1), scaled_KD, out=gradient)
        gradient.addcmul_(feature_nD, along_n1 / length_n1.square(), value=-1)
        return loss

    # once: features are large
    total = _sum_over_chunks(embeddings, chunk_loss, width=embeddings.shape[1], once=True)
    return total, counted_N.sum()


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
    label_N, counted_N = _known_labels(embeddings, labels, means.shape, seen, temperature)
    mean_KD = means.detach().float() / temperature
    spread_KD = variances.detach().float() / temperature**2
    class_K = torch.arange(len(seen), device=embeddings.device)

    def chunk_loss(part: slice, gradient: Tensor) -> Tensor:
        query_nD, length_n1 = _unit_vectors(embeddings[part])
        label_n1, counted_n1 = label_N[part, None], counted_N[part, None]
        score_nK = query_nD @ mean_KD.T
        label_score_n1 = score_nK.gather(1, label_n1)
        score_nK.addmm_(query_nD.square(), spread_KD.T, alpha=0.5).masked_fill_(~seen, -torch.inf)
        share_nK, level_n1 = _softmax(score_nK)
        share_nK.mul_(counted_n1)
        torch.mm(share_nK, spread_KD, out=gradient).mul_(query_nD)
        share_nK.sub_(((label_n1 == class_K) & counted_n1).float())
        gradient.addmm_(share_nK, mean_KD)
        _unit_backward_(gradient, query_nD, length_n1)
        # if no class was seen, the level is -inf and no vector counts; NaN is not hidden
        return torch.where(counted_n1, level_n1 - label_score_n1, 0.0).sum()

    return _sum_over_chunks(embeddings, chunk_loss, width=embeddings.shape[1]), counted_N.sum()


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
    label_N, counted_N = _known_labels(embeddings, labels, class_shape, seen, temperature)
    valid_KL = torch.arange(rows.shape[1], device=rows.device) < filled[:, None]
    row_weight_KL = valid_KL / valid_KL.sum(1, keepdim=True).clamp_min(1)
    row_KLD = (rows.detach().float() / temperature).masked_fill_(~valid_KL[..., None], 0.0)
    mean_KD = (row_KLD * row_weight_KL[..., None]).sum(1)
    class_K = torch.arange(len(seen), device=embeddings.device)
    positive_terms = _positives_at_once if embeddings.is_cuda else _positives_by_class

    def chunk_loss(part: slice, gradient: Tensor) -> Tensor:
        query_nD, length_n1 = _unit_vectors(embeddings[part])
        is_label_nK = (label_N[part, None] == class_K) & counted_N[part, None]
        score_nK = (query_nD @ mean_KD.T).masked_fill_(is_label_nK | ~seen, -torch.inf)
        share_nK, level_n1 = _softmax(score_nK)
        loss, weight_n1 = positive_terms(
            query_nD, is_label_nK, level_n1, row_KLD, row_weight_KL, gradient.zero_()
        )
        gradient.addmm_(share_nK.mul_(weight_n1), mean_KD)
        _unit_backward_(gradient, query_nD, length_n1)
        return loss

    width = max(embeddings.shape[1], row_weight_KL.numel())
    return _sum_over_chunks(embeddings, chunk_loss, width=width), counted_N.sum()


def _sum_over_chunks(
    embeddings: Tensor,
    chunk_loss: Callable[[slice, Tensor], Tensor],
    *,
    width: int,
    once: bool = False,
) -> Tensor:
    """Return the sum of `chunk_loss`, with a graph to the embeddings.

    Args:
        embeddings: (N, D).
        chunk_loss: Returns the loss of a slice of the vectors, and writes their gradient (n, D)
            into its second argument.
        width: Numbers per vector in the largest tensor of `chunk_loss`.
        once: As in `with_gradient`.
    """
    gradient_ND = embeddings.new_empty(embeddings.shape, dtype=torch.float32)
    total = gradient_ND.new_zeros(())
    step = rows_at_once(width, embeddings.device)
    with torch.no_grad(), float32_products(embeddings.device):
        for start in range(0, len(embeddings), step):
            part = slice(start, start + step)
            total += chunk_loss(part, gradient_ND[part])
    return with_gradient(total, gradient_ND, embeddings, once=once)


def _known_labels(
    embeddings: Tensor,
    labels: Tensor,
    class_shape: tuple[int, ...],
    seen: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return labels (N,), 0 for `IGNORE`, and a mask (N,) of the vectors whose class was seen.

    Check the inputs. `class_shape` is the shape (K, D) of what the vectors are compared with.
    """
    if labels.shape != embeddings.shape[:1] or class_shape[1:] != embeddings.shape[1:]:
        shapes = tuple(embeddings.shape), tuple(labels.shape), tuple(class_shape)
        raise ValueError(f"embeddings (N, D), labels (N,), classes (K, D) do not match: {shapes}")
    if seen.shape != class_shape[:1]:
        raise ValueError(f"seen or filled {tuple(seen.shape)} but {class_shape[0]} classes")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    ignored = labels == IGNORE
    label_N = labels.long().masked_fill(ignored, 0)
    return label_N, seen[label_N].masked_fill_(ignored, False)


def _positives_by_class(
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
        index = label_n.nonzero().flatten()
        margin_mL = level[index] - queries[index] @ row_LD.T
        loss = loss + (F.softplus(margin_mL) * weight_L).sum()
        pull_mL = margin_mL.sigmoid_().mul_(weight_L)
        weight_n1.index_add_(0, index, pull_mL.sum(1, keepdim=True))
        gradient.index_add_(0, index, pull_mL @ row_LD, alpha=-1)
    return loss, weight_n1


def _positives_at_once(
    queries: Tensor,
    is_label: Tensor,
    level: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return what `_positives_by_class` returns, without a loop over classes.

    This is for a GPU: to know the vectors of a class, the host would have to wait for it, which
    costs more than the product of all vectors with the rows of all classes.
    """
    row_MD, member_nK = rows.flatten(0, 1), is_label.float()
    weight_nL = member_nK @ row_weights
    label_n1L = member_nK.argmax(1)[:, None, None].expand(-1, 1, rows.shape[1])
    score_nL = (queries @ row_MD.T).view(-1, *row_weights.shape).gather(1, label_n1L)[:, 0]
    margin_nL = level - score_nL
    loss = (F.softplus(margin_nL) * weight_nL).sum()
    pull_nL = margin_nL.sigmoid_().mul_(weight_nL)
    gradient.addmm_((member_nK[..., None] * pull_nL[:, None]).flatten(1), row_MD, alpha=-1)
    return loss, pull_nL.sum(1, keepdim=True)


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
