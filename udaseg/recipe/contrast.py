"""Recipe sections of the contrastive terms of a method."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval


@dataclass(frozen=True)
class Projector:
    """The projection head in front of a contrastive loss."""

    channels: Annotated[int, Ge(1)]
    """Dimension of the embedding; 128 in RCCR, 512 in SePiCo."""
    trainable: bool
    """False keeps the random initialisation, as in RCCR's release, where student and teacher so
    have the same constant head.
    """
    kind: Literal["mlp", "norm", "linear", "none"] = "mlp"
    """`mlp`, two layers as in RCCR; `norm`, two layers with batch norm and ReLU after each, as in
    SePiCo's release; `linear`, one; `none`, the features themselves at unit length, which leaves
    `channels` and `trainable` without effect.
    """
    hidden: Annotated[int, Ge(1)] | None = None
    """Channels between the two layers; null, as in RCCR, takes those of the features."""

    def embedding_channels(self, features: int) -> int:
        """Return the dimension of the embedding of features of `features` channels."""
        return features if self.kind == "none" else self.channels


@dataclass(frozen=True)
class Regional:
    """RCCR's region-wise contrast (arXiv 2110.05170)."""

    weight: Annotated[float, Ge(0)]
    """Weight of the loss at the last step; 0.01 in RCCR."""
    ramp: bool
    """Increase to it as exp(-5 (1 - sqrt(step/steps))), as in RCCR; false keeps it constant."""
    start: Annotated[int, Ge(0)]
    """First step with contrast."""
    temperature: Annotated[float, Gt(0)]
    """Softmax temperature; 0.1 in RCCR."""
    min_confidence: Annotated[float, Interval(ge=0, le=1)]
    """Anchors need a teacher confidence above this; 0.75 in RCCR's release."""
    bank_steps: Annotated[int, Ge(1)]
    """Steps whose cells the memory bank holds, including the current one; 3 in RCCR's release."""
    cells_per_view: Annotated[int, Ge(1)]
    """Random regions of each view, over all ranks, that a step adds to the bank; 4000 in RCCR's
    release.
    """
    region_size: Annotated[int, Ge(1)]
    """Side of a region in cells, average-pooled, for anchors, positives and bank rows; 1, a single
    cell, in RCCR's release.
    """
    square_per: Literal["image", "batch"]
    """One CutMix square per `image`, or per `batch` as in RCCR's release."""
    keep_ignored: bool
    """Add ignored cells to the bank, as negatives of all anchors, as in RCCR's release."""
    projector: Projector
    """The projection head."""
    negative_sampling: bool = True
    """Drop bank rows of the anchor's class; false only for ablation."""
    positive_filtering: bool = True
    """Drop anchors of low confidence; false only for ablation."""
    momentum_head: bool = True
    """Compute keys with the teacher's head; false uses the student's, for ablation."""
    square_corner: Literal["all", "released"] = "all"
    """Places of the CutMix square: `all`, or `released` without the last row and column of cells,
    which a square never touches in RCCR's release.
    """
    square_share: tuple[
        Annotated[float, Interval(ge=0, le=1)], Annotated[float, Interval(ge=0, le=1)]
    ] = (0.0, 1.0)
    """Range of the area of the CutMix square, as a share of the largest square in the crop; [0, 1]
    in RCCR's release.
    """
    image: Literal["cutmix", "classmix", "target"] = "cutmix"
    """The augmented image of the student: `cutmix`, the source with a square of the target, as in
    RCCR; for ablation `classmix`, the mixed image of self-training, with anchors where whole cells
    show the target; or `target`, the target image itself after jitter and blur.
    """
    epsilon: Annotated[float, Ge(0)] = 0.0
    """Added to the denominator and inside the logarithm of the loss; 1e-8 in RCCR's release, which
    limits an anchor's loss to 18.42 and so drops anchors whose positive is far below the negatives.
    """


