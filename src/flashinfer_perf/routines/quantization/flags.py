"""Flags of the quantization family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import backends_flag, flag


@dataclass(frozen=True)
class QuantizationFlags:
    """In the order of upstream's Namespace line."""

    family: ClassVar[str] = "quantization"

    m: int = flag(minimum=1, help="Number of rows in input tensor.")
    k: int = flag(minimum=1, help="Number of columns in input tensor.")
    input_dtype: DType = flag(DType.BFLOAT16, choices=(DType.BFLOAT16, DType.FLOAT16), help="Format of the input.")
    is_sf_swizzled_layout: bool = flag(
        True,
        negations=("--no_sf_swizzled_layout",),
        help="Write scales in 128x4 tiles, as tensor cores read them; else row by row.",
    )
    alignment: int = flag(
        32, minimum=1, help="Elements that the columns are a multiple of; counts as elements to a scale in the bytes."
    )
    enable_pdl: bool = flag(False, help="Use programmatic dependent launch.")
    backends: tuple[str, ...] = backends_flag()
    batch_size: int | None = flag(None, minimum=1, help="Batch size of batched quantisation.")
    global_scale: float = flag(
        1.0,
        above=0,
        help="Global scale of NVFP4: what is quantised is multiplied by it. Usually 2688 / largest magnitude.",
    )
    sf_layout: str = flag("128x4", choices=("128x4", "8x4", "linear"), help="Layout of the block scales.")
    do_shuffle: bool = flag(False, help="Shuffle rows of elements and scales, as TensorRT-LLM's kernels read them.")
    sf_vec_size: int = flag(16, minimum=1, help="Elements that share a scale.")
