"""The `source` and `target` sections of a recipe: data, sampling and crops."""

from dataclasses import dataclass, field
from typing import Literal

from udaseg.recipe.method_checks import Found, require


@dataclass(frozen=True)
class RareClass:
    """Settings of `sampling: rare_class`; the defaults are those of DAFormer.

    Attributes:
        temperature: Classes are drawn by the softmax of (1 - f) / temperature, where f is the pixel
            share of the class.
        min_pixels: Minimum pixels of the class in an image drawn for it, at the original size.
        min_crop_pixels: Minimum pixels of the class in its crop, after `resize`.
    """

    temperature: float = 0.01
    min_pixels: int = 3000
    min_crop_pixels: int = 1500


@dataclass(frozen=True)
class Domain:
    """Images of one domain and how they are cut for training.

    Attributes:
        data: Name of a prepared data set, dataset YAML, or (target only) a folder of images.
        split: The split to read.
        resize: (height, width) in pixels; null keeps the size of each file.
        crop: (height, width) of the random crop. A labelled image that is smaller is padded with
            ignored pixels; an unlabelled one is enlarged.
        flip: Mirror left-right with probability 1/2.
        sampling: How images are sampled: `uniform`; for a source also `class_balanced` (by
            image-level class counts, as in SPCL) and `rare_class` (as in DAFormer). A stage can
            override it.
        rare_class: Settings of `rare_class`.
    """

    data: str
    split: str
    resize: tuple[int, int] | None
    crop: tuple[int, int]
    flip: bool
    sampling: Literal["uniform", "class_balanced", "rare_class"] = "uniform"
    rare_class: RareClass = field(default_factory=RareClass)


def source_problems(problems: Found, domain: Domain, stride: int) -> None:
    """Append the values of the source that are out of range, for a network of this stride."""
    _size_problems(problems, "source", domain, stride)
    rare, key = domain.rare_class, "source.rare_class"
    require(problems, f"{key}.temperature", rare.temperature > 0, "above 0", rare.temperature)
    require(problems, f"{key}.min_pixels", rare.min_pixels >= 1, "at least 1", rare.min_pixels)
    crop_pixels = domain.crop[0] * domain.crop[1]
    min_crop_pixels = rare.min_crop_pixels
    if domain.sampling == "rare_class":
        require(
            problems,
            f"{key}.min_crop_pixels",
            min_crop_pixels <= crop_pixels,
            f"at most {crop_pixels}, the pixels of a crop",
            min_crop_pixels,
        )
    require(problems, f"{key}.min_crop_pixels", min_crop_pixels >= 0, "at least 0", min_crop_pixels)


def target_problems(problems: Found, domain: Domain, stride: int) -> None:
    """Append the values of the target that are out of range, for a network of this stride."""
    _size_problems(problems, "target", domain, stride)
    is_uniform = domain.sampling == "uniform"
    must = "uniform, because the classes of target images are unknown"
    require(problems, "target.sampling", is_uniform, must, domain.sampling)


def _size_problems(problems: Found, section: str, domain: Domain, stride: int) -> None:
    for name in ("resize", "crop"):
        size = getattr(domain, name)
        if size is not None:
            require(
                problems, f"{section}.{name}", min(size) >= 1, "two sizes of at least 1 px", size
            )
    shorter_side = min(domain.crop)
    require(
        problems,
        f"{section}.crop",
        shorter_side >= stride,
        f"one cell ({stride} px) or more",
        shorter_side,
    )
