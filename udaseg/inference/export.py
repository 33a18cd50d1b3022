"""Write a run's network as an ONNX file, compared with torch, or as a state dict."""

import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from udaseg import __version__
from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import classes_to_dict
from udaseg.data.loading.transforms import resize_image
from udaseg.errors import DataError, EnvironmentFault, UsageError
from udaseg.files import refuse_output, write_atomic
from udaseg.inference import trained_model
from udaseg.inference.labels import refuse_not_finite
from udaseg.inference.run_data import open_run_data
from udaseg.inference.sizes import input_size, network_input_size
from udaseg.inference.trained_model import Model
from udaseg.models.segmenter import Segmenter
from udaseg.recipe.schema import Recipe
from udaseg.runs.folder import run_folder_of
from udaseg.runs.leftovers import writing_in_run
from udaseg.sizes import plain_size

log = logging.getLogger(__name__)
_EXAMPLE_SHAPE = (2, 3, 130, 194)  # of the traced images; all axes but the channels are dynamic
_MIN_AGREEMENT = 0.995
_MAX_DIFFERENCE = 1e-3  # relative to the largest logit
_NUM_NOISE_IMAGES = 3
_INSTALL_HINT = "pip install 'udaseg[export]'  (onnx, onnxscript, onnxruntime)"


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


@dataclass(frozen=True)
class Exported:
    """A network that was exported to ONNX.

    Attributes:
        path: The ONNX file.
        input: Name, shape and type of its input.
        output: Name and shape of its output.
        comparison: How well it agrees with torch; None if it was not compared.
    """

    path: Path
    input: str
    output: str
    comparison: OnnxComparison | None


class ExportModule(nn.Module):
    """Map RGB images, 0..255 if `uint8` and else 0..1, to labels or else logits of their size."""

    def __init__(self, network: Segmenter, *, uint8: bool, argmax: bool) -> None:
        super().__init__()
        self.network = network
        self.uint8 = uint8
        self.argmax = argmax

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, K, H, W) float logits, or (B, H, W) uint8 labels, of (B, 3, H, W) images."""
        scaled = image.float() / 255 if self.uint8 else image
        logits = self.network(scaled).logits
        resized = F.interpolate(
            logits,
            image.shape[-2:],
            mode="bilinear",
            align_corners=self.network.align_corners,
        )
        return resized.argmax(1).to(torch.uint8) if self.argmax else resized

    def to_input(self, images: Tensor) -> Tensor:
        """Return uint8 images as the type that `forward` takes."""
        return images if self.uint8 else images.float() / 255


def export(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    argmax: bool = False,
    pixels: Literal["uint8", "float"] = "uint8",
    weights: Literal["student", "teacher"] = "student",
    images: int = 3,
    overwrite: bool = False,
    root: str | os.PathLike[str] = "data",
) -> Exported:
    """Write a run's network as an ONNX file for any image size, and compare it with torch.

    Args:
        run: Run folder or checkpoint.
        out: Output file; None writes `model.onnx` into the run.
        argmax: Export labels (uint8) instead of logits.
        pixels: Type of the RGB input: `uint8` 0..255 or `float` 0..1.
        weights: `student` or `teacher`.
        images: Number of target images to compare with; 0 does not compare.
        overwrite: Replace an existing file.
        root: Folder of the prepared data.

    Returns:
        The file, and how well it agrees with torch.

    Raises:
        UsageError: The file exists, or an ONNX file of this network would be for one image size.
        CheckpointError: There is no checkpoint, it has no such weights, or the network's weights or
            outputs are NaN or infinite.
        EnvironmentFault: A package is missing, or the file disagrees with torch and was discarded.

    Example:
        exported = udaseg.export("runs/city-rccr", argmax=True, out="city.onnx")
        exported.path, exported.comparison.agreement
    """
    if pixels not in ("uint8", "float") or images < 0:
        raise UsageError(f"pixels must be uint8 or float, got {pixels!r}; images, {images}")
    missing = [package for package in ("onnx", "onnxscript") if not _is_installed(package)]
    if missing:
        raise EnvironmentFault(f"export needs {' and '.join(missing)}: {_INSTALL_HINT}")
    path = _output_path(run, "model.onnx", out, overwrite=overwrite)
    loaded = trained_model.load(Path(run), weights=weights, device="cpu")
    network = loaded.segmenter.to(memory_format=torch.contiguous_format)
    _refuse_one_size(network, loaded.recipe)
    module = ExportModule(network, uint8=pixels == "uint8", argmax=argmax).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    comparison = None
    with torch.no_grad():
        refuse_not_finite(network(_example().float() / 255).logits, str(loaded.checkpoint))
    with (
        writing_in_run(path.parent),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder,
    ):
        temporary = Path(folder) / "model.onnx"
        log.info("exporting %s, step %d", loaded.checkpoint, loaded.step)
        write_onnx(module, temporary, _metadata(loaded, module))
        if images and _is_installed("onnxruntime"):
            targets = _target_images(loaded.recipe, images, Path(root))
            comparison = compare_with_torch(
                module, temporary, targets or _noise_images(), on_real_images=bool(targets)
            )
            _check_agreement(comparison)
        elif images:
            log.warning(
                "not checked against torch: onnxruntime is not installed; %s", _INSTALL_HINT
            )
        temporary.replace(path)
    return Exported(
        path,
        input=f"image (B, 3, H, W) {pixels}",
        output="labels (B, H, W)" if argmax else f"logits (B, {len(loaded.classes)}, H, W)",
        comparison=comparison,
    )


def export_state_dict(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    weights: Literal["student", "teacher"] = "student",
    overwrite: bool = False,
) -> Path:
    """Write a run's network as a safetensors file, and return its path.

    It has the names of `udaseg.models.Segmenter`, and classes, colors, recipe and step as metadata.
    As `model.weights` of a recipe, it gives the backbone.

    Args:
        run: Run folder or checkpoint.
        out: Output file, `*.safetensors`; None writes `model.safetensors` into the run.
        weights: `student` or `teacher`.
        overwrite: Replace an existing file.

    Raises:
        UsageError: The file exists, or has another suffix.
        CheckpointError: There is no checkpoint, or it has no such weights.

    Example:
        path = udaseg.export_state_dict("runs/city-source_only", out="city.safetensors")
        udaseg.adapt("rccr", source="other.yaml", overrides={"model.weights": path})
    """
    path = _output_path(run, "model.safetensors", out, overwrite=overwrite)
    loaded = trained_model.load(Path(run), weights=weights, device="cpu")
    state = loaded.segmenter.state_dict()
    tensors = {name: value.contiguous() for name, value in state.items()}
    write_atomic(path, save(tensors, _origin(loaded)))
    return path


def _refuse_one_size(network: Segmenter, recipe: Recipe) -> None:
    """Refuse a network whose ONNX file would be for images of the size that it was traced with."""
    if network.backbone.one_size_onnx:
        raise UsageError(
            f"{recipe.model.backbone}: the windows of a Swin are fixed to one image size in an "
            "ONNX file; write its weights with --format state-dict, predict with `udaseg predict`, "
            "or train another network for ONNX: ConvNeXt, PVTv2, a ViT, or any CNN"
        )


def _output_path(
    run: str | os.PathLike[str],
    name: str,
    out: str | os.PathLike[str] | None,
    *,
    overwrite: bool,
) -> Path:
    """Return the file to write, by default `name` in the run folder."""
    path = run_folder_of(Path(run)) / name if out is None else Path(out)
    suffix = Path(name).suffix
    refuse_output(path, suffix, f"the network is written as {suffix}", overwrite=overwrite)
    return path


def write_onnx(module: ExportModule, path: Path, metadata: dict[str, str]) -> None:
    """Write a module as one ONNX file with dynamic batch, height and width, and metadata."""
    import onnx

    dynamic = {0: "batch", 2: "height", 3: "width"}
    shapes = {axis: torch.export.Dim(name, min=2) for axis, name in dynamic.items()}
    with warnings.catch_warnings(), torch.no_grad():
        # users cannot act on the exporter's own warnings
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (module.to_input(_example()),),
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


def _example() -> Tensor:
    """Return the images that the network is traced with: uint8 noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, _EXAMPLE_SHAPE, dtype=torch.uint8, generator=generator)


