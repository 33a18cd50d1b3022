"""The losses as pure functions, for people who train in their own loop.

    from udaseg.losses import regional_loss

Each returns a scalar mean over the vectors or pixels that count. The contrastive losses compute
their gradient in the forward pass: memory does not grow with the number of negatives.
"""

from udaseg.methods.contrast.class_losses import bank_loss, distribution_loss, prototype_loss
from udaseg.methods.contrast.regional_loss import regional_loss
from udaseg.methods.pixel_loss import pixel_loss

__all__ = ["bank_loss", "distribution_loss", "pixel_loss", "prototype_loss", "regional_loss"]
