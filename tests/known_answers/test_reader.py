import ast
from pathlib import Path

import numpy as np
import pytest

from tests.known_answers.reader import answer, differences, input_sums, names, probe


def test_all_cases_are_there() -> None:
    assert len(names()) == 52
    assert sum(len(answer(name).outputs) for name in names()) == 279


def test_each_case_is_named_by_a_test() -> None:
    named = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        if file.name != Path(__file__).name:
            nodes = ast.walk(ast.parse(file.read_text()))
            named |= {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert not set(names()) - named


@pytest.mark.parametrize("name", names())
def test_inputs_are_those_of_the_release(name: str) -> None:
    for key, (total, at_probe) in input_sums(name).items():
        made = answer(name).inputs[key].astype(np.float64)
        near = 1e-9 * (1 + np.abs(made).sum())
        assert abs(made.sum() - total) < near
        assert abs(probe(made) - at_probe) < near


def test_a_wrong_value_is_told() -> None:
    case = answer("rccr/contrast_loss")
    right = case.outputs["loss"]["value"]
    assert not case.differs("loss", np.array(right))
    assert case.differs("loss", np.array(right * 1.0001))
    assert case.differs("loss", np.array(np.nan))
    gradient = case.outputs["gradient"]
    assert differences(gradient, np.zeros(gradient["shape"]), 1e-5)
    assert differences(gradient, np.zeros(3), 1e-5)
    cells = answer("sepico/labels_on_cells").outputs["cells_0.75"]
    assert not differences(cells, np.full(cells["shape"], 255), 1e-5)
    assert differences(cells, np.zeros(cells["shape"]), 1e-5)
