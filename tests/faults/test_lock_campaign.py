"""Six processes take over one stale lock of a run folder at once, many times."""

import pytest

from tests.support.campaign import tell
from tests.support.locks import holders

pytestmark = pytest.mark.faults


def test_10000_stale_locks_have_one_holder_each(tmp_path):
    counts = holders(tmp_path, 10_000)
    tell(f"stale locks taken over by six processes at once: 10,000 rounds, {dict(counts)}")
    assert counts["two holders"] == 0
    assert counts["held"] >= 10_000
