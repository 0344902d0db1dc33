"""A mixture of experts on NVFP4 weights in vLLM's order, for programs: one call, which a CUDA graph can hold.

    config = nvfp4_moe_quant_config(
        a1_gscale=a1_gs, a2_gscale=a2_gs, w1_scale=w1_blockscale, w2_scale=w2_blockscale, g1_alphas=…, g2_alphas=…
    )
    out = moe_fp4(a, w1_fp4, w2_fp4, topk_weights, topk_ids, m=m, n=n, k=k, e=num_experts, quant_config=config)

It takes what vLLM's ``cutlass_moe_fp4`` takes, and needs no vLLM. What differs: activations stay in 16 bits (W4A16).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flashinfer_perf.formats.scale_layout import padded_shape
from flashinfer_perf.lazy import torch
from flashinfer_perf.moe_tool import eager
from flashinfer_perf.moe_tool.layout import by_rows, exchanged
from flashinfer_perf.routines.moe import launches

if TYPE_CHECKING:
    from flashinfer_perf.kernels.moe.experts import TritonExperts
    from flashinfer_perf.kernels.moe.weights import ExpertWeights

BLOCK = 16


@dataclass(frozen=True)
class Nvfp4MoeQuantConfig:
    """Scales of a layer of e experts.

    Attributes:
        a1_gscale, a2_gscale: (e,) fp32, what either product's input is multiplied by before it is quantised. Ours is
            not quantised; they undo what the alphas contain of them.
        w1_scale: (e, 2 n, k / 16) e4m3 in tiles of 128x4, rows padded to 128 and columns to 4.
        w2_scale: (e, k, n / 16), likewise.
        g1_alphas, g2_alphas: (e,) fp32, what either product is multiplied by: 1 / (input's * weight's global scale).
    """

    a1_gscale: torch.Tensor
    a2_gscale: torch.Tensor
    w1_scale: torch.Tensor
    w2_scale: torch.Tensor
    g1_alphas: torch.Tensor
    g2_alphas: torch.Tensor
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Weights in our order, and plans, by what they were made for."""


def nvfp4_moe_quant_config(
    *,
    a1_gscale: torch.Tensor,
    a2_gscale: torch.Tensor,
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    g1_alphas: torch.Tensor,
    g2_alphas: torch.Tensor,
) -> Nvfp4MoeQuantConfig:
    """The scales of a layer; see ``Nvfp4MoeQuantConfig``."""
    return Nvfp4MoeQuantConfig(a1_gscale, a2_gscale, w1_scale, w2_scale, g1_alphas, g2_alphas)


def moe_fp4(
    a: torch.Tensor,
    w1_fp4: torch.Tensor,
    w2_fp4: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    m: int,
    n: int,
    k: int,
    e: int,
    quant_config: Nvfp4MoeQuantConfig,
) -> torch.Tensor:
    """(m, k): for each token the sum over its experts of weight * W2 (silu(gate) * up), on the GPU by Triton kernels.

    The first call with a config and a dtype of ``a`` brings the weights into the kernels' order for it and keeps that
    copy, and the matrices it is of, with the config; the first one with a number of tokens compiles. Make either before
    capturing. Weights must not change afterwards.

    Args:
        a: (m, k) fp16 or bf16.
        w1_fp4: (e, 2 n, k / 2) bytes, two e2m1 each, the even one low; the first n rows give gate, the others up.
        w2_fp4: (e, k, n / 2) bytes.
        topk_weights: (m, top_k) of any float format.
        topk_ids: (m, top_k) int32 or int64.

    Raises:
        ValueError: for a tensor of another shape or format; on a GPU where k or n is no multiple of 64.
        Unsupported: on a GPU older than compute capability 8.9.
    """
    sizes, given = (m, n, k, e), (w1_fp4, w2_fp4)
    _check(a, *given, topk_weights, topk_ids, sizes, quant_config)
    output = torch.empty_like(a)
    routed = {"experts": topk_ids.to(torch.int32), "weights": topk_weights.float()}
    if a.is_cuda:
        plan = plan_of(quant_config, *given, sizes, topk_ids.shape[1], a.dtype)
        launches.mixed_by_triton(plan, **routed, output=output, x=a, **launches.weights_of(plan))
    else:
        weights = _once(quant_config, given, ("weights",), lambda: ordered(*given, quant_config, (n, k)))
        eager.experts_nvfp4(a, **weights, **routed, output=output)
    return output


