"""The regional loss: InfoNCE with its gradient computed in the forward pass."""

import math

import torch
from torch import Tensor

from udaseg.methods.contrast.memory_bank import EMPTY
from udaseg.methods.fused import float32_products, with_gradient
from udaseg.models.projector import to_unit_length

_CHUNKS_CPU = 256, 8192
"""Queries and bank rows to compute at once: the scores of a chunk fit in the cache."""

_CHUNKS_GPU = 2048, 24576
"""Few operators, each of which has to be launched; the scores of a chunk take 201 MB."""


def regional_loss(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    temperature: float,
    keep: Tensor | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    """Return the mean InfoNCE of the queries with their keys against bank rows of other classes.

    With p and n_j the similarities of a query to its key and to the counted rows over the
    temperature, and m the largest of p and of the similarities to all rows, its loss is -log(s +
    epsilon), s = e^(p - m) / (e^(p - m) + sum_j e^(n_j - m) + epsilon). With an epsilon it is at
    most -log(epsilon), 18.42 for 1e-8: a query whose key lies far below the negatives keeps this
    loss and loses its gradient. Without, the loss has no limit and the gradient stays.

    Args:
        queries: (R, D), normalised to unit length here; the only input with a gradient.
        keys: (R, D), normalised here; row i is the positive of query i.
        labels: (R,) int64; bank rows with the label of the query are not negatives.
        bank: (M, D), normalised here.
        bank_labels: (M,) int64; rows labelled `EMPTY` (-1) take no part, m included.
        temperature: Divides every similarity; above 0.
        keep: (R,) bool, the queries to count; None counts all.
        epsilon: 0, or 1e-8 as in RCCR's release.

    Returns:
        A scalar; exactly 0, with a graph, if no query is counted or the bank has no row.

    Raises:
        ValueError: Shapes do not match, or the temperature is not above 0.

    Reference:
        Zhou et al., RCCR (2022), L_con. Differs: no epsilon by default; the m of the release leaves
        out the bank rows after the first 2,000.
    """
    query_RD = to_unit_length(queries)
    key_RD, bank_MD = to_unit_length(keys.detach()), to_unit_length(bank.detach())
    total, count = regional_sum(
        query_RD, key_RD, labels, bank_MD, bank_labels, temperature, keep, epsilon
    )
    return total / count.clamp_min(1)


def regional_sum(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    temperature: float,
    keep: Tensor | None,
    epsilon: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the sum over counted queries and the count; see `regional_loss`.

    Here queries, keys and bank are unit vectors already.
    """
    if queries.shape != keys.shape or labels.shape != queries.shape[:1]:
        shapes = tuple(queries.shape), tuple(keys.shape), tuple(labels.shape)
        raise ValueError(f"queries, keys (R, D) and labels (R,) do not match: {shapes}")
    if bank.shape[1:] != queries.shape[1:] or bank_labels.shape != bank.shape[:1]:
        raise ValueError(
            f"bank {tuple(bank.shape)}, bank_labels {tuple(bank_labels.shape)} and "
            f"queries {tuple(queries.shape)} do not match"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if keep is None:
        keep = torch.ones_like(labels, dtype=torch.bool)
    with torch.no_grad(), float32_products(queries.device):
        total, gradient = _sum_and_gradient(
            queries, keys, labels, bank, bank_labels, temperature, keep, epsilon
        )
    return with_gradient(total, gradient, queries), keep.sum()


def _sum_and_gradient(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    temperature: float,
    keep: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Return the sum and its gradient."""
    query_RD, key_RD, label_R, weight_R = queries.float(), keys.float(), labels, keep.float()
    rows = _counted_indices(keep)
    if rows is not None:
        query_RD, key_RD, label_R = query_RD[rows], key_RD[rows], label_R[rows]
        weight_R = weight_R[rows]
    compared = query_RD / temperature, key_RD, label_R, bank, bank_labels
    if epsilon > 0 and len(bank):
        loss_R, gradient_RD = _losses_with_epsilon(*compared, epsilon)
    else:
        loss_R, gradient_RD = _losses(*compared)
    total = (loss_R * weight_R).sum()
    gradient_RD.mul_((weight_R / temperature)[:, None])
    if rows is not None:
        gradient_RD = gradient_RD.new_zeros(queries.shape).index_copy_(0, rows, gradient_RD)
    return total, gradient_RD


def _losses(
    scaled: Tensor, keys: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the losses (R,) without an epsilon, and their gradients (R, D) by `scaled`.

    The gradient is shares . negatives - (1 - share of the key) key.
    """
    positive_R = (scaled * keys).sum(1)
    level_R, gradient_RD = _compare_with_bank(scaled, labels, positive_R, bank, bank_labels)
    gradient_RD.addcmul_((positive_R - level_R).expm1()[:, None], keys)
    return level_R - positive_R, gradient_RD


def _losses_with_epsilon(
    scaled: Tensor, keys: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the losses (R,) with an epsilon, and their gradients (R, D) by `scaled`.

    With e_j = e^(n_j - m), N their sum and Z = e^(p - m) + N + epsilon, the gradient is s / (s +
    epsilon) / Z times (sum_j e_j row_j - (N + epsilon) key + epsilon (the key or row of m)).
    """
    loss_R, gradient_RD = scaled.new_empty(len(scaled)), torch.empty_like(scaled)
    bank_MD, empty_M = bank.float(), bank_labels == EMPTY
    chunk = max(1, math.prod(_chunks(scaled)) // max(1, len(bank)))
    for start in range(0, len(scaled), chunk):
        part = slice(start, start + chunk)
        key_rD, positive_r = keys[part], (scaled[part] * keys[part]).sum(1)
        score_rM = (scaled[part] @ bank_MD.T).masked_fill_(empty_M, -math.inf)
        highest_r, row_r = score_rM.max(1)
        top_r = highest_r.maximum(positive_r)
        score_rM.masked_fill_(bank_labels == labels[part, None], -math.inf)
        score_rM.sub_(top_r[:, None]).exp_()
        negative_r = score_rM.sum(1)
        own_r = (positive_r - top_r).exp_()
        total_r = own_r + negative_r + epsilon
        share_r = own_r / total_r
        loss_R[part] = (share_r + epsilon).log().neg_()
        top_rD = torch.where((highest_r > positive_r)[:, None], bank_MD[row_r], key_rD)
        gradient_rD = torch.addmm(epsilon * top_rD, score_rM, bank_MD)
        gradient_rD.addcmul_((negative_r + epsilon)[:, None], key_rD, value=-1)
        gradient_RD[part] = gradient_rD * (share_r / (share_r + epsilon) / total_r)[:, None]
    return loss_R, gradient_RD


def _chunks(queries: Tensor) -> tuple[int, int]:
    return _CHUNKS_GPU if queries.is_cuda else _CHUNKS_CPU


def _compare_with_bank(
    scaled: Tensor,
    labels: Tensor,
    positives: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return logsumexp (R,) of the scores of positive and negatives, and shares . negatives (R, D).

    `scaled` are queries (R, D) divided by the temperature. Queries and bank are read in chunks,
    with a running maximum that starts at the score of the positive. Two products per chunk are
    enough, and no tensor of size R x M is stored.
    """
    chunk, bank_chunk = _chunks(scaled)
    top_R, total_R, weighted_RD = (
        positives.clone(),
        torch.ones_like(positives),
        torch.zeros_like(scaled),
    )
    # added to the scores, so that only classes have to be compared for each pair
    bias_M = torch.zeros_like(bank_labels, dtype=torch.float32)
    bias_M.masked_fill_(bank_labels == EMPTY, -math.inf)
    for start in range(0, len(scaled), chunk):
        part = slice(start, start + chunk)
        scaled_rD, label_r1 = scaled[part], labels[part, None]
        top_r, total_r, weighted_rD = top_R[part], total_R[part], weighted_RD[part]
        for bank_start in range(0, len(bank), bank_chunk):
            bank_part = slice(bank_start, bank_start + bank_chunk)
            part_mD = bank[bank_part].float()
            score_rm = torch.addmm(bias_M[bank_part], scaled_rD, part_mD.T)
            score_rm.masked_fill_(bank_labels[bank_part] == label_r1, -math.inf)
            higher_r = top_r.maximum(score_rm.amax(1))
            shrink_r = (top_r - higher_r).exp_()
            score_rm.sub_(higher_r[:, None]).exp_()
            total_r.mul_(shrink_r).add_(score_rm.sum(1))
            weighted_rD.mul_(shrink_r[:, None]).addmm_(score_rm, part_mD)
            top_r.copy_(higher_r)
    return total_R.log().add_(top_R), weighted_RD.div_(total_R[:, None])


def _counted_indices(keep: Tensor) -> Tensor | None:
    """Return the indices of the counted queries, or None on a GPU.

    Dropping the others needs the count on the host; on a GPU that wait costs more than it saves.
    """
    return None if keep.is_cuda else keep.nonzero().flatten()
