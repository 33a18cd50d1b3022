"""The regional loss: InfoNCE with its gradient computed in the forward pass."""

import math

import torch
from torch import Tensor

from udaseg.methods.contrast.memory_bank import EMPTY
from udaseg.methods.fused import with_gradient

_CHUNK = 256
_BANK_CHUNK = 8192


def regional_loss(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    temperature: float,
    keep: Tensor | None = None,
) -> Tensor:
    """Return the mean InfoNCE of the queries with their keys against bank rows of other classes.

    Args:
        queries: (R, D) unit vectors; the only input with a gradient.
        keys: (R, D) unit vectors; row i is the positive of query i.
        labels: (R,) int64; bank rows with the label of the query are not negatives.
        bank: (M, D) unit vectors.
        bank_labels: (M,) int64; rows labelled `EMPTY` (-1) are never negatives.
        temperature: Divides every similarity; above 0.
        keep: (R,) bool, the queries to count; None counts all.

    Returns:
        A scalar; exactly 0, with a graph, if no query is counted.

    Raises:
        ValueError: Shapes do not match, or the temperature is not above 0.

    Reference:
        Zhou et al., RCCR (2022), L_con. Differs: logsumexp instead of an epsilon of 1e-8.
    """
    total, count = regional_sum(queries, keys, labels, bank, bank_labels, temperature, keep)
    return total / count.clamp_min(1)


def regional_sum(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    temperature: float,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the sum over counted queries and the count; see `regional_loss`."""
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
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        total, gradient = _sum_and_gradient(
            queries, keys, labels, bank, bank_labels, temperature, keep
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
) -> tuple[Tensor, Tensor]:
    """Return the sum and its gradient (softmax . bank - key) / temperature, chunk by chunk.

    Two products per chunk are enough, and no tensor of size R x M is stored.
    """
    query_RD, key_RD, label_R, weight_R = queries.float(), keys.float(), labels, keep.float()
    rows = _counted_indices(keep)
    if rows is not None:
        query_RD, key_RD, label_R = query_RD[rows], key_RD[rows], label_R[rows]
        weight_R = weight_R[rows]
    scale = 1 / temperature
    positive_R = (query_RD * key_RD).sum(1) * scale
    total = query_RD.new_zeros(())
    gradient_RD = torch.empty_like(query_RD)
    for start in range(0, len(query_RD), _CHUNK):
        part = slice(start, start + _CHUNK)
        positive_r, weight_r = positive_R[part], weight_R[part]
        top_r, negative_sum_r, negative_gradient_rD = _negative_sums(
            query_RD[part] * scale, label_R[part], positive_r, bank, bank_labels
        )
        positive_exp_r = (positive_r - top_r).exp()
        total_r = positive_exp_r + negative_sum_r
        total = total + ((total_r.log() + top_r - positive_r) * weight_r).sum()
        positive_factor_r = (positive_exp_r / total_r - 1) * weight_r * scale
        negative_gradient_rD.mul_((weight_r * scale / total_r)[:, None])
        gradient_RD[part] = negative_gradient_rD.addcmul_(positive_factor_r[:, None], key_RD[part])
    if rows is not None:
        gradient_RD = gradient_RD.new_zeros(queries.shape).index_copy_(0, rows, gradient_RD)
    return total, gradient_RD


def _negative_sums(
    scaled: Tensor, label_r: Tensor, positive_r: Tensor, bank: Tensor, bank_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return top (r,), sum (r,) of exp(score - top) over negatives, and that sum times the bank.

    `scaled` are queries (r, D) divided by the temperature. The bank is read in chunks with a
    running maximum that starts at the score of the positive, so memory does not grow with the bank.
    """
    top_r = positive_r
    sum_r = torch.zeros_like(positive_r)
    weighted_rD = torch.zeros_like(scaled)
    for start in range(0, len(bank), _BANK_CHUNK):
        part_mD = bank[start : start + _BANK_CHUNK].float()
        label_m = bank_labels[start : start + _BANK_CHUNK]
        score_rm = scaled @ part_mD.T
        excluded_rm = (label_m == label_r[:, None]) | (label_m == EMPTY)
        score_rm.masked_fill_(excluded_rm, -math.inf)
        higher_r = top_r.maximum(score_rm.amax(1))
        shrink_r = (top_r - higher_r).exp()
        score_rm.sub_(higher_r[:, None]).exp_()
        sum_r = sum_r * shrink_r + score_rm.sum(1)
        weighted_rD.mul_(shrink_r[:, None]).addmm_(score_rm, part_mD)
        top_r = higher_r
    return top_r, sum_r, weighted_rD


def _counted_indices(keep: Tensor) -> Tensor | None:
    """Return the indices of the counted queries, or None on a GPU.

    Dropping the others needs the count on the host; on a GPU that wait costs more than it saves.
    """
    return None if keep.is_cuda else keep.nonzero().flatten()