def plan_of(
    config: Nvfp4MoeQuantConfig,
    w1: torch.Tensor,
    w2: torch.Tensor,
    sizes: tuple[int, int, int, int],
    top_k: int,
    dtype: torch.dtype,
) -> TritonExperts:
    """The kernels' plan for a number of tokens; all for one dtype share their copy of the weights."""
    m, n, k, e = sizes
    given = (w1, w2)
    weights = _once(config, given, ("prepared", dtype), lambda: prepared(ordered(w1, w2, config, (n, k)), dtype))
    return _once(config, given, ("plan", m, top_k, dtype), lambda: planned(weights, m, top_k, e, dtype))


def _once(
    config: Nvfp4MoeQuantConfig,
    given: tuple[torch.Tensor, torch.Tensor],
    what: tuple[Any, ...],
    make: Callable[[], Any],
) -> Any:
    """What was made of the given matrices, which are kept with it, so that no others come to their addresses."""
    key = (*what, *(matrix.data_ptr() for matrix in given))
    if key not in config._kept:
        config._kept[key] = (given, make())
    return config._kept[key][1]


def ordered(
    w1: torch.Tensor, w2: torch.Tensor, config: Nvfp4MoeQuantConfig, sizes: tuple[int, int]
) -> dict[str, torch.Tensor]:
    n, k = sizes
    return {
        "w1": exchanged(w1),
        "w2": w2,
        "w1_scale": exchanged(by_rows(config.w1_scale, 2 * n, k // BLOCK)),
        "w2_scale": by_rows(config.w2_scale, k, n // BLOCK),
        "w1_global": 1 / (config.g1_alphas * config.a1_gscale),
        "w2_global": 1 / (config.g2_alphas * config.a2_gscale),
    }


def prepared(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> ExpertWeights:
    """As the kernels read them for activations of a dtype."""
    from flashinfer_perf.kernels.moe import fp4_weights

    held = launches.expert_weights("NVFP4", weights)
    held.check(gated=True)
    return fp4_weights.prepared(held, dtype)


def planned(weights: ExpertWeights, m: int, top_k: int, e: int, dtype: torch.dtype) -> TritonExperts:
    from flashinfer_perf.kernels.moe.experts import TritonExperts

    return TritonExperts(weights, num_tokens=m, top_k=top_k, num_experts=e, dtype=dtype)


def _check(
    a: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    sizes: tuple[int, int, int, int],
    config: Nvfp4MoeQuantConfig,
) -> None:
    m, n, k, e = sizes
    if k % BLOCK or n % BLOCK:
        raise ValueError(f"k ({k}) and n ({n}) must be multiples of 16, the elements that share a scale")
    chosen = (m, topk_ids.shape[-1])
    wanted = {
        "a": (a, (m, k), (torch.float16, torch.bfloat16)),
        "w1_fp4": (w1, (e, 2 * n, k // 2), (torch.uint8,)),
        "w2_fp4": (w2, (e, k, n // 2), (torch.uint8,)),
        "topk_ids": (topk_ids, chosen, (torch.int32, torch.int64)),
        "topk_weights": (topk_weights, chosen, (torch.float16, torch.bfloat16, torch.float32)),
        "w1_scale": (config.w1_scale, (e, *_tiled(2 * n, k)), (torch.float8_e4m3fn,)),
        "w2_scale": (config.w2_scale, (e, *_tiled(k, n)), (torch.float8_e4m3fn,)),
    }
    for name in ("a1_gscale", "a2_gscale", "g1_alphas", "g2_alphas"):
        wanted[name] = (getattr(config, name), (e,), (torch.float32,))
    for name, (tensor, shape, dtypes) in wanted.items():
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            found = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{name} must be {shape} {allowed}, not {found}")


def _tiled(rows: int, columns: int) -> tuple[int, int]:
    return padded_shape("128x4", rows, columns // BLOCK)