@dataclass(frozen=True)
class Prototypes:
    """SPCL's prototype contrast (arXiv 2111.12358)."""

    weight: Annotated[float, Ge(0)]
    """Weight of the term; 1 in SPCL, which has no other contrast."""
    temperature: Annotated[float, Gt(0)]
    """Softmax temperature; 100 in SPCL's release."""
    momentum: Annotated[float, Interval(ge=0, le=1)]
    """Share of a prototype that is kept at an update; 0.1 in SPCL's release."""
    absent: Literal["keep", "fade"]
    """Prototypes of classes that are not in the batch: `keep`, or `fade` as in SPCL's release."""
    normalise: bool
    """Scale prototypes to unit length after an update; SPCL's release does not."""
    min_confidence: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Minimum confidence of the teacher for a cell of a mixed image to count; 0.9 is the upper
    limit of SPCL's thresholds. Only in self-training: the stages of SPCL have their own.
    """
    anchor: Literal["source", "frozen"] = "source"
    """What cells are pulled to: prototypes that follow the `source`, as in SPCL; or `frozen` ones,
    the mean unit features of each class over source images in the backbone as its weights file or
    library gave it, before any `--init`, which never change; the direction of arXiv 2605.03365.
    They take all labelled source cells, not only those that are predicted correctly, and `momentum`
    and `absent` are without effect. Only in self-training.
    """
    anchor_images: Annotated[int, Ge(1)] = 500
    """Source images, chosen by the seed of the run, for the means of `frozen`; ours."""


@dataclass(frozen=True)
class FeatureDistance:
    """Distance of the student's last feature map to that of a frozen network for the same images.

    The frozen network is the student's backbone as its weights file or library gave it, before any
    `--init`.
    """

    kind: Literal["cosine", "thing_class"]
    """`cosine`, as in VFM-UDA++ (arXiv 2503.10685): two trained layers, then 0.9 of 1 - cosine and
    0.1 of a smooth L1 distance, over all cells of source and mixed images. `thing_class`, as in
    DAFormer (arXiv 2111.14887): the L2 distance, over source cells of countable things.
    """
    weight: Annotated[float, Ge(0)]
    """Weight of the term of each view; 0.1 in VFM-UDA++, 0.005 in DAFormer."""
    share: Annotated[float, Interval(gt=0.5, le=1)] = 0.75
    """A source cell has the class of at least this share of its pixels, or none, in all
    regularizers; 0.75 in DAFormer. Used only by `thing_class`.
    """
    classes: tuple[str, ...] | None = None
    """Names of the source's classes that are things; null takes those of Cityscapes that the source
    has, as in DAFormer: traffic light and sign, person, rider, and six kinds of vehicles. Used only
    by `thing_class`.
    """


@dataclass(frozen=True)
class Semantic:
    """SePiCo's contrast with class statistics of the teacher's source embeddings.

    Reference: arXiv 2204.08808.
    """

    variant: Literal["prototype", "bank", "distribution"]
    """SePiCo's ProtoCL, BankCL or DistCL."""
    weight: Annotated[float, Ge(0)]
    """Weight of the term; 1 in SePiCo."""
    temperature: Annotated[float, Gt(0)]
    """Softmax temperature; 100 in SePiCo's release, where the variants hardly differ."""
    momentum: Annotated[float, Interval(ge=0, le=1)]
    """Weight of older vectors at an update; 1, as in SePiCo, gives the mean over all of them."""
    bank_rows: Annotated[int, Ge(1)]
    """Batch means kept per class; 200 in SePiCo. Used only by `bank`."""
    channels: Annotated[int, Ge(1)]
    """Dimension of the embedding; 512 in SePiCo."""
    start: Annotated[int, Ge(0)] = 0
    """First step with contrast; 3000 in SePiCo. The statistics are updated from step 0."""
    head: Literal["mlp", "norm"] = "mlp"
    """The projection head: `mlp`, two layers; or `norm`, two layers with batch norm and ReLU after
    each, as in SePiCo's release.
    """
    second_view: Literal["mixed", "target"] = "mixed"
    """What is contrasted beside source images: `mixed` images, or target images with jitter and
    blur and the teacher's labels, as in SePiCo's release. `target` is another pass of the student,
    which is only made from `start` on.
    """
    label_share: Annotated[float, Interval(gt=0.5, le=1)] | None = None
    """A cell has the class of at least this share of its pixels, or none; 0.75 in SePiCo's release.
    Null takes the label of one pixel.
    """
    mean_weight: Annotated[float, Ge(0)] = 0.0
    """Weight, times `weight`, of the term on the mean embedding of a view; 1 in SePiCo's release,
    where it hardly differs from a constant.
    """
    unseen: Literal["left_out", "zero"] = "left_out"
    """Classes that have not occurred yet: `left_out`; or `zero`, as in SePiCo's release, with mean
    and variance 0 and a bank that starts with a row of zeros.
    """

    @property
    def projector(self) -> Projector:
        """The projection head."""
        return Projector(channels=self.channels, trainable=True, kind=self.head)


RegularizerSpec = Regional | Prototypes | Semantic | FeatureDistance
"""The settings of a built-in regularizer. One that needs a projection head has a `projector`."""
