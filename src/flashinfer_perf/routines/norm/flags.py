"""Flags of the norm family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import backends_flag, flag


@dataclass(frozen=True)
class NormFlags:
    """In the order of upstream's Namespace line."""

    family: ClassVar[str] = "norm"

    batch_size: int = flag(minimum=1, help="Batch size (number of sequences).")
    hidden_size: int = flag(minimum=1, help="Hidden dimension size.")
    num_heads: int | None = flag(None, minimum=1, help="Number of heads, for inputs (batch, num_heads, hidden_size).")
    input_dtype: DType = flag(
        DType.BFLOAT16, choices=(DType.BFLOAT16, DType.FLOAT16), help="Format of input, weight and residual."
    )
    eps: float = flag(1e-6, minimum=0, help="Added to the mean square.")
    enable_pdl: bool = flag(False, help="Use programmatic dependent launch.")
    scale: float = flag(1.0, above=0, help="Scale of the FP8 output, which is divided by it.")
    out_dtype: DType = flag(
        DType.FP8_E4M3,
        choices=(DType.FP8_E4M3, DType.FP8_E5M2, DType.NVFP4, DType.MXFP4),
        help="Format of a quantised output.",
    )
    use_global_scale: bool = flag(False, help="Give NVFP4 a global scale of 2688 / largest value; else it is 1.")
    is_sf_swizzled_layout: bool = flag(False, help="Write block scales in the layout that tensor cores read.")
    output_both_sf_layouts: bool = flag(False, help="Write block scales in both layouts.")
    backends: tuple[str, ...] = backends_flag()
