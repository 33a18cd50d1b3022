"""After a signal at an awkward moment a run is saved or aborted, and resumes to the same result."""

import signal

import pytest

from tests.support.stops import Stop, golden, problem


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    return golden(root, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop",
    [
        Stop("save", group=True, number=signal.SIGTERM, workers=1),
        Stop("eval", group=False, number=signal.SIGINT),
    ],
    ids=lambda stop: stop.phase,
)
def test_a_signal_ends_the_run_and_resuming_ends_it_as_undisturbed(root, whole, tmp_path, stop):
    assert problem(stop, root, tmp_path / "run", whole) is None
