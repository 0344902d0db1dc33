"""Runs the kernels for tokens' rows in Triton's interpreter, a process of its own; prints {case: equal}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import torch

from flashinfer_perf.kernels.token_rows import gather_rows, sum_rows
from flashinfer_perf.routines.moe_comm.packed import ALIGNMENT, add_up, pack, unpack


def rows(tokens: int, columns: int, dtype: torch.dtype, scales: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(columns)
    ids = torch.randint(0, 99, (tokens, 3), generator=generator, dtype=torch.int32)
    hidden = torch.randn(tokens, columns, generator=generator).to(dtype)
    parts = (ids, torch.rand(tokens, 3, generator=generator), hidden)
    return (*parts, torch.rand(tokens, scales, generator=generator)) if scales else parts


def gathered(columns: int, dtype: torch.dtype, scales: int) -> bool:
    parts = rows(7, columns, dtype, scales)
    wanted = torch.rand(7, 3, generator=torch.Generator().manual_seed(1)) < 0.6
    tokens = torch.stack([wanted.T.nonzero()[:, 1]] * 2, dim=1)[:, 0]  # with a stride
    found = gather_rows([part.view(torch.uint8) for part in parts], tokens, ALIGNMENT)
    pairs = zip(unpack(found, parts), unpack(pack(parts, wanted), parts), strict=True)
    return found.shape[1] % ALIGNMENT == 0 and all(torch.equal(one, other) for one, other in pairs)


def summed(columns: int, dtype: torch.dtype) -> bool:
    returned = torch.randint(-9, 9, (6, columns), generator=torch.Generator().manual_seed(2)).to(dtype)
    order = torch.tensor([[0, 1, 2], [-1, 3, -1], [-1, -1, -1], [4, -1, 5]])
    out, expected = torch.full((4, columns), 7.0, dtype=dtype), torch.empty(4, columns, dtype=dtype)
    sum_rows(returned, order, out)
    add_up(returned, order, expected)
    return torch.equal(out, expected)


if __name__ == "__main__":
    formats = {"fp16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
    widths = (1, 8, 1100)
    cases = {
        f"gathered {columns} {name} {scales}": gathered(columns, dtype, scales)
        for columns in widths
        for name, dtype in formats.items()
        for scales in (0, 2)
    }
    sums = {
        f"summed {columns} {name}": summed(columns, formats[name]) for columns in widths for name in ("fp16", "bf16")
    }
    print(json.dumps(cases | sums))
