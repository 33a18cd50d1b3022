"""Every command on 300 mutated inputs: images, labels, YAML, recipes, runs, predictions."""

import pytest

from tests.support.campaign import tell
from tests.support.mutated_commands import COMMANDS, Place, campaign, without_exporter

# torch warns of sparse tensors in a checkpoint; a command only prints that
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SEED, MANY, FEW = 0, 300, 20
FIVE = {"grid", "features", "import", "sweep", "table"}
FAST = ("eval", "predict")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.faults
@pytest.mark.parametrize("command", COMMANDS)
def test_mutated_inputs(place, command):
    with without_exporter():
        told = campaign(place, COMMANDS[command], MANY, SEED)
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(told.codes.items()))
    tell(
        f"{command} on mutated inputs: {len(told.wrong)} of {MANY} ended wrongly (exit codes "
        f"{codes}), seed {SEED}, bound 3/{MANY} = {300 / MANY:.1f} %"
    )
    assert told.wrong == []


@pytest.mark.parametrize(
    "command",
    [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in COMMANDS],
)
def test_a_few_mutated_inputs(place, command):
    with without_exporter():
        number = 5 if command in FIVE else FEW
        assert campaign(place, COMMANDS[command], number, SEED + 1).wrong == []
