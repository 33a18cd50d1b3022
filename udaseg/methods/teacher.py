"""The mean teacher: a moving average of the student that receives no gradient."""

import copy
from typing import Self

import torch
from torch import nn

from udaseg.models.segmenter import Segmenter, SegmenterOutput


class Teacher(nn.Module):
    """An exponential moving average of a student, including its projection head.

    Args:
        student: The initial weights are copied from it.
        momentum: phi <- a phi + (1 - a) theta with a = min(1 - 1/(step + 1), momentum).
        batch_statistics: Normalise by the statistics of the batch instead of the running ones, as
            in the released DACS. Forward passes never change the running statistics. Norms that are
            frozen in the student are frozen here too, because its weights only fit the frozen
            statistics.

    Reference:
        Tarvainen and Valpola, mean teachers (2017), with the ramp of DACS (2021).
    """

    def __init__(self, student: Segmenter, *, momentum: float, batch_statistics: bool) -> None:
        super().__init__()
        self.momentum = momentum
        self.batch_statistics = batch_statistics
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode; batch norms use batch statistics if so configured."""
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
    def forward(self, images: torch.Tensor, *, embed: bool = False) -> SegmenterOutput:
        """Return the teacher's output for (B, 3, H, W) images, without a gradient."""
        segmented: SegmenterOutput = self.network(images, embed=embed)
        return segmented

    @torch.no_grad()
    def update(self, student: Segmenter, step: int) -> None:
        """Update the moving average after optimiser step `step` (from 0)."""
        keep = min(1 - 1 / (step + 1), self.momentum)
        teacher_values, student_values = [], []
        pairs = zip(
            (*self.network.parameters(), *self.network.buffers()),
            (*student.parameters(), *student.buffers()),
            strict=True,
        )
        for averaged, current in pairs:
            if averaged.is_floating_point():
                teacher_values.append(averaged.data)
                student_values.append(current.detach())
            else:
                # batch-norm counters are integers and cannot be averaged
                averaged.copy_(current)
        torch._foreach_lerp_(teacher_values, student_values, 1 - keep)
