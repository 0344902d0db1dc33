"""The processes that ``torchrun`` started, or anything else that sets the same variables."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any

from flashinfer_perf.run.ranks import say_why, unless_given_up

LONGEST_STEP = timedelta(hours=1)
"""How long a rank waits for the others between two steps: one may compile kernels meanwhile."""


class TorchRanks:
    """Speaks over a gloo group of its own, so that no timeout of a backend's group is this one's."""

    def __init__(self) -> None:
        from torch import distributed

        from flashinfer_perf.run.process_group import leave_process_group

        distributed.init_process_group("gloo", timeout=LONGEST_STEP)
        atexit.register(leave_process_group)
        self._distributed = distributed
        self.rank: int = distributed.get_rank()
        self.size: int = distributed.get_world_size()

    def barrier(self) -> None:
        self.all_gather(None)
        self._distributed.barrier()  # lets go of all at once, which an exchange of values does not

    def all_gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        self._distributed.all_gather_object(values, value)
        return unless_given_up(values, self.rank)

    def abort(self, error: BaseException) -> None:
        say_why(self.rank, error)
        os._exit(1)  # torchrun ends the others; leaving in order would wait for them
