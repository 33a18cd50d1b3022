"""What a recipe says of each domain: where its images are, and how they are drawn and cut."""

from dataclasses import dataclass, field
from typing import Literal

from udaseg.recipe.method_checks import Found, require


@dataclass(frozen=True)
class RareClass:
    """The numbers of `sampling: rare_class`; the defaults are DAFormer's.

    Attributes:
        temperature: A class of pixel share f is drawn with softmax of (1 - f) / temperature.
        min_pixels: Pixels of the class that an image drawn for it must hold, at its own size.
        min_crop_pixels: Pixels of the class that its crop must hold, after `resize`.
    """

    temperature: float = 0.01
    min_pixels: int = 3000
    min_crop_pixels: int = 1500


@dataclass(frozen=True)
class Domain:
    """Images of one domain and how they are cut for training.

    Attributes:
        data: A prepared name, a dataset YAML, or (target only) a plain folder of images.
        split: The split to read.
        resize: (height, width) in pixels; null keeps each file's size.
        crop: (height, width) of the random crop; a smaller labelled image is padded with ignored
            pixels, a smaller unlabelled one is enlarged.
        flip: Mirror left-right with probability 1/2.
        sampling: How images are drawn: `uniform`; of a source also `class_balanced` (by image-level
            class counts, as SPCL) and `rare_class` (as DAFormer). A stage's own word comes first.
        rare_class: The numbers of `rare_class`.
    """

    data: str
    split: str
    resize: tuple[int, int] | None
    crop: tuple[int, int]
    flip: bool
    sampling: Literal["uniform", "class_balanced", "rare_class"] = "uniform"
    rare_class: RareClass = field(default_factory=RareClass)


def source_problems(found: Found, domain: Domain, stride: int) -> None:
    """List every value of the source that is out of range, for a network of this stride."""
    _size_problems(found, "source", domain, stride)
    rare, where = domain.rare_class, "source.rare_class"
    require(found, f"{where}.temperature", rare.temperature > 0, "above 0", rare.temperature)
    require(found, f"{where}.min_pixels", rare.min_pixels >= 1, "at least 1", rare.min_pixels)
    most = domain.crop[0] * domain.crop[1]
    least = rare.min_crop_pixels
    if domain.sampling == "rare_class":
        require(found, f"{where}.min_crop_pixels", least <= most, f"at most {most}, a crop", least)
    require(found, f"{where}.min_crop_pixels", least >= 0, "at least 0", least)


def target_problems(found: Found, domain: Domain, stride: int) -> None:
    """List every value of the target that is out of range, for a network of this stride."""
    _size_problems(found, "target", domain, stride)
    blind = domain.sampling == "uniform"
    why = "uniform, because a target's classes are not known"
    require(found, "target.sampling", blind, why, domain.sampling)


def _size_problems(found: Found, name: str, domain: Domain, stride: int) -> None:
    for part in ("resize", "crop"):
        size = getattr(domain, part)
        if size is not None:
            require(found, f"{name}.{part}", min(size) >= 1, "two sizes of at least 1 px", size)
    least = min(domain.crop)
    require(found, f"{name}.crop", least >= stride, f"one cell ({stride} px) or more", least)
