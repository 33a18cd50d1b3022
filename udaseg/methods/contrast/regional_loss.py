"""The regional loss: InfoNCE with its gradient computed in the forward pass."""

import math

import torch
from torch import Tensor

from udaseg.methods.contrast.memory_bank import EMPTY
from udaseg.methods.fused import float32_products, with_gradient

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
    chunks = _CHUNKS_GPU if queries.is_cuda else _CHUNKS_CPU
    with torch.no_grad(), float32_products(queries.device):
        total, gradient = _sum_and_gradient(
            queries, keys, labels, bank, bank_labels, temperature, keep, chunks
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
    chunks: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return the sum and its gradient, (shares . negatives - (1 - share of the key) key) / t."""
    query_RD, key_RD, label_R, weight_R = queries.float(), keys.float(), labels, keep.float()
    rows = _counted_indices(keep)
    if rows is not None:
        query_RD, key_RD, label_R = query_RD[rows], key_RD[rows], label_R[rows]
        weight_R = weight_R[rows]
    scaled_RD = query_RD / temperature
    positive_R = (scaled_RD * key_RD).sum(1)
    level_R, gradient_RD = _compare_with_bank(
        scaled_RD, label_R, positive_R, bank, bank_labels, chunks
    )
    total = ((level_R - positive_R) * weight_R).sum()
    gradient_RD.addcmul_((positive_R - level_R).expm1_()[:, None], key_RD)
    gradient_RD.mul_((weight_R / temperature)[:, None])
    if rows is not None:
        gradient_RD = gradient_RD.new_zeros(queries.shape).index_copy_(0, rows, gradient_RD)
    return total, gradient_RD


def _compare_with_bank(
    scaled: Tensor,
    labels: Tensor,
    positives: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    chunks: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return logsumexp (R,) of the scores of positive and negatives, and shares . negatives (R, D).

    `scaled` are queries (R, D) divided by the temperature. Queries and bank are read in chunks,
    with a running maximum that starts at the score of the positive. Two products per chunk are
    enough, and no tensor of size R x M is stored.
    """
    chunk, bank_chunk = chunks
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
