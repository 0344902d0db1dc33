"""Runs the kernels for tokens' rows in Triton's interpreter, a process of its own; prints {case: equal}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import torch

from flashinfer_perf.kernels.token_rows import pack_rows, plan_rows, sum_rows
from flashinfer_perf.routines.moe_comm.packed import add_up, pack, plan, unpack
from flashinfer_perf.routines.moe_comm.routing import Experts


def rows(tokens: int, columns: int, dtype: torch.dtype, scales: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(columns)
    ids = torch.randint(0, 99, (tokens, 3), generator=generator, dtype=torch.int32)
    hidden = torch.randn(tokens, columns, generator=generator).to(dtype)
    parts = (ids, torch.rand(tokens, 3, generator=generator), hidden)
    return (*parts, torch.rand(tokens, scales, generator=generator)) if scales else parts


def chosen(tokens: int, top_k: int, experts: Experts) -> torch.Tensor:
    draws = torch.rand(tokens, experts.number, generator=torch.Generator().manual_seed(tokens))
    return draws.topk(top_k).indices.int()


def planned(tokens: int, top_k: int, ranks: int) -> bool:
    experts = Experts(6 * ranks, ranks)
    ids = chosen(tokens, top_k, experts)
    order, counts = torch.full((tokens, ranks), 7, dtype=torch.int32), torch.full((ranks,), 7)
    plan_rows(ids, experts.per_rank, order, counts)
    expected, (sent, _) = plan(experts, ids)
    return torch.equal(order, expected) and torch.equal(counts, sent)


def packed(columns: int, dtype: torch.dtype, scales: int) -> bool:
    parts, experts = rows(7, columns, dtype, scales), Experts(6, 3)
    order, (sent, _) = plan(experts, chosen(7, 2, experts))
    expected = pack(parts, order)
    found, starts = torch.full_like(expected, 255), [0]
    for part in parts[:-1]:
        starts.append(starts[-1] + -(-part.shape[1] * part.element_size() // 16) * 16)
    pack_rows([part.view(torch.uint8) for part in parts], order, found, starts)
    total = int(sent.sum())
    pairs = zip(unpack(found[:total], parts), unpack(expected[:total], parts), strict=True)
    return bool((found[total:] == 255).all()) and all(torch.equal(one, other) for one, other in pairs)


def summed(columns: int, dtype: torch.dtype) -> bool:
    returned = torch.randint(-9, 9, (6, columns), generator=torch.Generator().manual_seed(2)).to(dtype)
    order = torch.tensor([[0, 1, 2], [-1, 3, -1], [-1, -1, -1], [4, -1, 5]], dtype=torch.int32)
    out, expected = torch.full((4, columns), 7.0, dtype=dtype), torch.empty(4, columns, dtype=dtype)
    sum_rows(returned, order, out)
    add_up(returned, order, expected)
    return torch.equal(out, expected)


if __name__ == "__main__":
    formats = {"fp16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
    widths = (1, 8, 1100)
    cases = {
        f"packed {columns} {name} {scales}": packed(columns, dtype, scales)
        for columns in widths
        for name, dtype in formats.items()
        for scales in (0, 2)
    }
    sums = {
        f"summed {columns} {name}": summed(columns, formats[name]) for columns in widths for name in ("fp16", "bf16")
    }
    plans = {
        f"planned {tokens} {top_k} {ranks}": planned(tokens, top_k, ranks)
        for tokens, top_k, ranks in ((1, 1, 1), (7, 2, 3), (7, 5, 2), (3000, 3, 4), (1024, 8, 2))
    }
    print(json.dumps(cases | sums | plans))
