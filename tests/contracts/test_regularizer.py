from dataclasses import replace

import pytest
import torch

from tests.contracts.regularizer import CHANNELS, CLASSES, EMBEDDING, RegularizerContract
from tests.support.small import PROTOTYPES, REGIONAL, SEMANTIC
from udaseg.methods.contrast.anchors import AnchorContrast
from udaseg.methods.contrast.feature_distance import FrozenDistance
from udaseg.methods.contrast.prototypes import PrototypeContrast
from udaseg.methods.contrast.regional import RegionalContrast
from udaseg.methods.contrast.semantic import SemanticContrast
from udaseg.methods.views import PSEUDO_LABELLED
from udaseg.recipe.contrast import FeatureDistance


class TestRegional(RegularizerContract):
    def make(self):
        return RegionalContrast(replace(REGIONAL, min_confidence=0.2), channels=EMBEDDING)


class TestRegionalWithoutMomentumHead(RegularizerContract):
    def make(self):
        spec = replace(REGIONAL, min_confidence=0.2, momentum_head=False)
        return RegionalContrast(spec, channels=EMBEDDING)


class TestRegionalOnMixedImages(RegularizerContract):
    def make(self):
        spec = replace(REGIONAL, min_confidence=0.2, image="classmix")
        return RegionalContrast(spec, channels=EMBEDDING)


class TestRegionalOnTargetImages(RegularizerContract):
    def make(self):
        spec = replace(REGIONAL, min_confidence=0.2, image="target", region_size=2)
        return RegionalContrast(spec, channels=EMBEDDING)


class TestPrototypes(RegularizerContract):
    def make(self):
        return PrototypeContrast(PROTOTYPES, num_classes=CLASSES, channels=CHANNELS)


class TestPrototypesOfAlignment(RegularizerContract):
    def make(self):
        spec = replace(PROTOTYPES, absent="fade", normalise=False)
        return PrototypeContrast(
            spec, num_classes=CLASSES, channels=CHANNELS, second_view=PSEUDO_LABELLED
        )


class TestAnchors(RegularizerContract):
    def make(self):
        term = AnchorContrast(PROTOTYPES, num_classes=CLASSES, channels=CHANNELS)
        means = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(3))
        term.prototypes.initialise(means, torch.ones(CLASSES, dtype=torch.bool))
        return term


class TestCosineDistance(RegularizerContract):
    spec = FeatureDistance("cosine", weight=0.1)

    def make(self):
        torch.manual_seed(3)
        frozen = torch.nn.Conv2d(3, CHANNELS, 2, stride=2).requires_grad_(False)
        return FrozenDistance(self.spec, frozen, channels=CHANNELS, things=(1, 3))


class TestDistanceOfThings(TestCosineDistance):
    spec = FeatureDistance("thing_class", weight=0.005)


class _Semantic(RegularizerContract):
    variant: str

    def make(self):
        spec = replace(SEMANTIC, variant=self.variant, channels=EMBEDDING)
        return SemanticContrast(spec, num_classes=CLASSES)


class TestSemanticPrototype(_Semantic):
    variant = "prototype"


class TestSemanticBank(_Semantic):
    variant = "bank"


class TestSemanticDistribution(_Semantic):
    variant = "distribution"


def test_every_built_in_regularizer_is_a_member_here():
    members = {
        type(cls().make())
        for cls in RegularizerContract.__subclasses__()
        if "make" in vars(cls) and cls is not _Semantic
    } | {SemanticContrast}
    from udaseg.methods.contrast.regularizer import PerViewRegularizer, Regularizer

    built_in = {
        cls
        for cls in (*Regularizer.__subclasses__(), *PerViewRegularizer.__subclasses__())
        if cls.__module__.startswith("udaseg.")
    }
    assert built_in - {PerViewRegularizer} == members


@pytest.mark.parametrize("option", ["image", "batch"])
def test_the_options_of_a_need_reach_its_view(option):
    regularizer = RegionalContrast(replace(REGIONAL, square_per=option), channels=EMBEDDING)
    assert regularizer.needs[0].options == {
        "square_per": option,
        "square_corner": "all",
        "square_share": (0.0, 1.0),
    }
