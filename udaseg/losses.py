"""The losses as pure functions, for people who train in their own loop.

    from udaseg.losses import regional_loss

Each returns a scalar mean over the vectors or pixels that count. All contrastive losses follow one
convention: the vectors that get a gradient are normalised to unit length inside, so their length
changes nothing, and so are the keys and the bank of `regional_loss`. What stands for a whole class
(prototypes, means, rows) is used as it is, because its length may carry meaning. The gradient is
computed in the forward pass, and nothing of size vectors x negatives is stored.
"""

from udaseg.methods.contrast.class_losses import bank_loss, distribution_loss, prototype_loss
from udaseg.methods.contrast.regional_loss import regional_loss
from udaseg.methods.pixel_loss import pixel_loss

__all__ = ["bank_loss", "distribution_loss", "pixel_loss", "prototype_loss", "regional_loss"]
