"""What every regularizer must do. To test one of your own, subclass it and fill in `make`."""

import copy

import pytest
import torch

from udaseg.methods.contrast.regularizer import Regularizer
from udaseg.methods.views import (
    CUTMIX,
    MIXED,
    PSEUDO_LABELLED,
    SELF_TRAINING_VIEWS,
    TARGET,
    TARGET_BY_STUDENT_HEAD,
    TEACHER_SOURCE,
    CellView,
    Need,
    Views,
)
from udaseg.models.projector import to_unit_length

CLASSES, CHANNELS, EMBEDDING = 5, 8, 4
TEACHER_VIEWS = {TARGET, TARGET_BY_STUDENT_HEAD, TEACHER_SOURCE}


def make_views(regularizer, *, step=0, ignored=False, progress=0.5):
    """Return the views that the regularizer needs, and no others."""
    by_name = {}
    for need in regularizer.needs:
        # each view has its own numbers, whatever the order of the needs
        generator = torch.Generator().manual_seed(1000 * step + sum(map(ord, need.view)))
        by_name[need.view] = _view(need, generator, ignored=ignored)
    shown = [need.view for need in regularizer.needs if need.options.get("images")]
    images = {
        view: torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(step))
        for view in shown
    }
    return Views(step, progress, 7 + step, by_name, images=images)


def _view(need, generator, *, ignored):
    from_student = need.view not in TEACHER_VIEWS
    features = torch.randn(2, CHANNELS, 4, 6, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 4, 6), generator=generator)
    labels[0, 0] = 255
    predictions = torch.where(labels == 255, 0, labels)
    embeddings = None
    if need.embed or need.view == TARGET_BY_STUDENT_HEAD:
        embeddings = to_unit_length(torch.randn(2, EMBEDDING, 4, 6, generator=generator))
        embeddings.requires_grad_(from_student)
    square = torch.zeros(2, 4, 6, dtype=torch.bool)
    square[:, 1:3, 1:5] = True
    confidence = torch.rand(2, 4, 6, generator=generator)
    return CellView(
        features.requires_grad_(from_student),
        embeddings,
        torch.full_like(labels, 255) if ignored else labels,
        predictions,
        confidence,
        label_confidence=confidence if need.view == MIXED else None,
        square=square if need.view == CUTMIX else None,
        from_target=square if need.options.get("from_target") else None,
    )


def _memory(regularizer):
    return {name: value.clone() for name, value in regularizer.state_dict().items()}


class RegularizerContract:
    """Every member passes these tests."""

    def make(self) -> Regularizer:
        """Return a new regularizer for 5 classes, 8 channels, and embeddings of 4 channels."""
        raise NotImplementedError

    @pytest.fixture
    def regularizer(self):
        return self.make()

    def test_it_names_the_views_that_it_needs(self, regularizer):
        assert regularizer.needs
        for need in regularizer.needs:
            assert isinstance(need, Need)
            assert need.view in {*SELF_TRAINING_VIEWS, PSEUDO_LABELLED}

    def test_its_loss_is_a_finite_scalar_with_a_gradient_for_the_student_only(self, regularizer):
        for step in range(2):
            regularizer.update(make_views(regularizer, step=step))
        views = make_views(regularizer, step=2)
        loss = regularizer(views)
        assert loss.shape == ()
        assert torch.isfinite(loss)
        loss.backward()
        gradients = [
            tensor.grad
            for view in views.by_name.values()
            for tensor in (view.features, view.embeddings)
            if tensor is not None and tensor.grad is not None
        ]
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert not any(buffer.requires_grad for buffer in regularizer.buffers())

    def test_forward_changes_no_state_and_gives_the_same_twice(self, regularizer):
        regularizer.update(make_views(regularizer))
        before = _memory(regularizer)
        views = make_views(regularizer, step=1)
        first, second = regularizer(views), regularizer(views)
        assert torch.equal(first, second)
        after = regularizer.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())

    def test_update_depends_on_the_views_alone(self, regularizer):
        twin = copy.deepcopy(regularizer)
        torch.manual_seed(1)
        regularizer.update(make_views(regularizer))
        torch.manual_seed(2)
        twin.update(make_views(twin))
        memory = twin.state_dict()
        assert all(torch.equal(v, memory[n]) for n, v in regularizer.state_dict().items())

    def test_its_state_dict_is_its_whole_memory(self, regularizer):
        for step in range(3):
            regularizer.update(make_views(regularizer, step=step))
        other = self.make()
        other.load_state_dict(copy.deepcopy(regularizer.state_dict()))
        for step in range(3, 5):
            views = make_views(regularizer, step=step)
            assert torch.equal(regularizer(views), other(views))
            regularizer.update(views)
            other.update(views)

    def test_a_batch_without_any_label_is_harmless(self, regularizer):
        views = make_views(regularizer, ignored=True)
        loss = regularizer(views)
        assert torch.isfinite(loss)
        loss.backward()
        regularizer.update(views)
        assert all(torch.isfinite(value).all() for value in regularizer.state_dict().values())

    def test_every_step_trains_the_same_tensors(self, regularizer):
        """The first step, before any memory, has a graph too: ranks wait for all gradients."""
        views = make_views(regularizer, progress=0.0)
        assert regularizer(views).requires_grad
