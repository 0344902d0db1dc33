"""Inputs of a contestant: tokens, their experts, and weights, quantised expert by expert."""

from __future__ import annotations

from collections.abc import Iterator

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8, nvfp4
from flashinfer_perf.lazy import torch
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.run.factory import TensorFactory

COPIES_WHILE_QUANTISED = 8
"""fp32 copies of an expert's weight that encoding takes on its way, at most."""


def tokens(case: MoeFlags, make: TensorFactory) -> dict[str, torch.Tensor]:
    """Standard normal ``x`` (m, k) fp16; ``topk_ids`` int32 and ``topk_weights`` fp32, both (m, top_k).

    Logits are standard normal; a token's weights are the softmax over its chosen ones.
    """
    rows, width, chosen = case.num_tokens, case.hidden_size, (case.num_tokens, case.top_k)
    make.reserve("topk_ids and topk_weights", chosen, DType.FLOAT64)
    make.reserve("out and its truth", (rows, width), DType.FLOAT64)
    logits = torch.randn(rows, case.num_experts, generator=make.generator("logits"))  # on the CPU: alike everywhere
    values, ids = logits.topk(case.top_k, dim=-1)
    return {
        "x": make.normal("x", (rows, width), DType.FLOAT16),
        "topk_ids": ids.to(make.device, torch.int32),
        "topk_weights": values.softmax(dim=-1).to(make.device),
    }


def fp8_weight(case: MoeFlags, make: TensorFactory, name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    """``name`` (experts, rows, columns) e4m3 and ``name_scale`` fp32: (experts,), or (experts, rows) per channel.

    An element stands for its value times its scale; a scale is amax / 448.
    """
    make.reserve(name, (case.num_experts, rows, columns), DType.FP8_E4M3)
    elements = torch.empty(case.num_experts, rows, columns, dtype=torch.float8_e4m3fn, device=make.device)
    scales = torch.empty((case.num_experts, rows)[: 1 + case.per_out_ch], device=make.device)
    for expert, drawn in _drawn(case, make, name, rows, columns):
        largest = drawn.abs().amax(dim=-1) if case.per_out_ch else drawn.abs().amax()
        scales[expert] = largest.float() / fp8.LARGEST[DType.FP8_E4M3]
        elements[expert] = fp8.encode(drawn.float() / scales[expert, ..., None], DType.FP8_E4M3)
    return {name: elements, f"{name}_scale": scales}


def nvfp4_weight(case: MoeFlags, make: TensorFactory, name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    """``name`` (experts, rows, columns / 2) bytes; ``name_scale`` (experts, rows, columns / 16) e4m3, row by row;
    ``name_global`` (experts,) fp32, 2688 / amax: an element stands for its value times its scale, divided by that.
    """
    shape = (case.num_experts, rows, columns)
    make.reserve(name, shape, DType.NVFP4)
    make.reserve(f"{name}_scale", (*shape[:-1], columns // nvfp4.BLOCK), DType.FP8_E4M3)
    packed = torch.empty(*shape[:-1], columns // 2, dtype=torch.uint8, device=make.device)
    scales = torch.empty(*shape[:-1], columns // nvfp4.BLOCK, dtype=torch.uint8, device=make.device)
    overall = torch.empty(case.num_experts, device=make.device)
    for expert, drawn in _drawn(case, make, name, rows, columns):
        overall[expert] = nvfp4.LARGEST / drawn.abs().amax().float()
        packed[expert], scales[expert] = nvfp4.encode(drawn, overall[expert])
    return {name: packed, f"{name}_scale": scales.view(torch.float8_e4m3fn), f"{name}_global": overall}


def _drawn(
    case: MoeFlags, make: TensorFactory, name: str, rows: int, columns: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each expert's weight in bfloat16, normal with variance 1 / columns, so that products keep their inputs' size.

    Every second expert, by chance, has half of that: with scales as good as equal, a kernel that takes another
    expert's would be right.
    """
    make.reserve(f"{name} before it is quantised", (rows, columns, COPIES_WHILE_QUANTISED), DType.FLOAT32)
    halved = torch.randint(2, (case.num_experts,), generator=make.generator(f"{name}_scale")).tolist()
    generator = make.generator(name, make.device)
    for expert, half in enumerate(halved):
        drawn = torch.randn(rows, columns, dtype=torch.bfloat16, device=make.device, generator=generator)
        yield expert, drawn.mul_(columns**-0.5 / (1 + half))
