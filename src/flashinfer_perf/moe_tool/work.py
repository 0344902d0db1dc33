"""How much a contestant has to do."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.work import Work
from flashinfer_perf.moe_tool.flags import MoeFlags

BYTES_OF_WEIGHT = {DType.FP8_E4M3: 1.0, DType.NVFP4: 0.5 + 1 / 16}
"""Per element, block scales included."""


def mixture(case: MoeFlags, active: int) -> Work:
    """The documented formulas of the MoE routines: 6 * m * top_k * k * n FLOPs; weights of the experts that have tokens
    read once, input and output in fp16 once.
    """
    selections = case.num_tokens * case.top_k
    weights = active * 3 * case.hidden_size * case.intermediate_size * BYTES_OF_WEIGHT[case.weight_dtype]
    return Work(
        flops=6.0 * selections * case.hidden_size * case.intermediate_size,
        bytes=weights + 2 * case.num_tokens * case.hidden_size * DType.FLOAT16.bytes,
    )
