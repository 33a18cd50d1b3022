"""`udaseg export`: write a run's network as an ONNX file for any image size, and check it."""

import importlib.util
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch

from udaseg import __version__
from udaseg.data.files.images import Pixels, read_image
from udaseg.data.labels.classes import classes_to_dict
from udaseg.data.loading.transforms import resize_image
from udaseg.data.open import open_dataset
from udaseg.display.console import open_console, safe_text
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


def export(
    *,
    run: Path,
    out: Path | None,
    argmax: bool,
    pixels: str,
    weights: str,
    images: int,
    overwrite: bool,
    root: Path,
) -> None:
    """Write a run's network as ONNX, compare it with torch, and print how well they agree.

    Args:
        run: Run folder or checkpoint.
        out: Output file; None writes `model.onnx` into the run.
        argmax: Export labels instead of logits.
        pixels: `uint8` or `float`.
        weights: `student` or `teacher`.
        images: Number of target images to check with; 0 skips the check.
        overwrite: Replace an existing file.
        root: Folder of the prepared data.

    Raises:
        EnvironmentFault: A package is missing, or the file disagrees with torch and was discarded.
        UsageError: The file exists.
    """
    _require_packages("onnx", "onnxscript")
    path = out or run_folder_of(run) / "model.onnx"
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError(f"{path}: exists; use --overwrite or another --out FILE")
    loaded = trained_model.load(run, weights=weights, device="cpu")
    network = loaded.segmenter.to(memory_format=torch.contiguous_format)
    module = ExportModule(network, uint8=pixels == "uint8", argmax=argmax).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        temporary = Path(folder) / "model.onnx"
        log.info("exporting %s, step %d", loaded.checkpoint, loaded.step)
        write_onnx(module, temporary, _metadata(loaded, weights, module))
        comparison = _compare(module, temporary, loaded.recipe, images, root)
        if comparison is not None:
            _check_agreement(comparison)
        temporary.replace(path)
    megabytes = path.stat().st_size / 1e6
    _print(f"{path}: {megabytes:.1f} MB, {_signature_text(loaded, module)}")
    if comparison is not None:
        _print(_summary(comparison))
    elif images:
        log.warning("not checked against torch: onnxruntime is not installed; %s", _INSTALL_HINT)


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
        f"{_summary(comparison)}; try other versions of torch, onnxscript and onnxruntime"
    )


def _summary(comparison: OnnxComparison) -> str:
    kind = "images" if comparison.on_real_images else "noise images"
    text = f"checked on {comparison.images} {kind} at two sizes each: "
    if comparison.difference is not None:
        text += f"largest difference of a logit {comparison.difference:.2g}, "
    return text + f"{100 * comparison.agreement:.3f} % of the labels agree with torch"


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


def _print(line: str) -> None:
    open_console(soft_wrap=True).print(safe_text(line))


def _signature_text(loaded: Model, module: ExportModule) -> str:
    input_type = "uint8" if module.uint8 else "float"
    output = "labels (B, H, W)" if module.argmax else f"logits (B, {len(loaded.classes)}, H, W)"
    return f"image (B, 3, H, W) {input_type} -> {output}"


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _require_packages(*packages: str) -> None:
    """Raise `EnvironmentFault` with the install command if a package for ONNX export is missing."""
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise EnvironmentFault(f"export needs {' and '.join(missing)}: {_INSTALL_HINT}")
