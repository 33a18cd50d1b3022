"""Only one of several processes reports why a run failed; the others stay silent."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.support.ranks import found_by_each
from udaseg import failures
from udaseg.distributed import barrier, select_device
from udaseg.errors import DataError, EnvironmentFault, RankFailed, UdasegError
from udaseg.failures import process_group, report_once

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"
ADVICE = "out of memory on cuda:0; take a smaller batch"


def _put_better(act):
    """Report a failure, then replace it by an error with advice, as a run does."""
    try:
        with report_once():
            act()
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(ADVICE) from error


def _full():
    raise torch.OutOfMemoryError(FULL)


@pytest.fixture(params=[0, 1])
def number(request, monkeypatch):
    """Act as the first or the second of two processes."""
    monkeypatch.setattr(failures, "_reporter", failures.FailureReporter(dist.HashStore()))
    monkeypatch.setattr(failures, "rank", lambda: request.param)
    return request.param


def _ending(act):
    with pytest.raises(UdasegError) as caught, report_once():
        act()
    return caught.value


def test_a_fault_in_other_words_is_still_this_processs_to_tell(number):
    error = _ending(lambda: _put_better(_full))
    if number == 0:
        assert (type(error), str(error)) == (EnvironmentFault, ADVICE)
    else:
        assert not error.reported_elsewhere
        assert FULL in str(error)
    assert error.exit_code == 5


def test_what_fails_while_a_fault_is_dealt_with_is_told_too(number):
    def act():
        try:
            with report_once():
                raise DataError("a.png: damaged")
        except UdasegError:
            raise EnvironmentFault("the disk is full")  # noqa: B904 (an unrelated second error)

    error = _ending(act)
    assert "the disk is full" in str(error)
    assert type(error) is EnvironmentFault if number == 0 else not error.reported_elsewhere


def test_another_fault_is_not_told_when_one_was(number):
    failures._reporter._store.add("failed", 1)
    error = _ending(lambda: _put_better(_full))
    assert isinstance(error, RankFailed)
    assert error.reported_elsewhere


@pytest.fixture
def two_gpus(monkeypatch):
    """Act as the second process on a host with two GPUs; return what is called, in order."""
    called = []
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: called.append(device))
    store = dist.HashStore()
    monkeypatch.setattr(failures, "rendezvous", lambda *_, **__: iter([(store, 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: called.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: called.append("end"))
    monkeypatch.setattr(failures, "barrier", lambda: called.append("barrier"))
    monkeypatch.setattr(failures, "_reporter", None)
    return called


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_process_selects_its_gpu_before_it_joins(two_gpus, device):
    with process_group(device):
        assert two_gpus == [1, "cpu:gloo,cuda:nccl"]
    assert two_gpus[2:] == ["barrier", "end"]


def test_a_process_that_trains_on_a_cpu_selects_no_gpu(two_gpus):
    with process_group("cpu"):
        assert two_gpus == ["gloo"]


def test_more_processes_than_gpus_are_refused(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    told = "started 3 processes on .* has 2 GPUs"
    with pytest.raises(EnvironmentFault, match=told), process_group("auto"):
        pass
    assert two_gpus == [1, "cpu:gloo,cuda:nccl"]


def test_the_gpu_that_a_single_process_names_is_its_current_one(two_gpus):
    assert select_device("cuda:1") == torch.device("cuda:1")
    assert two_gpus == [torch.device("cuda:1")]
    with pytest.raises(EnvironmentFault, match="cuda:2 is not available"):
        select_device("cuda:2")
    select_device("cpu")
    assert len(two_gpus) == 1


def _rank(number, folder):
    os.environ |= {
        "RANK": str(number),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": (folder / "port").read_text(),
    }
    try:
        with process_group("cpu"):
            _put_better(_full if number == 0 else barrier)
    except UdasegError as error:
        message = None if getattr(error, "reported_elsewhere", False) else str(error)
        torch.save((message, error.exit_code), folder / f"{number}.pt")


@pytest.mark.slow
def test_of_two_processes_the_one_that_is_full_tells_it(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    assert found_by_each(_rank, tmp_path, 2) == [(ADVICE, 5), (None, 5)]
