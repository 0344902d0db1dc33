"""torch.distributed over the ranks of a run, for backends that communicate through it."""

from __future__ import annotations

import atexit
import functools
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NCCL_CHANNELS = "32"
"""For collectives as many as NCCL has for sends and receives. Between two H200s it takes 24 by itself, with which
exchanges of 59 MB each way took 7 % longer.
"""
TIMEOUT = timedelta(seconds=60)
"""How long a rank waits for the others before it gives up; the default of half an hour would cost a night."""


def join_process_group(ranks: Ranks) -> None:
    """Makes the default process group (gloo) of these ranks, once; its port is chosen by the first rank."""
    from torch import distributed

    if distributed.is_initialized():
        return
    host = socket.gethostname() if ranks.size > 1 and _hosts_differ(ranks) else "127.0.0.1"
    store = (
        distributed.TCPStore(host, 0, ranks.size, is_master=True, wait_for_workers=False) if ranks.rank == 0 else None
    )
    host, port = ranks.all_gather((host, store.port if store else 0))[0]
    if store is None:
        store = distributed.TCPStore(host, port, ranks.size, is_master=False, timeout=TIMEOUT)
    distributed.init_process_group("gloo", store=store, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT)
    atexit.register(leave_process_group)


def nccl_group(ranks: Ranks) -> ProcessGroup:
    """An NCCL group of all ranks, on each one's current CUDA device. Made once, by all ranks together.

    NVLink multicast is off in it, whatever the environment says; what that says of channels is kept.
    """
    join_process_group(ranks)
    return _nccl_group()


@functools.cache
def _nccl_group() -> ProcessGroup:
    from torch import distributed

    os.environ["NCCL_NVLS_ENABLE"] = "0"  # read when the first communicator is made, as are the others
    if not {"NCCL_MIN_CTAS", "NCCL_MAX_CTAS"} & set(os.environ):
        os.environ |= {"NCCL_MIN_CTAS": NCCL_CHANNELS, "NCCL_MAX_CTAS": NCCL_CHANNELS}
    group = distributed.new_group(backend="nccl", timeout=TIMEOUT)
    assert group is not None
    return group  # type: ignore[no-any-return]


def start_line(ranks: Ranks, machine: Machine) -> Callable[[], Any] | None:
    """What brings all ranks' devices to one point of time: a reduction of one element, on the current stream.

    None for a single rank, and on CPUs, where a barrier does it.
    """
    if ranks.size == 1 or not machine.is_cuda:
        return None
    group = nccl_group(ranks)
    element = torch.zeros(1, device=machine.device)
    return functools.partial(torch.distributed.all_reduce, element, group=group)


def leave_process_group() -> None:
    """At exit; somebody else may have been quicker."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _hosts_differ(ranks: Ranks) -> bool:
    return len(set(ranks.all_gather(socket.gethostname()))) > 1
