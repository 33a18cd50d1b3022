"""The memory bank: labelled embeddings of the last few steps in a preallocated ring buffer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMPTY = -1
"""Label of an unused row; unused rows take part in no comparison."""


class MemoryBank(nn.Module):
    """A first-in, first-out bank of the embeddings of several steps.

    Each push replaces the oldest step. All state is in persistent buffers, so a checkpoint restores
    it exactly.

    Args:
        steps: Number of pushes to keep.
        rows: Maximum rows per push; of a larger push the last `rows` are kept.
        channels: Dimension D of an embedding.

    Attributes:
        embeddings: (steps, rows, D) float32.
        labels: (steps, rows) int64, `EMPTY` in unused rows.
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
        """Return the number of rows in use (waits for the device)."""
        return int((self.labels != EMPTY).sum())

    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """Store the rows of one step and drop the oldest step.

        Args:
            embeddings: (N, D); stored without a graph.
            labels: (N,) int64; rows labelled `EMPTY` count as unused.
        """
        slot, block, row_labels = self._next_block(embeddings, labels)
        # in place: only the rows of one step are written, whatever the size of the bank
        self.embeddings.index_copy_(0, slot, block)
        self.labels.index_copy_(0, slot, row_labels)
        self.cursor.add_(1).remainder_(len(self.labels))

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return all rows (steps * rows, D) and their labels; some may be `EMPTY`."""
        return self.embeddings.flatten(0, 1), self.labels.flatten()

    def rows_after_push(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `rows` would return after `push(embeddings, labels)`; change nothing."""
        slot, block, row_labels = self._next_block(embeddings, labels)
        after = self.embeddings.index_copy(0, slot, block)
        return after.flatten(0, 1), self.labels.index_copy(0, slot, row_labels).flatten()

    def _next_block(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slot (1,) of the next push, and its rows (1, rows, D) and labels (1, rows)."""
        rows = self.embeddings.shape[1]
        kept, kept_labels = embeddings.detach()[-rows:].to(self.embeddings), labels[-rows:]
        unused = rows - len(kept)
        block = F.pad(kept, (0, 0, 0, unused))[None]
        # the cursor is a tensor, so no value is read back to the host
        return self.cursor.view(1), block, F.pad(kept_labels, (0, unused), value=EMPTY)[None]
