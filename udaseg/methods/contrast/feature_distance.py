"""Keep the student's last feature map near that of the frozen backbone."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.errors import RecipeError
from udaseg.methods.contrast.regularizer import PerViewRegularizer
from udaseg.methods.views import MIXED, SOURCE, Need, View, Views
from udaseg.recipe.contrast import FeatureDistance

THINGS = (
    *("traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)
"""The classes of Cityscapes that DAFormer counts as things."""

_COSINE_SHARE = 0.9


def thing_classes(spec: FeatureDistance, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the positions of the things among the classes of the source; () for other kinds.

    Raises:
        RecipeError: There are none, or the recipe names a class that the source lacks.
    """
    if spec.kind != "thing_class":
        return ()
    wanted = THINGS if spec.classes is None else spec.classes
    unknown = [] if spec.classes is None else [name for name in wanted if name not in classes]
    found = tuple(number for number, name in enumerate(classes) if name in wanted)
    if unknown or not found:
        problem = f"has no {' or '.join(unknown)}" if unknown else "has no thing of Cityscapes"
        raise RecipeError(
            f"method.feature_distance.classes: the source {problem}; name some of "
            f"{', '.join(classes)}, or leave the distance out by method.feature_distance=null"
        )
    return found


def cosine_distance(features: Tensor, given: Tensor) -> Tensor:
    """Return 0.9 (1 - cosine) + 0.1 smooth L1 of two (B, C, h, w) maps, the mean over cells.

    The smooth L1 distance is a mean over channels too.

    Reference:
        VFM-UDA++ (arXiv 2503.10685), its released code.
    """
    apart = (1 - F.cosine_similarity(features, given, dim=1)).mean()
    return _COSINE_SHARE * apart + (1 - _COSINE_SHARE) * F.smooth_l1_loss(features, given)


class FrozenDistance(PerViewRegularizer):
    """The distance of the student's last feature map to that of a frozen network, by image.

    Args:
        spec: Settings of the loss.
        frozen: From (B, 3, H, W) images in [0, 1] to a map of the same size as the student's.
        channels: Channels of both maps.
        things: Classes whose cells count, for `thing_class`.

    Reference:
        `cosine`: VFM-UDA++ (arXiv 2503.10685), which compares with a larger network and target
        images. `thing_class`: Hoyer et al., DAFormer (2022), whose loss is NaN without a thing in
        the batch; this one is 0.

    Example:
        >>> import torch
        >>> from udaseg.contrast import FeatureDistance, FrozenDistance
        >>> frozen = torch.nn.Conv2d(3, 8, 4, stride=4)
        >>> term = FrozenDistance(FeatureDistance("cosine", weight=0.1), frozen, channels=8)
        >>> [need.view for need in term.needs]
        ['source', 'mixed']
    """

    things: Tensor

    def __init__(
        self, spec: FeatureDistance, frozen: nn.Module, *, channels: int, things: Sequence[int] = ()
    ) -> None:
        # slow to import
        from timm.layers.norm import LayerNorm2d

        super().__init__()
        self.spec, self.frozen = spec, frozen
        self.needs: tuple[Need, ...]
        if spec.kind == "thing_class":
            self.needs = (Need(SOURCE, options={"images": True, "label_share": spec.share}),)
            self.translate: nn.Module = nn.Identity()
        else:
            self.needs = tuple(Need(view, options={"images": True}) for view in (SOURCE, MIXED))
            self.translate = nn.Sequential(
                nn.Conv2d(channels, channels, 1),
                LayerNorm2d(channels),
                nn.GELU(),
                nn.Conv2d(channels, channels, 1),
            )
        self.register_buffer("things", torch.tensor(things), persistent=False)

    def view_loss(self, view: View, views: Views) -> Tensor:
        """Return the weighted distance of a view."""
        with torch.no_grad():
            given = self.frozen(views.images[view]).float()
        features = self.translate(views[view].features).float()
        if self.spec.kind == "cosine":
            return self.spec.weight * cosine_distance(features, given)
        counted = self._is_thing(views[view].labels)
        distances = torch.linalg.vector_norm(features - given, dim=1)
        divisor = self.divisor(views, counted.sum())
        loss: Tensor = self.spec.weight * (distances * counted).sum() / divisor
        return loss

    def local_counts(self, views: Views) -> Tensor | None:
        """Return the number of cells that count; None if all do."""
        if self.spec.kind == "cosine":
            return None
        return self._is_thing(views.labels[SOURCE].labels).sum()

    def _is_thing(self, labels: Tensor) -> Tensor:
        # not isin, which may sort and wait for the device
        return (labels[..., None] == self.things).any(-1)
