"""The memory bank, compared with a Python list of pushes."""

import random

import pytest
import torch

from udaseg.methods.contrast.memory_bank import EMPTY, MemoryBank


def _held(bank):
    rows, labels = bank.rows()
    return sorted(
        (int(label), *row.tolist())
        for row, label in zip(rows, labels, strict=True)
        if label != EMPTY
    )


@pytest.mark.parametrize("seed", range(20))
def test_bank_is_a_list_of_the_newest_pushes(seed):
    rng = random.Random(seed)
    steps, rows = rng.randint(1, 4), rng.randint(1, 6)
    bank, model, number = MemoryBank(steps, rows, 2), [], 0
    for _ in range(12):
        count = rng.randint(0, 9)
        embeddings = torch.arange(number, number + 2 * count).view(count, 2).float()
        number += 2 * count
        labels = torch.tensor([rng.randint(0, 3) for _ in range(count)], dtype=torch.int64)
        foretold = bank.rows_after_push(embeddings, labels)
        bank.push(embeddings, labels)
        kept = [
            (int(label), *row.tolist())
            for row, label in zip(embeddings[-rows:], labels[-rows:], strict=True)
        ]
        model = [*model, kept][-steps:]
        assert _held(bank) == sorted(row for push in model for row in push)
        assert sorted(
            (int(label), *row.tolist())
            for row, label in zip(*foretold, strict=True)
            if label != EMPTY
        ) == _held(bank)
        assert len(bank) == sum(map(len, model))
        if rng.random() < 0.3:
            restored = MemoryBank(steps, rows, 2)
            restored.load_state_dict(bank.state_dict())
            bank = restored


def test_bank_starts_empty_and_its_state_dict_is_its_whole_memory():
    bank = MemoryBank(2, 3, 4)
    assert len(bank) == 0
    assert set(bank.state_dict()) == {"embeddings", "labels", "cursor"}
    plain = {name for name, value in vars(bank).items() if torch.is_tensor(value)}
    assert not plain


def test_stored_rows_have_no_graph():
    bank = MemoryBank(1, 2, 2)
    bank.push(torch.ones(2, 2, requires_grad=True) * 2, torch.zeros(2, dtype=torch.int64))
    assert not bank.embeddings.requires_grad


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match=">= 1"):
        MemoryBank(0, 1, 1)
