"""Write a run's network as an ONNX file for any image size, and check it."""

import importlib.util
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from udaseg import __version__
from udaseg.data.files.images import Pixels, read_image
from udaseg.data.labels.classes import classes_to_dict
from udaseg.data.loading.transforms import resize_image
from udaseg.data.open import open_dataset
from udaseg.errors import DataError, EnvironmentFault, UsageError
from udaseg.inference import trained_model
from udaseg.inference.onnx import (
    EXAMPLE_SHAPE,
    ExportModule,
    OnnxComparison,
    compare_with_torch,
    write_onnx,
)
from udaseg.inference.sizes import input_size, network_input_size
from udaseg.inference.trained_model import Model
from udaseg.recipe.schema import Recipe
from udaseg.runs.folder import run_folder_of

log = logging.getLogger(__name__)
_MIN_AGREEMENT = 0.995
_MAX_DIFFERENCE = 1e-3  # relative to the largest logit
_NUM_NOISE_IMAGES = 3
_INSTALL_HINT = "pip install 'udaseg[export]'  (onnx, onnxscript, onnxruntime)"


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
        UsageError: The file exists.
        CheckpointError: There is no checkpoint, or it has no such weights.
        EnvironmentFault: A package is missing, or the file disagrees with torch and was discarded.

    Example:
        exported = udaseg.export("runs/city-rccr", argmax=True, out="city.onnx")
        exported.path, exported.comparison.agreement
    """
    if pixels not in ("uint8", "float") or images < 0:
        raise UsageError(f"pixels must be uint8 or float, got {pixels!r}; images, {images}")
    _require_packages("onnx", "onnxscript")
    path = run_folder_of(Path(run)) / "model.onnx" if out is None else Path(out)
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError(f"{path}: exists; use --overwrite or another --out FILE")
    loaded = trained_model.load(Path(run), weights=weights, device="cpu")
    network = loaded.segmenter.to(memory_format=torch.contiguous_format)
    module = ExportModule(network, uint8=pixels == "uint8", argmax=argmax).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        temporary = Path(folder) / "model.onnx"
        log.info("exporting %s, step %d", loaded.checkpoint, loaded.step)
        write_onnx(module, temporary, _metadata(loaded, weights, module))
        comparison = _compare(module, temporary, loaded.recipe, images, Path(root))
        if comparison is not None:
            _check_agreement(comparison)
        temporary.replace(path)
    if images and comparison is None:
        log.warning("not checked against torch: onnxruntime is not installed; %s", _INSTALL_HINT)
    return Exported(
        path,
        input=f"image (B, 3, H, W) {'uint8' if module.uint8 else 'float'}",
        output="labels (B, H, W)" if argmax else f"logits (B, {len(loaded.classes)}, H, W)",
        comparison=comparison,
    )


def _compare(
    module: ExportModule, path: Path, recipe: Recipe, images: int, root: Path
) -> OnnxComparison | None:
    """Compare the file with torch; None if `images` is 0 or onnxruntime is missing."""
    if not images or not _is_installed("onnxruntime"):
        return None
    target_images = _target_images(recipe, images, root)
    return compare_with_torch(
        module,
        path,
        target_images or _noise_images(),
        on_real_images=target_images is not None,
    )


def _check_agreement(comparison: OnnxComparison) -> None:
    """Raise `EnvironmentFault` if the file disagrees with torch; NaN counts as disagreement."""
    close = comparison.relative is None or comparison.relative <= _MAX_DIFFERENCE
    if close and comparison.agreement >= _MIN_AGREEMENT:
        return
    raise EnvironmentFault(
        f"the ONNX file disagrees with torch {torch.__version__} and was discarded: "
        f"{comparison.summary()}; try other versions of torch, onnxscript and onnxruntime"
    )


def _target_images(recipe: Recipe, count: int, root: Path) -> list[Pixels] | None:
    """Return target images at the network's input size; None if there are none."""
    try:
        target = open_dataset(recipe.target.data, root=root)
        samples = target.split(recipe.target.split)[:count]
        stored = [read_image(target.image_path(sample)) for sample in samples]
    except DataError as error:
        log.warning("%s; checking with noise images instead", error)
        return None
    size = network_input_size(recipe)
    return [
        resize_image(image, input_size((image.shape[0], image.shape[1]), size)) for image in stored
    ] or None


def _noise_images() -> list[Pixels]:
    generator = np.random.default_rng(0)
    size = (*EXAMPLE_SHAPE[2:], 3)
    return [generator.integers(0, 256, size, dtype=np.uint8) for _ in range(_NUM_NOISE_IMAGES)]


def _metadata(loaded: Model, weights: str, module: ExportModule) -> dict[str, str]:
    """Return the facts that a user of the file needs, as text."""
    size = network_input_size(loaded.recipe)
    document = classes_to_dict(loaded.classes)
    return {
        "classes": json.dumps(document["names"]),
        "colors": json.dumps(document["colors"]),
        "input": "RGB, (batch, 3, height, width), "
        + ("uint8 0..255" if module.uint8 else "float 0..1"),
        "output": "class of each pixel, uint8" if module.argmax else "logits of each pixel, float",
        "trained_size": json.dumps(size),  # (height, width), null where images kept their size
        "recipe": loaded.recipe.name,
        "step": str(loaded.step),
        "weights": weights,
        "made_by": f"udaseg {__version__}",
    }


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _require_packages(*packages: str) -> None:
    """Raise `EnvironmentFault` with the install command if a package for ONNX export is missing."""
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise EnvironmentFault(f"export needs {' and '.join(missing)}: {_INSTALL_HINT}")
