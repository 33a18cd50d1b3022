"""Run several processes in one gloo group and collect their results."""

import contextlib
import os

import torch
import torch.distributed as dist


@contextlib.contextmanager
def joined(number, folder, ranks):
    """Join a group as process `number`; the group rendezvous is in `folder`."""
    torch.set_num_threads(1)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=number, world_size=ranks)
    yield
    dist.destroy_process_group()


def found_by_each(work, folder, ranks):
    """Run `work(number, folder)` in `ranks` processes; load and return each NUMBER.pt."""
    torch.multiprocessing.spawn(work, (folder,), nprocs=ranks)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(ranks)]
