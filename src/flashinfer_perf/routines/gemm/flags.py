"""Flags of the GEMM family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import Since, backends_flag, flag

FP8 = (DType.FP8_E4M3, DType.FP8_E5M2)
SIXTEEN_BITS = (DType.BFLOAT16, DType.FLOAT16)
BF16_OPERANDS = (DType.BFLOAT16,)
TO_32_BITS = (*SIXTEEN_BITS, DType.FLOAT32)


@dataclass(frozen=True)
class GemmFlags:
    """In the order of upstream's Namespace line, then what later versions added.

    A is (m, k), B is (n, k) in memory, and the output A B^T is (m, n).
    """

    family: ClassVar[str] = "gemm"

    batch_size: int = flag(1, minimum=1, help="Number of products in a batched one.")
    m: int = flag(minimum=1, help="Rows of A and of the output; of each group in a grouped product.")
    n: int = flag(minimum=1, help="Columns of the output.")
    k: int = flag(minimum=1, help="Columns of A: products in a sum.")
    tile_size: int = flag(128, minimum=1, help="Elements that share an FP8 scale: 1 x tile of A, tile x tile of B.")
    group_size: int = flag(1, minimum=1, help="Number of groups, each with an A and a B of its own.")
    scale_major_mode: str = flag(
        "MN",
        choices=("MN", "K"),
        help="Which index of the scales runs fastest: that of rows, or that of tiles along k.",
    )
    input_dtype: DType = flag(DType.FP8_E4M3, choices=(*FP8, DType.BFLOAT16), help="Format of A.")
    mat2_dtype: DType = flag(DType.FP8_E4M3, choices=(*FP8, DType.BFLOAT16), help="Format of B.")
    out_dtype: DType = flag(DType.BFLOAT16, choices=TO_32_BITS, help="Format of the output.")
    mma_sm: int = flag(1, choices=(1, 2), help="Multiprocessors that share an MMA instruction on Blackwell.")
    backends: tuple[str, ...] = backends_flag()
    use_128x4_sf_layout: bool = flag(False, help="Put A's block scales into tiles of 128x4 instead of 8x4.")
    use_nvfp4: bool = flag(False, help="Quantise to NVFP4 instead of MXFP4.")
    autotune: bool = flag(
        False,
        unheeded="backend does not support autotune",
        help="Let the library measure its tactics first, outside the timed calls.",
    )
    bias: bool = flag(False, since=Since.UPSTREAM_0_6_18, help="Add a vector to every row of the output.")
    enable_pdl: bool = flag(False, since=Since.UPSTREAM_0_6_18, help="Use programmatic dependent launch.")
