"""The ONNX file of a network: written with free sizes, and compared with torch."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from udaseg.data import resize_image
from udaseg.errors import EnvironmentFault

EXAMPLE = (2, 3, 128, 192)
"""Shape of the images that the network is traced with; every axis but the colours stays free."""

Pixels = NDArray[np.uint8]


class Exported(nn.Module):
    """From RGB images as they are stored to logits or labels of the images' size.

    Args:
        network: From images in [0, 1] to something with `.logits`; knows its normalisation.
        uint8: Images are 0..255 instead of 0..1.
        argmax: Return labels instead of logits.
    """

    def __init__(self, network: nn.Module, *, uint8: bool, argmax: bool) -> None:
        super().__init__()
        self.network = network
        self.uint8 = uint8
        self.argmax = argmax

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, K, H, W) float logits, or (B, H, W) uint8 labels.

        Args:
            image: (B, 3, H, W) uint8 or float.
        """
        unit = image.float() / 255 if self.uint8 else image
        logits = self.network(unit).logits
        wide = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)
        return wide.argmax(1).to(torch.uint8) if self.argmax else wide


@dataclass(frozen=True)
class Checked:
    """How well the file agrees with torch.

    Attributes:
        images: Pictures it was run on.
        real: They are images of the recipe's data, no noise.
        difference: Largest absolute difference of a logit; None for labels.
        relative: The same over the largest logit; None for labels.
        agreement: Share of pixels with the same label.
    """

    images: int
    real: bool
    difference: float | None
    relative: float | None
    agreement: float


def write_onnx(module: Exported, path: Path, metadata: dict[str, str]) -> None:
    """Write a module as one ONNX file with free batch, height and width, and metadata.

    Args:
        module: In evaluation mode.
        path: The file; its folder exists.
        metadata: Plain text by key, kept in the file.
    """
    import onnx

    generator = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, EXAMPLE, dtype=torch.uint8, generator=generator)
    image = example if module.uint8 else example.float() / 255
    free = {0: "batch", 2: "height", 3: "width"}
    shapes = {axis: torch.export.Dim(name, min=2) for axis, name in free.items()}
    with warnings.catch_warnings(), torch.no_grad():
        # what the exporter says of itself is nothing that a user could act on
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (image,),
            path,
            input_names=["image"],
            output_names=["labels" if module.argmax else "logits"],
            dynamo=True,
            dynamic_shapes=(shapes,),
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    model.doc_string = "Semantic segmentation; normalisation inside. Class names in the metadata."
    onnx.checker.check_model(model)
    onnx.save(model, path)


def compare(module: Exported, path: Path, pictures: Sequence[Pixels], *, real: bool) -> Checked:
    """Return how the file answers beside torch, each image at its size and at an odd one.

    Args:
        module: What was exported.
        path: The ONNX file.
        pictures: (H, W, 3) uint8 RGB.
        real: Noted in the result.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference, largest, equal, total = 0.0, 0.0, 0, 0
    for picture in _at_two_sizes(pictures):
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
        image = image if module.uint8 else image.float() / 255
        with torch.no_grad():
            ours = module(image).numpy()
        theirs = np.asarray(session.run(None, {"image": image.numpy()})[0])
        if ours.shape != theirs.shape:
            raise EnvironmentFault(f"the ONNX file returns {theirs.shape}, torch {ours.shape}")
        if not module.argmax:
            difference = max(difference, float(np.abs(ours - theirs).max()))
            largest = max(largest, float(np.abs(ours).max()))
            ours, theirs = ours.argmax(1), theirs.argmax(1)
        equal += int((ours == theirs).sum())
        total += ours.size
    share = equal / max(1, total)
    if module.argmax:
        return Checked(len(pictures), real, None, None, share)
    return Checked(len(pictures), real, difference, difference / max(largest, 1e-12), share)


def _at_two_sizes(pictures: Sequence[Pixels]) -> Iterator[Pixels]:
    for picture in pictures:
        yield picture
        yield resize_image(picture, (picture.shape[0] * 3 // 4 | 1, picture.shape[1] * 2 // 3 | 1))
