"""Exchange by FlashInfer's MoeAlltoAll: kernels that write into the other GPUs' memory over NVLink."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.moe_comm.exchange import Arrived
from flashinfer_perf.routines.moe_comm.routing import Experts
from flashinfer_perf.run.failure import first_line
from flashinfer_perf.run.process_group import join_process_group
from flashinfer_perf.run.ranks import Ranks, place_on_host

TOP_KS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 22)
"""For which the library has a kernel that combines."""
ROW_COLUMNS = 64
"""What columns must be divisible by, so that scales, ids and weights start at whole words in the workspace."""


class OneSidedExchange:
    """Memory handles are exchanged through torch.distributed, so that no MPI is needed here.

    Args:
        capacity: tokens of a rank that the workspace is sized for; tokens: that there are.
        row_bytes: of all that travels with a token; columns: of hidden states; dtype: of what is sent back.
    """

    host_sync = False
    wire_rows = -1
    name = "moe_a2a"
    marked = False

    def __init__(
        self,
        experts: Experts,
        ranks: Ranks,
        top_k: int,
        *,
        capacity: int,
        tokens: int,
        row_bytes: int,
        columns: int,
        dtype: torch.dtype,
    ) -> None:
        from flashinfer.comm import Mapping, MoeAlltoAll, moe_a2a_get_workspace_size_per_rank
        from flashinfer.comm.comm_backend import TorchDistBackend
        from flashinfer.comm.mnnvl import MnnvlConfig

        join_process_group(ranks)
        self._experts = experts
        self._shape = (tokens, columns, dtype)
        mapping = Mapping(
            world_size=ranks.size,
            rank=ranks.rank,
            gpus_per_node=place_on_host(ranks)[1],
            tp_size=ranks.size,
            moe_ep_size=ranks.size,
        )
        size = moe_a2a_get_workspace_size_per_rank(ranks.size, capacity, row_bytes, columns * dtype.itemsize)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its successor wraps this very class
            self._library = MoeAlltoAll(
                mapping,
                max_num_tokens=capacity,
                top_k=top_k,
                num_experts=experts.number,
                workspace_size_per_rank=size,
                mnnvl_config=MnnvlConfig(comm_backend=TorchDistBackend()),
            )

    def dispatch(self, rows: tuple[torch.Tensor, ...]) -> Arrived:
        """Wide parts first: where those of other widths start, nothing wider than four bytes need be aligned."""
        place = len(rows) - 2
        mark = {"invalid_token_expert_id": self._experts.number, "expert_id_payload_index": place}
        marks = mark if self.marked else {}
        ids, weights, *wide = rows
        arrived = self._library.dispatch(ids, [*wide, ids, weights], self._shape[0], **marks)
        *wide, ids, weights = (part.flatten(0, 1) for part in arrived)
        return Arrived((ids, weights, *wide), None)

    def used(self, arrived: Arrived) -> torch.Tensor:
        if not self.marked:  # whatever is in the others is never read
            return torch.ones(len(arrived.rows[0]), dtype=torch.bool, device=arrived.rows[0].device)
        return arrived.rows[0][:, 0] != self._experts.number

    def answers(self, arrived: Arrived) -> torch.Tensor:
        tokens, columns, dtype = self._shape
        return self._library.get_combine_payload_tensor_in_workspace(tokens, columns, dtype).flatten(0, 1)

    def combine(self, arrived: Arrived, out: torch.Tensor) -> None:
        tokens, columns, _ = self._shape
        payload = self.answers(arrived).view(self._experts.ranks, tokens, columns)
        self._library.combine(payload, tokens, payload_in_workspace=True, output=out)


def demand_nvlink(comm: Any) -> None:
    """Raises Unsupported where GPUs cannot write into each other's memory, or the kernels cannot be built.

    Args:
        comm: the module flashinfer.comm.
    """
    memory = comm.mnnvl.MnnvlMemory
    memory.initialize()
    if not memory.supports_mnnvl():
        raise Unsupported("it needs GPUs whose NVLinks are all up, with peer access between them; use --backends nccl")
    try:
        comm.trtllm_moe_alltoall.get_moe_alltoall_module("trtllm")
    except Exception as error:  # whatever a compiler that is missing or too old may lead to
        raise Unsupported(f"its kernels cannot be built here: {first_line(error)}; use --backends nccl") from error


@contextlib.contextmanager
def workspace_released() -> Iterator[None]:
    """The library keeps every workspace for as long as the process lives; a testlist would fill the GPU with them."""
    try:
        yield
    finally:
        flashinfer.comm.MoeAlltoAll._WORKSPACE_CACHE.clear()
