"""The memory bank: labelled embeddings of the last few steps, in one preallocated ring."""

import torch
from torch import Tensor, nn

EMPTY = -1
"""The label of a row that holds nothing; such a row is never compared with."""


class MemoryBank(nn.Module):
    """A first-in first-out bank of steps.

    Each push takes the place of the oldest step. All state is in persistent buffers, so a
    checkpoint restores it exactly.

    Args:
        steps: Pushes to keep.
        rows: Most rows of one push; of a larger one the last `rows` are kept.
        channels: Dimension of an embedding.

    Attributes:
        embeddings: (steps, rows, D) float32.
        labels: (steps, rows) int64, `EMPTY` where nothing lies.
        cursor: Scalar int64, the slot of the next push.
    """

    embeddings: Tensor
    labels: Tensor
    cursor: Tensor

    def __init__(self, steps: int, rows: int, channels: int) -> None:
        super().__init__()
        if min(steps, rows, channels) < 1:
            raise ValueError(f"steps, rows and channels must be >= 1, got {steps, rows, channels}")
        self.register_buffer("embeddings", torch.zeros(steps, rows, channels))
        self.register_buffer("labels", torch.full((steps, rows), EMPTY))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Return the number of rows that hold something (waits for the device)."""
        return int((self.labels != EMPTY).sum())

    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """Store the rows of one step in place of the oldest.

        Args:
            embeddings: (N, D); stored without a graph.
            labels: (N,) int64; rows labelled `EMPTY` are stored as holding nothing.
        """
        after, labels_after = self._after(embeddings, labels)
        self.embeddings.copy_(after)
        self.labels.copy_(labels_after)
        self.cursor.copy_((self.cursor + 1) % len(self.labels))

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return all rows (steps * rows, D) and labels; some may be `EMPTY`."""
        return self.embeddings.flatten(0, 1), self.labels.flatten()

    def rows_with(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `rows` will hold after `push(embeddings, labels)`, changing nothing."""
        after, labels_after = self._after(embeddings, labels)
        return after.flatten(0, 1), labels_after.flatten()

    def _after(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.embeddings.shape[1]
        kept = embeddings.detach()[-rows:].float()
        # index_copy and a tensor cursor: no value is read back to the host
        slot = self.cursor.view(1)
        row_labels = torch.full_like(self.labels[0], EMPTY)
        row_labels[: len(kept)] = labels[-rows:]
        block = torch.zeros_like(self.embeddings[0])
        block[: len(kept)] = kept
        after = self.embeddings.index_copy(0, slot, block[None])
        return after, self.labels.index_copy(0, slot, row_labels[None])
