"""Files read ahead in threads, batches of one size, and calls in the background, in order."""

import threading
from functools import partial

import pytest

from udaseg.data.loading.threads import Limit, OrderedWork, batches_of_one_size, read_ahead
from udaseg.errors import DataError


def test_reading_ahead_keeps_the_order_and_reads_little_ahead():
    begun, lock = [], threading.Lock()

    def read(job):
        with lock:
            begun.append(job)
        return -job

    for taken, ready in enumerate(read_ahead(read, range(200), Limit(12))):
        assert ready == -taken
        assert len(begun) <= taken + 1 + 12
    assert sorted(begun) == list(range(200))


def test_a_reader_that_fails_is_heard_at_its_turn_and_the_rest_is_not_begun():
    begun = []

    def read(job):
        begun.append(job)
        if job == 3:
            raise DataError("damaged")
        return job

    seen = []
    with pytest.raises(DataError, match="damaged"):
        seen.extend(read_ahead(read, range(1000)))
    assert len(begun) < 30


def test_reading_ahead_begins_no_job_whose_pixels_exceed_the_limit():
    begun = []

    def read(job):
        begun.append(job)
        return job

    jobs = [3, 4, 50, 4, 3, 90, 90]
    ready = read_ahead(read, jobs, Limit(4, pixels=50), pixels_of=lambda job: job, workers=1)
    for taken, job in enumerate(ready):
        assert job == jobs[taken]
        waiting = begun[taken + 1 :]
        assert sum(waiting) <= 50 or len(waiting) == 1
    assert begun == jobs


def test_batches_hold_consecutive_items_of_one_size_up_to_the_limit():
    items = [*"aaabbacccc"]
    batches = list(batches_of_one_size(items, tuple, Limit(2)))
    assert batches == [["a", "a"], ["a"], ["b", "b"], ["a"], ["c", "c"], ["c", "c"]]
    few_pixels = Limit(9, pixels=4)
    batches = batches_of_one_size(items, tuple, few_pixels, pixels_of=lambda _: 2)
    assert list(map(len, batches)) == [3, 2, 1, 3, 1]


def test_a_full_batch_is_yielded_before_the_next_item_is_taken():
    items = iter(range(5))
    assert next(batches_of_one_size(items, lambda _: (), Limit(3))) == [0, 1, 2]
    assert next(items) == 3


def test_work_in_the_background_keeps_its_order_and_few_calls_wait():
    finished, submitted = [], 0
    with OrderedWork(Limit(3, pixels=20)) as work:
        for number in range(100):
            work.submit(partial(finished.append, number), pixels=5)
            submitted += 1
            assert submitted - len(finished) <= 3
        work.submit(partial(finished.append, "large"), pixels=21)
        assert finished[-1] == "large"
    assert finished == [*range(100), "large"]


def test_a_failure_in_the_background_is_raised_and_the_calls_after_it_are_run():
    finished = []

    def fail():
        raise DataError("full")

    with pytest.raises(DataError, match="full"), OrderedWork(Limit(9)) as work:
        work.submit(fail)
        work.submit(partial(finished.append, 1))
    assert finished == [1]
    with pytest.raises(KeyError), OrderedWork(Limit(9)) as work:
        work.submit(fail)
        work.submit(partial(finished.append, 2))
        raise KeyError
    assert finished == [1, 2]
