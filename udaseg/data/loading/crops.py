"""Random crops of one domain: read, check, resize, crop and mirror images."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.datasets.joined import JoinedDataset
from udaseg.data.files.images import Pixels
from udaseg.data.labels.read import read_train_ids
from udaseg.data.loading import transforms
from udaseg.data.loading.cache import Cache
from udaseg.data.loading.pseudo_labels import pseudo_label_path
from udaseg.data.loading.rare_class import RareClassImages, RareClassSettings, rare_class_corner
from udaseg.errors import DataError
from udaseg.files import sha256
from udaseg.sizes import Resize, resized

Sampling = Literal["uniform", "class_balanced", "rare_class"]


@dataclass(frozen=True)
class CropSource:
    """Random crops of one domain.

    Attributes:
        resize: Size before the crop; None keeps the file's size.
        crop: (height, width).
        flip: Mirror half of the crops.
        labelled: Whether to read labels; never for a target.
        pseudo_labels: Folder of pseudo-labels to use instead of labels; see `pseudo_label_path`.
            They are resized to the image by nearest neighbour.
        scale: Range of the random factor applied to height and width before the crop.
        sampling: All but `uniform` use the class counts of the index.
        cache: Cached images at `resize`, read instead of the files; pixels are identical.
        resampling: How `resize` computes the pixels of images.
        parts: For several data sets read as one, how to read each of them: with its own `resize`
            and `cache`, which are then not used here.
        shares: Images drawn in turn from each of them; () draws from all as from one set.
    """

    dataset: PreparedDataset
    split: str
    resize: Resize | None
    crop: tuple[int, int]
    flip: bool
    labelled: bool
    pseudo_labels: Path | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    sampling: Sampling = "uniform"
    rare: RareClassSettings = field(default_factory=RareClassSettings)
    cache: Cache | None = None
    resampling: transforms.Resampling = "area"
    parts: tuple["CropSource", ...] = ()
    shares: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.labelled and self.pseudo_labels is not None:
            raise ValueError(f"labelled crops cannot use pseudo-labels, got {self.pseudo_labels}")
        key = self.resize, self.resampling
        if self.cache is not None and (self.cache.size, self.cache.resampling) != key:
            raise ValueError(
                f"the cache has size {self.cache.size}, {self.cache.resampling}: {key}"
            )

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples of the split."""
        return self.dataset.split(self.split)

    def content(self) -> str | None:
        """Return a digest of the content of all files; None if they are not held."""
        dataset, paths = self.dataset, [self.dataset.image_path(each) for each in self.samples]
        if self.labelled:
            paths += [dataset.label_path(sample) for sample in self.samples]
        files = [dataset.held.get(str(path)) for path in paths]
        digests = [file.sha256 for file in files if file is not None]
        return sha256("\n".join(digests).encode()) if len(digests) == len(paths) else None

    def read(self, sample: Sample) -> tuple[Pixels, Pixels | None]:
        """Return the whole image (H, W, 3) at `resize` and, when labelled, its labels (H, W)."""
        if isinstance(self.dataset, JoinedDataset):
            image, labels = self.parts[sample.part].read(sample)
            return image, None if labels is None else self.dataset.with_own_ids(labels, sample)
        cached = None if self.cache is None else self.cache.load(sample, labelled=self.labelled)
        if cached is not None:
            return cached
        image = self.dataset.read_image(sample)
        labels = self._read_labels(sample, image.shape) if self.labelled else None
        if self.resize is not None:
            size = resized((image.shape[0], image.shape[1]), self.resize)
            image = transforms.resize_image(image, size, self.resampling)
            labels = None if labels is None else transforms.resize_labels(labels, size)
        return image, labels

    def crop_image(
        self,
        sample: Sample,
        image: Pixels,
        labels: Pixels | None,
        rng: np.random.Generator,
        train_id: int | None = None,
    ) -> tuple[Pixels, Pixels | None]:
        """Return a crop of what `read` returned, with labels or pseudo-labels if there are any.

        With a `train_id`, as drawn by rare-class sampling, the crop contains this class.
        """
        if self.pseudo_labels is not None:
            labels = self._read_pseudo_labels(self.pseudo_labels, sample)
        if self.scale != (1.0, 1.0):
            factor = rng.uniform(*self.scale)
            height, width = (max(1, round(side * factor)) for side in image.shape[:2])
            image = transforms.resize_image(image, (height, width))
        if labels is None:
            image = transforms.enlarge_to_cover(image, self.crop)
        else:
            labels = transforms.resize_labels(labels, (image.shape[0], image.shape[1]))
        if train_id is None or labels is None:
            corner = transforms.random_corner(image.shape, self.crop, rng)
        else:
            corner = rare_class_corner(labels, train_id, self.crop, self.rare.min_crop_pixels, rng)
        image, labels = transforms.crop(image, labels, self.crop, corner)
        return transforms.random_mirror(image, labels, rng) if self.flip else (image, labels)

    def _read_labels(self, sample: Sample, shape: tuple[int, ...]) -> Pixels:
        """Return the label of an image of `shape`; reject one that a loss could not use."""
        path = self.dataset.label_path(sample)
        labels = self.dataset.read_labels(sample)
        if labels.shape != shape[:2]:
            raise DataError(
                f"{self.dataset.image_path(sample)}: image {shape[1]}x{shape[0]}, "
                f"label {labels.shape[1]}x{labels.shape[0]}; run `udaseg prepare` again"
            )
        if self.dataset.classes is not None:
            # uint8 addition turns IGNORE, 255, into 0
            largest = int((labels + np.uint8(1)).max()) - 1
            if largest >= len(self.dataset.classes):
                raise DataError(
                    f"{path}: contains train id {largest}, but there are "
                    f"{len(self.dataset.classes)} classes; run `udaseg prepare` again"
                )
        return labels

    @staticmethod
    def _read_pseudo_labels(folder: Path, sample: Sample) -> Pixels:
        path = pseudo_label_path(folder, sample)
        try:
            return read_train_ids(path)
        except DataError as error:
            raise DataError(
                f"{path}: not a readable pseudo-label; continue with --resume to recreate it"
            ) from error

    def of_each_part(self) -> "tuple[CropSource, ...]":
        """Return the crops of each of several data sets read as one, with the classes of all."""
        assert isinstance(self.dataset, JoinedDataset)
        return tuple(
            replace(self, dataset=self.dataset.only(part), shares=())
            for part in range(len(self.parts))
        )

    def class_counts(self) -> NDArray[np.int64]:
        """Return the number of pixels of each class in each sample's label, (N, K)."""
        if any(not sample.class_pixels for sample in self.samples):
            raise DataError(
                f"{self.dataset.name}: the index has no class counts, which "
                f"{self.sampling.replace('_', '-')} sampling needs; run `udaseg prepare` again"
            )
        pixels = np.array([sample.class_pixels for sample in self.samples], np.int64)
        if not pixels.any():
            raise DataError(
                f"{self.dataset.name}: no label of split '{self.split}' contains any class"
            )
        return pixels

    def rare_images(self) -> RareClassImages:
        """Return the images that rare-class sampling draws from for each class."""
        pixels = self.class_counts()
        if int(pixels.max()) < self.rare.min_pixels:
            raise DataError(
                f"{self.dataset.name}: no image of split '{self.split}' contains "
                f"{self.rare.min_pixels} pixels of any class; lower source.rare_class.min_pixels"
            )
        return RareClassImages(pixels, self.rare)
