"""The mean teacher: a copy of the student that follows it and never gets a gradient."""

import copy

import torch
from torch import nn

from udaseg.models import Segmented, Segmenter


class Teacher(nn.Module):
    """An exponential moving average of a student, its projection head included.

    Args:
        student: Copied as the start.
        momentum: phi <- a phi + (1 - a) theta with a = min(1 - 1/(step + 1), momentum).
        batch_statistics: Normalise by the batch at hand instead of by running statistics, as DACS
            was released; the running statistics stay as they are either way. Norms that the
            student keeps frozen stay frozen here too: its weights fit those statistics alone.

    Reference:
        Tarvainen and Valpola, mean teachers (2017), with the ramp of DACS (2021).
    """

    def __init__(self, student: Segmenter, *, momentum: float, batch_statistics: bool) -> None:
        super().__init__()
        self.momentum = momentum
        self.batch_statistics = batch_statistics
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode; only batch norm may use the batch's own statistics."""
        super().train(mode)
        self.network.eval()
        if self.batch_statistics and mode:
            frozen = set(self.network.frozen_norms())
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d) and module not in frozen:
                    module.training = True
                    module.track_running_stats = False
        return self

    @torch.no_grad()
    def forward(self, images: torch.Tensor, *, embed: bool = False) -> Segmented:
        """Return what the teacher says of (B, 3, H, W) images; no gradient."""
        segmented: Segmented = self.network(images, embed=embed)
        return segmented

    @torch.no_grad()
    def follow(self, student: Segmenter, step: int) -> None:
        """Move towards the student after the optimiser step number `step` (from 0)."""
        keep = min(1 - 1 / (step + 1), self.momentum)
        own, theirs = [], []
        pairs = zip(
            (*self.network.parameters(), *self.network.buffers()),
            (*student.parameters(), *student.buffers()),
            strict=True,
        )
        for mine, new in pairs:
            if mine.is_floating_point():
                own.append(mine.data)
                theirs.append(new.detach())
            else:
                # counters of batch norm are integers and have no average
                mine.copy_(new)
        torch._foreach_lerp_(own, theirs, 1 - keep)
