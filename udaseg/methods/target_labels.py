"""What the teacher says of target images, and how much their pixels count."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from udaseg.methods.teacher import Teacher
from udaseg.models.segmenter import SegmenterOutput


@torch.no_grad()
def ask_teacher(teacher: Teacher, images: Tensor, *, embed: bool, mirror: bool) -> SegmenterOutput:
    """Return what the teacher says of images (B, 3, H, W) in [0, 1].

    With `mirror`, the logits are the logarithm of the mean of the probabilities that it gives to
    each cell of the images and of their mirror images; features and embeddings are those of the
    images.
    """
    output: SegmenterOutput = teacher(images, embed=embed)
    if not mirror:
        return output
    mirrored: SegmenterOutput = teacher(images.flip(-1))
    logs = [each.logits.float().log_softmax(1) for each in (output, mirrored)]
    mean = torch.logaddexp(logs[0], logs[1].flip(-1)) - math.log(2)
    return replace(output, logits=mean)
