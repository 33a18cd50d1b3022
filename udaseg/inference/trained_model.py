"""A trained network with its classes, ready for inference."""

import math
import os
import shlex
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.data.labels.classes import ClassSpace
from udaseg.distributed import resolve_device
from udaseg.errors import CheckpointError, UsageError
from udaseg.inference.input_images import ImageSource, to_input_image
from udaseg.inference.options import check_ranges
from udaseg.inference.prediction import Prediction, make_prediction
from udaseg.inference.predictor import Predictor
from udaseg.inference.run_data import bands_of_run, bits_of_run
from udaseg.inference.sizes import network_input_size
from udaseg.inference.tiles import TileOptions
from udaseg.models.segmenter import Segmenter, merged_segmenter
from udaseg.recipe.load import from_dict
from udaseg.recipe.schema import Recipe
from udaseg.runs.base import find_base
from udaseg.runs.calibration_file import read_temperature
from udaseg.runs.checkpoint import STUDENT_PREFIX, TEACHER_PREFIX, find_checkpoint, network_tensors
from udaseg.runs.folder import run_folder_of, with_located_data
from udaseg.runs.worth import Worth, read_worth


class Model(nn.Module):
    """A trained network with its classes and its preprocessing.

    Args:
        segmenter: The network; its mode, gradients and memory format are not changed.
        classes: Outputs of the network.
        recipe: Recipe that it was trained with.
        step: Number of training steps.
        checkpoint: File it was loaded from.
        device: Move the network there; None leaves it where it is.
        sha256: Digest of the file.
        weights: `student` or `teacher`.

    Example:
        model = udaseg.load("runs/city-rccr")
        model.classes.names
        prediction = model.predict("street.jpg")
        logits = model(torch.rand(1, 3, 512, 1024, device=model.device))
    """

    segmenter: Segmenter

    def __init__(
        self,
        segmenter: Segmenter,
        classes: ClassSpace,
        recipe: Recipe,
        step: int,
        checkpoint: Path,
        device: torch.device | None = None,
        sha256: str = "",
        weights: str = "student",
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.classes = classes
        self.recipe = recipe
        self.step = step
        self.checkpoint = checkpoint
        self.sha256 = sha256
        self.weights = weights
        self.training = segmenter.training
        if device is not None:
            self.to(device)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) at the size of the images.

        Images are not resized. The normalisation is inside the network.

        Args:
            images: (B, 3, H, W) float RGB in [0, 1], on the device of the model.

        Example:
            probabilities = model(images).softmax(1)
        """
        logits = self.segmenter(images).logits
        aligned = self.recipe.model.align_corners
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=aligned)

    def predict(
        self,
        image: ImageSource,
        *,
        flip: bool = False,
        window: tuple[int, int] | None = None,
        temperature: float | None = None,
        abstain: float | None = None,
    ) -> Prediction:
        """Return the class of each pixel of an image, as `udaseg predict` computes it.

        The network gets the image upright and at the size of its training. Very large images are
        predicted in tiles.

        Args:
            image: A file, an (H, W, 3) uint8 RGB array, a Pillow image, or a (3, H, W) RGB tensor,
                uint8 or float in [0, 1]. Floats are rounded to 8 bits.
            flip: Average with the mirrored image.
            window: Sliding window (height, width) over the network's input.
            temperature: Temperature of the confidence. None takes that of `udaseg calibrate`, or 1
                if this checkpoint was not calibrated.
            abstain: Pixels with less confidence get id 255; None keeps all.

        Returns:
            Ids and confidence in the size and orientation of the stored image.

        Raises:
            DataError: The file is unreadable, damaged, not an image, or too large; or the run's
                calibration is damaged or belongs to another checkpoint.
            ValueError: An array or tensor has another shape, type or range.
            TypeError: The image is something else.
            UsageError: An option is out of range.

        Example:
            prediction = model.predict("street.jpg")
            prediction.ids, prediction.confidence, prediction.shares()
        """
        check_ranges(window=window, abstain=abstain)
        if temperature is not None and not 0 < temperature < math.inf:
            raise UsageError(f"temperature must be above 0, got {temperature}")
        bits, bands = bits_of_run(self.recipe), bands_of_run(self.recipe)
        source = to_input_image(image, bits, bands)
        if temperature is None:
            temperature = read_temperature(self.checkpoint, self.weights) or 1.0
        options = TileOptions(self.device, window, flip, confidence=True, temperature=temperature)
        size, resampling = network_input_size(self.recipe), self.recipe.target.resampling
        predictor = Predictor(
            self.segmenter, self.classes, size, options, abstain, resampling=resampling
        )
        (labels,) = predictor.predict([predictor.prepare(source)])
        return make_prediction(labels, source, self.classes)


def load(
    run: str | os.PathLike[str], *, weights: str = "student", device: str | torch.device = "auto"
) -> Model:
    """Return the network of a run (its newest complete checkpoint) or of a checkpoint file.

    Args:
        run: A `Run`, a run folder or `step-*.pt`.
        weights: `student` or `teacher`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        The model in evaluation mode, without gradients.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, it has no teacher, or its weights
            are NaN or infinite; or the base weights of its adapters are missing or others.
        RecipeError: The recipe needs a package that is not installed, or the device is not valid.
        EnvironmentFault: There is no such device.
        UsageError: There are no such weights.

    Example:
        model = udaseg.load("runs/city-rccr", weights="teacher", device="cpu")
    """
    if weights not in ("student", "teacher"):
        raise UsageError(f"weights must be student or teacher, got '{weights}'")
    checkpoint = find_checkpoint(Path(run))
    prefix = TEACHER_PREFIX if weights == "teacher" else STUDENT_PREFIX
    tensors = network_tensors(checkpoint, prefix)
    if not tensors:
        raise CheckpointError(f"{checkpoint.path}: holds no {weights}; use --weights student")
    recipe = with_located_data(from_dict(checkpoint.recipe), run_folder_of(checkpoint.path))
    colors = checkpoint.classes["colors"]
    classes = ClassSpace(
        tuple(checkpoint.classes["names"]),
        tuple((int(red), int(green), int(blue)) for red, green, blue in colors),
    )
    target_device = resolve_device(str(device))
    tensors = {key: value for key, value in tensors.items() if not key.startswith("projector.")}
    base = None if checkpoint.base is None else str(find_base(checkpoint.base, checkpoint.path))
    try:
        network = merged_segmenter(recipe.model, len(classes), tensors, base=base)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path}: does not match its own recipe: {error}"
        ) from error
    network.to(target_device).to(memory_format=torch.channels_last)
    network.eval().requires_grad_(False)
    return Model(
        network,
        classes,
        recipe,
        checkpoint.step,
        checkpoint.path,
        sha256=checkpoint.sha256,
        weights=weights,
    )


def stored_worth(model: Model) -> Worth | None:
    """Return what the run of a model stores of the comparison of this very network, if any.

    Only students are compared.
    """
    if model.weights != "student":
        return None
    return read_worth(run_folder_of(model.checkpoint), model.sha256)


def load_baseline(worth: Worth, model: Model) -> Model:
    """Return the network that a model was compared with, on the device of the model.

    Raises:
        CheckpointError: It is gone, or it is another one now.
    """
    assert worth.baseline is not None
    path = run_folder_of(model.checkpoint) / worth.baseline.checkpoint
    try:
        baseline = load(path, device=model.device)
    except CheckpointError as error:
        raise _not_the_baseline(model, str(error)) from error
    if baseline.sha256 != worth.baseline.sha256:
        raise _not_the_baseline(model, f"{path}: has changed since")
    return baseline


def _not_the_baseline(model: Model, reason: str) -> CheckpointError:
    run = shlex.quote(str(run_folder_of(model.checkpoint)))
    return CheckpointError(
        f"{reason}; {model.checkpoint} was compared with this network: run `udaseg select "
        f"--worth-it {run} --baseline RUN` again"
    )
