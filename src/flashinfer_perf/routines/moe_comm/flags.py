"""Flags of the moe_comm family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import Since, backends_flag, flag


@dataclass(frozen=True)
class MoeCommFlags:
    """In the order of upstream's Namespace line."""

    family: ClassVar[str] = "moe_comm"

    num_tokens: int = flag(minimum=1, help="Number of tokens per rank.")
    hidden_size: int = flag(minimum=1, help="Hidden dimension size.")
    num_experts: int = flag(minimum=1, help="Number of experts over all ranks.")
    top_k: int = flag(minimum=1, help="Number of experts that each token goes to.")
    input_dtype: DType = flag(
        DType.BFLOAT16, choices=(DType.BFLOAT16, DType.FLOAT16), help="Format of the hidden states."
    )
    quant_dtype: str | None = flag(
        None,
        choices=("fp8", "nvfp4", "fp8_block_scale"),
        help="Format that hidden states are sent in; by default their own.",
    )
    real_math: bool = flag(
        False,
        help="Run the experts between dispatch and combine; needs --intermediate_size, and --quant_dtype nvfp4 or "
        "fp8_block_scale.",
    )
    intermediate_size: int | None = flag(None, minimum=1, help="Intermediate size of the experts (with --real_math).")
    max_num_tokens: int | None = flag(
        None, minimum=1, help="Tokens per rank that workspaces are sized for. Default: --num_tokens."
    )
    validate: bool = flag(False, help="Check dispatch and combine before measuring, as --refcheck does.")
    nvtx: bool = flag(False, help="Mark the phases for Nsight Systems, and leave CUPTI to it.")
    per_phase_timing: bool = flag(False, help="Time dispatch, experts and combine one by one, too.")
    backends: tuple[str, ...] = backends_flag(since=Since.OURS)

    @property
    def capacity(self) -> int:
        """Tokens per rank that workspaces are sized for."""
        return self.max_num_tokens or self.num_tokens
