"""Write a network as an ONNX file with dynamic sizes, and compare the file with torch."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.data.files.images import Pixels
from udaseg.data.loading.transforms import resize_image
from udaseg.errors import EnvironmentFault

EXAMPLE_SHAPE = (2, 3, 128, 192)
"""Shape of the images that the network is traced with; all axes but the channels are dynamic."""


class ExportModule(nn.Module):
    """Map stored RGB images to logits or labels of the images' size.

    Args:
        network: Takes images in [0, 1], normalises them, and returns an object with `.logits`.
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
        scaled = image.float() / 255 if self.uint8 else image
        logits = self.network(scaled).logits
        resized = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)
        return resized.argmax(1).to(torch.uint8) if self.argmax else resized


@dataclass(frozen=True)
class OnnxComparison:
    """How well the ONNX file agrees with torch.

    Attributes:
        images: Number of images compared.
        on_real_images: They are images of the recipe's data, not noise.
        difference: Largest absolute difference of a logit; None for labels.
        relative: The same divided by the largest logit; None for labels.
        agreement: Share of pixels with the same label.
    """

    images: int
    on_real_images: bool
    difference: float | None
    relative: float | None
    agreement: float

    def summary(self) -> str:
        """Return the result as a sentence."""
        kind = "images" if self.on_real_images else "noise images"
        text = f"checked on {self.images} {kind} at two sizes each: "
        if self.difference is not None:
            text += f"largest difference of a logit {self.difference:.2g}, "
        return text + f"{100 * self.agreement:.3f} % of the labels agree with torch"


def write_onnx(module: ExportModule, path: Path, metadata: dict[str, str]) -> None:
    """Write a module as one ONNX file with dynamic batch, height and width, and metadata.

    Args:
        module: In evaluation mode.
        path: The file; its folder exists.
        metadata: Text by key, stored in the file.
    """
    import onnx

    generator = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, EXAMPLE_SHAPE, dtype=torch.uint8, generator=generator)
    image = example if module.uint8 else example.float() / 255
    dynamic = {0: "batch", 2: "height", 3: "width"}
    shapes = {axis: torch.export.Dim(name, min=2) for axis, name in dynamic.items()}
    with warnings.catch_warnings(), torch.no_grad():
        # users cannot act on the exporter's own warnings
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
    model.doc_string = (
        "Semantic segmentation, normalisation included. Class names are in the metadata."
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def compare_with_torch(
    module: ExportModule, path: Path, images: Sequence[Pixels], *, on_real_images: bool
) -> OnnxComparison:
    """Compare the ONNX file with torch, on each image at its own size and at an odd size.

    Args:
        module: The exported module.
        path: The ONNX file.
        images: (H, W, 3) uint8 RGB.
        on_real_images: Stored in the result.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference, largest, equal_pixels, total_pixels = 0.0, 0.0, 0, 0
    for pixels in _at_two_sizes(images):
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
        image = image if module.uint8 else image.float() / 255
        with torch.no_grad():
            torch_output = module(image).numpy()
        onnx_output = np.asarray(session.run(None, {"image": image.numpy()})[0])
        if torch_output.shape != onnx_output.shape:
            raise EnvironmentFault(
                f"the ONNX file returns {onnx_output.shape}, torch {torch_output.shape}"
            )
        if not module.argmax:
            difference = max(difference, float(np.abs(torch_output - onnx_output).max()))
            largest = max(largest, float(np.abs(torch_output).max()))
            torch_output, onnx_output = torch_output.argmax(1), onnx_output.argmax(1)
        equal_pixels += int((torch_output == onnx_output).sum())
        total_pixels += torch_output.size
    share = equal_pixels / max(1, total_pixels)
    if module.argmax:
        return OnnxComparison(len(images), on_real_images, None, None, share)
    return OnnxComparison(
        len(images), on_real_images, difference, difference / max(largest, 1e-12), share
    )


def _at_two_sizes(pictures: Sequence[Pixels]) -> Iterator[Pixels]:
    for picture in pictures:
        yield picture
        yield resize_image(picture, (picture.shape[0] * 3 // 4 | 1, picture.shape[1] * 2 // 3 | 1))
