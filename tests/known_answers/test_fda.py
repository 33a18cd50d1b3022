"""FDA's release: both of its windows, and the entropy over its own maximum."""

import pytest

from tests.known_answers.reader import answer
from tests.support.small import shipped
from udaseg.methods.augmentation import fourier_style
from udaseg.methods.objectives.entropy import normalised_entropy

RELEASE = shipped("gta5_cityscapes/fda_release").method.stages[0].objective
OURS = shipped("gta5_cityscapes/fda").method
SWAPS = (
    "fda/swap_40x56_0.01",
    "fda/swap_40x56_0.05",
    "fda/swap_33x47_0.01",
    "fda/swap_33x47_0.05",
    "fda/swap_120x160_0.01",
    "fda/swap_120x160_0.05",
)


@pytest.mark.parametrize("name", SWAPS)
def test_the_swap_is_that_of_the_numpy_code_or_of_the_torch_code(name):
    case = answer(name)
    source, target = (case.tensor(key)[None] for key in ("source", "target"))
    band = case.constants["L"]
    for method, same, other in (
        (OURS, "numpy_code", "torch_code"),
        (RELEASE, "torch_code", "numpy_code"),
    ):
        (styled,) = fourier_style(source, target, band=band, window=method.window)
        case.expect(same, styled)
        assert case.differs(other, styled)


@pytest.mark.parametrize("name", ["fda/robust_entropy_2.0", "fda/robust_entropy_1.5"])
@pytest.mark.parametrize("method", [OURS, RELEASE])
def test_the_penalty_has_the_releases_maximum_or_the_logarithm_of_19(name, method):
    case = answer(name)
    logits = case.tensor("logits").requires_grad_()
    entropy = normalised_entropy(logits, method.max_entropy)
    loss = ((entropy.square() + 1e-8) ** case.constants["eta"]).mean()
    loss.backward()
    ours = method is OURS
    case.expect("loss", loss, variation=ours)
    case.expect("gradient", logits.grad, variation=ours)
    assert case.differs("loss", loss) == ours
