"""Makes Triton's interpreter convert floats as GPUs do. By itself it cuts digits off where they round to nearest even,
and loses FP8's subnormals.
"""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

FLOATS = {
    tl.float64: torch.float64,
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
}
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}


def install() -> None:
    interpreter._convert_float = convert


def convert(data: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: object) -> np.ndarray:
    """Bits of floats of another format, in the shape of the data; formats that numpy lacks are integers to it."""
    values = torch.from_numpy(np.ascontiguousarray(data)).view(FLOATS[source]).to(FLOATS[target])
    return values.view(BITS.get(values.dtype, values.dtype)).numpy()
