"""Pull cells towards class means of the frozen backbone, which never change."""

import torch
from torch import Tensor

from udaseg.methods.contrast.class_losses import prototype_sum
from udaseg.methods.contrast.prototypes import ClassPrototypes, sure_labels
from udaseg.methods.contrast.regularizer import PerViewRegularizer
from udaseg.methods.pixel_loss import count_classes
from udaseg.methods.views import MIXED, SOURCE, Need, View, Views, flatten_cells
from udaseg.recipe.contrast import Prototypes


class AnchorContrast(PerViewRegularizer):
    """SPCL's loss with fixed prototypes: contrast cells of source and mixed images with anchors.

    The anchors are set once, by `prototypes.initialise`; until then the loss is 0. Cells of the
    source count with their labels, those of mixed images where the teacher is sure.

    Args:
        spec: Settings of the loss, with `anchor: frozen`; its momentum is not used.
        num_classes: K.
        channels: Channels of the features.

    Reference:
        Xie et al., SPCL (2021), L_cl, with the anchors of a frozen network instead of moving means.

    Example:
        >>> import torch
        >>> from udaseg.contrast import AnchorContrast, Prototypes
        >>> spec = Prototypes(
        ...     weight=1.0, temperature=0.1, momentum=0.0, absent="keep", normalise=True
        ... )
        >>> term = AnchorContrast(spec, num_classes=5, channels=8)
        >>> term.prototypes.initialise(torch.rand(5, 8), torch.ones(5, dtype=torch.bool))
        >>> [need.view for need in term.needs]
        ['source', 'mixed']
    """

    def __init__(self, spec: Prototypes, *, num_classes: int, channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.needs = (Need(SOURCE), Need(MIXED))
        self.prototypes = ClassPrototypes.from_spec(
            spec, num_classes=num_classes, channels=channels
        )

    def view_loss(self, view: View, views: Views) -> Tensor:
        """Return the weighted loss of a view."""
        means, seen, seen_view = self.prototypes.means, self.prototypes.seen, views[view]
        rows = flatten_cells(seen_view.features)
        labels = sure_labels(seen_view, self.spec.min_confidence).flatten()
        total, count = prototype_sum(rows, labels, means, seen, self.spec.temperature)
        number = self.student_views().index(view)
        divisor = self.divisor(views, count, lambda totals: (totals[number] * seen).sum())
        return self.spec.weight * total / divisor

    def local_counts(self, views: Views) -> Tensor:
        """Return the cells of each class in each view, (2, K)."""
        labels = [views.labels[view] for view in self.student_views()]
        sure = [sure_labels(each, self.spec.min_confidence) for each in labels]
        return torch.stack([count_classes(each, len(self.prototypes.means)) for each in sure])
