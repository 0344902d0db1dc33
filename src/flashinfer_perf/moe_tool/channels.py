"""FP8 weights with a scale for each output channel; the routines of the MoE family have none."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.formats import fp8
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe.weights import WIDE_COPIES, Drawn, Format, Weights
from flashinfer_perf.run.factory import TensorFactory


def _make(make: TensorFactory, drawn: Drawn) -> Weights:
    """``w1``, ``w2`` (experts, rows, columns) e4m3; ``w1_scale``, ``w2_scale`` (experts, rows) fp32, amax / 448."""
    made: Weights = {}
    count = len(drawn.layer.experts)
    for name, (rows, columns) in drawn.shapes.items():
        make.reserve(name, (count, rows, columns), DType.FP8_E4M3)
        make.reserve(f"{name}_scale", (count, rows), DType.FLOAT32)
        make.reserve(f"{name} before it is quantised", (WIDE_COPIES, rows, columns), DType.FLOAT32)
        made[name] = torch.empty(count, rows, columns, dtype=torch.float8_e4m3fn, device=make.device)
        made[f"{name}_scale"] = torch.empty(count, rows, device=make.device)
        for index, values in enumerate(drawn.experts(make, name)):
            scales = values.abs().amax(dim=-1).float() / fp8.LARGEST[DType.FP8_E4M3]
            made[name][index] = fp8.encode(values.float() / scales[:, None], DType.FP8_E4M3)
            made[f"{name}_scale"][index] = scales
    return made


def _decoded(weights: Weights, name: str, index: int) -> torch.Tensor:
    return weights[name][index].float() * weights[f"{name}_scale"][index][:, None]


FP8_CHANNEL = Format(_make, _decoded)
