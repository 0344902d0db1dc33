"""Decodes rows of NVFP4 in Triton's interpreter, a process of its own; prints {case: equal}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import torch

from flashinfer_perf.formats import nvfp4
from flashinfer_perf.kernels.nvfp4_rows import decode_rows


def decoded(rows: int, columns: int, factor: float, dtype: torch.dtype, wrong: int = 0) -> bool:
    """With every code and many scales; ``wrong`` is added to the packed bytes."""
    generator = torch.Generator().manual_seed(columns)
    packed = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
    scales = torch.randint(0, 127, (rows, columns // 16), generator=generator, dtype=torch.uint8)
    out = torch.full((rows, columns), 7.0, dtype=dtype)
    decode_rows(packed + wrong, scales, factor, out)
    expected = nvfp4.decode(nvfp4.Nvfp4(packed, scales), factor)
    # The interpreter cuts off where fp32 becomes bfloat16; fp16 has numbers that are as small as the tolerance.
    return torch.allclose(out.double(), expected.double(), rtol=2.0**-7, atol=2.0**-25)


if __name__ == "__main__":
    shapes = ((1, 16), (5, 80), (3, 1200))
    cases = {
        f"{rows}x{columns} {factor} {name}": decoded(rows, columns, factor, dtype)
        for rows, columns in shapes
        for factor in (1.0, 537.3)
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
    }
    cases["broken"] = decoded(2, 32, 1.0, torch.float16, wrong=1)
    print(json.dumps(cases))
