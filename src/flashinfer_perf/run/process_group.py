"""torch.distributed over the ranks of a run, for backends that communicate through it."""

from __future__ import annotations

import atexit
import socket
from datetime import timedelta

from flashinfer_perf.run.ranks import Ranks

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
    atexit.register(_leave)


def _leave() -> None:
    """At exit; somebody else may have been quicker."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _hosts_differ(ranks: Ranks) -> bool:
    return len(set(ranks.all_gather(socket.gethostname()))) > 1