def compare_with_torch(
    module: ExportModule, path: Path, images: Sequence[Pixels], *, on_real_images: bool
) -> OnnxComparison:
    """Compare the ONNX file with torch, on each image at its own size and at an odd size."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference, largest, equal_pixels, total_pixels = 0.0, 0.0, 0, 0
    for pixels in _at_two_sizes(images):
        image = module.to_input(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())
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


def _check_agreement(comparison: OnnxComparison) -> None:
    """Raise `EnvironmentFault` if the file disagrees with torch; NaN counts as disagreement."""
    close = comparison.relative is None or comparison.relative <= _MAX_DIFFERENCE
    if close and comparison.agreement >= _MIN_AGREEMENT:
        return
    raise EnvironmentFault(
        f"the ONNX file disagrees with torch {torch.__version__} and was discarded: "
        f"{comparison.summary()}; try other versions of torch, onnxscript and onnxruntime"
    )


def _target_images(recipe: Recipe, count: int, root: Path) -> list[Pixels]:
    """Return target images at the network's input size; none if they are not prepared."""
    try:
        target = open_run_data(recipe, recipe.target.data, root=root)
        samples = target.split(recipe.target.split)[:count]
        stored = [target.read_image(sample) for sample in samples]
    except DataError as error:
        log.warning("%s; checking with noise images instead", error)
        return []
    size = network_input_size(recipe)
    return [
        resize_image(image, input_size(image.shape[:2], size), recipe.target.resampling)
        for image in stored
    ]


def _noise_images() -> list[Pixels]:
    generator = np.random.default_rng(0)
    size = (*_EXAMPLE_SHAPE[2:], 3)
    return [generator.integers(0, 256, size, dtype=np.uint8) for _ in range(_NUM_NOISE_IMAGES)]


def _metadata(loaded: Model, module: ExportModule) -> dict[str, str]:
    """Return the facts that a user of the file needs, as text."""
    value_range = "uint8 0..255" if module.uint8 else "float 0..1"
    return {
        "input": f"RGB, (batch, 3, height, width), {value_range}",
        "output": "class of each pixel, uint8" if module.argmax else "logits of each pixel, float",
        **_origin(loaded),
    }


def _origin(loaded: Model) -> dict[str, str]:
    """Return the classes of a network and what it was trained with, as text."""
    document = classes_to_dict(loaded.classes)
    return {
        "classes": json.dumps(document["names"]),
        "colors": json.dumps(document["colors"]),
        # null where images kept their size
        "trained_size": json.dumps(plain_size(network_input_size(loaded.recipe))),
        "resampling": loaded.recipe.target.resampling,
        "recipe": loaded.recipe.name,
        "step": str(loaded.step),
        "weights": loaded.weights,
        "made_by": f"udaseg {__version__}",
    }


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
