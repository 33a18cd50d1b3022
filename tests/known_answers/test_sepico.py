"""SePiCo's release (BIT-DA/SePiCo), against what `sepico_release` sets."""

import pytest
import torch
import torch.nn.functional as F

from tests.known_answers.reader import answer
from udaseg.methods.contrast.class_losses import bank_loss, distribution_loss, prototype_loss
from udaseg.methods.contrast.class_statistics import ClassStatistics
from udaseg.methods.contrast.mean_embedding import mean_embedding, mean_embedding_loss
from udaseg.methods.views import labels_on_cells
from udaseg.models.segmenter import SegmenterOutput

CLASSES, CHANNELS, ROWS = 6, 12, 4
LOSSES = ["sepico/losses_tau_100", "sepico/losses_tau_1", "sepico/losses_tau_0.1"]


def _statistics(case, updates, *, zero_row=True):
    held = ClassStatistics(CLASSES, CHANNELS, momentum=1.0, bank_rows=ROWS, zero_row=zero_row)
    for number in range(updates):
        held.update(case.tensor(f"features_{number}"), case.tensor(f"labels_{number}").long())
    return held


def _oldest_first(held):
    """Return the rows in use of all classes, those of a class from the oldest to the newest."""
    rows = []
    for of_class, cursor, filled in zip(held.rows, held.cursor, held.filled, strict=True):
        first = int(cursor) if int(filled) == ROWS else 0
        rows += [of_class[(first + place) % ROWS] for place in range(int(filled))]
    return torch.stack(rows)


@pytest.mark.parametrize("number", [0, 2, 5])
def test_mean_variance_count_and_bank_after_updates(number):
    case = answer("sepico/estimator")
    held = _statistics(case, number + 1)
    case.expect(f"mean_{number}", held.means)
    case.expect(f"variance_{number}", held.variances)
    case.expect(f"amount_{number}", held.counts)
    case.expect(f"bank_rows_{number}", held.filled)
    case.expect(f"bank_{number}", _oldest_first(held))
    if number == 0:
        ours = _statistics(case, 1, zero_row=False)
        assert case.differs("bank_rows_0", ours.filled)
        assert case.differs("bank_0", _oldest_first(ours))


def _losses(held, temperature, *, more=0):
    """Return the three losses by their names, with `more` channels that are 0 in all classes."""
    means, variances, rows = (F.pad(x, (0, more)) for x in (held.means, held.variances, held.rows))
    return {
        "proto": lambda *cells: prototype_loss(*cells, means, held.seen, temperature=temperature),
        "dist": lambda *cells: distribution_loss(
            *cells, means, variances, held.seen, temperature=temperature
        ),
        "bank": lambda *cells: bank_loss(*cells, rows, held.filled, temperature=temperature),
    }


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_of_the_three_losses(name):
    case = answer(name)
    losses = _losses(_statistics(case, 6), case.constants["temperature"])
    for kind, loss in losses.items():
        maps = case.tensor("embedding").requires_grad_()
        value = loss(maps.permute(0, 2, 3, 1).flatten(0, 2), case.tensor("label").long().flatten())
        value.backward()
        case.expect(kind, value)
        case.expect(f"{kind}_gradient_on_sphere", maps.grad)
        assert case.differs(f"{kind}_gradient", maps.grad, bound=0.01)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_the_three_losses_where_the_length_is_free(name):
    """The release scales in its head, so its loss has a gradient along the vector too.

    Ours scales in the loss. A channel that is 0 in all classes takes up the length: of (e, 1), the
    loss scales e by 1 / sqrt(2), and so does a temperature of t / sqrt(2) with each score. With g
    the release's gradient, ours is g - e (e . g) / 2, and -(e . g) / 2 for the added channel.
    """
    case = answer(name)
    losses = _losses(_statistics(case, 6), case.constants["temperature"] / 2**0.5, more=1)
    embedding, labels = case.tensor("embedding"), case.tensor("label").long().flatten()
    for kind, loss in losses.items():
        maps = torch.cat([embedding, torch.ones_like(embedding[:, :1])], 1).requires_grad_()
        value = loss(maps.permute(0, 2, 3, 1).flatten(0, 2), labels)
        value.backward()
        case.expect(kind, value)
        case.expect(f"{kind}_gradient", maps.grad[:, :-1] - embedding * maps.grad[:, -1:])


@pytest.mark.parametrize("name", LOSSES)
def test_the_row_of_zeros_counts_until_a_class_has_filled_its_rows(name):
    case, temperature = answer(name), answer(name).constants["temperature"]
    maps, labels = case.tensor("embedding"), case.tensor("label").long()
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
    found = []
    for zero_row in (True, False):
        held = _statistics(case, 3, zero_row=zero_row)
        loss = bank_loss(rows, labels.flatten(), held.rows, held.filled, temperature=temperature)
        found.append(loss)
    case.expect("bank_with_zero_rows", found[0])
    # at temperature 100 no row has any weight
    assert case.differs("bank_with_zero_rows", found[1]) is (temperature <= 1)


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_of_the_term_on_the_mean_embedding(name):
    case, temperature = answer(name), answer(name).constants["temperature"]
    held, maps = _statistics(case, 6), case.tensor("embedding").requires_grad_()
    counted = case.tensor("label").flatten() != 255
    cells = maps.permute(0, 2, 3, 1).flatten(0, 2)
    mean = mean_embedding(cells, counted, counted.sum())
    value = mean_embedding_loss(mean, held.means, held.seen, temperature)
    value.backward()
    case.expect("regulariser", value)
    case.expect("regulariser_gradient", maps.grad)


def test_the_label_of_a_cell_is_that_of_most_of_its_pixels():
    case = answer("sepico/labels_on_cells")
    labels = case.tensor("label")
    grid = SegmenterOutput(
        torch.zeros(2, case.constants["classes"], 4, 6), torch.zeros(2, 1, 4, 6), None
    )
    case.expect("cells_0.75", labels_on_cells(labels, grid, 0.75))
    case.expect("cells_0.5", labels_on_cells(labels, grid, 0.5))
    case.expect("nearest", labels_on_cells(labels, grid))
    assert case.differs("cells_0.75", labels_on_cells(labels, grid))
