"""What the quantising RoPE routines share: inputs, outputs, arguments, checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashinfer_perf.checks.fp8 import Fp8Codes
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.rope import eager, inputs
from flashinfer_perf.routines.rope.flags import RopeFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Check, Problem, Shown

PARTS = ("q_rope", "k_rope", "q_nope", "k_nope")
QUERY_PARTS = ("q_rope", "q_nope")
FROM_CACHE = ("cos_sin_cache", "pos_ids")
FLAGS = ("quant_dtype", "interleave", "quant_scale_q", "quant_scale_kv", "enable_pdl")


def tensors(
    case: RopeFlags, make: TensorFactory, rope_dim: int, no_rope_dim: int, *, one_key_head: bool = False
) -> dict[str, torch.Tensor]:
    """q_rope, k_rope (tokens, heads, rope_dim), and if they have any dimensions q_nope and k_nope, standard normal;
    the cache of cosines and sines, and positions. With one head of keys, these are (tokens, dim).
    """
    key_heads = () if one_key_head else (case.num_kv_heads,)
    leading = {"q": (case.tokens, case.num_qo_heads), "k": (case.tokens, *key_heads)}
    made = {}
    for name, dim in zip(PARTS, (rope_dim, rope_dim, no_rope_dim, no_rope_dim), strict=True):
        if dim:
            made[name] = make.normal(name, (*leading[name[0]], dim), case.input_dtype)
    made["cos_sin_cache"] = inputs.cos_sin_cache(case, make, rope_dim)
    return {**made, "pos_ids": inputs.positions(case, make)}


def written(case: RopeFlags, problem: Problem, parts: tuple[str, ...] = PARTS) -> dict[str, torch.Tensor]:
    """Room for these parts in FP8, named as the library names it."""
    dtype = case.quant_dtype.torch
    return {f"{part}_out": torch.empty_like(problem[part], dtype=dtype) for part in _existing(problem.tensors, parts)}


def checks(made: Mapping[str, torch.Tensor], parts: tuple[str, ...] = PARTS) -> dict[str, Check]:
    """Of these parts: exact values in FP8, but for ties that fp32 may decide."""
    return {f"{part}_out": Fp8Codes() for part in _existing(made, parts)}


def scales(case: RopeFlags) -> dict[str, Any]:
    """How the reference quantises."""
    return {
        "interleave": case.interleave,
        "scale_q": case.quant_scale_q,
        "scale_kv": case.quant_scale_kv,
        "dtype": case.quant_dtype,
    }


def arguments(case: RopeFlags, problem: Problem) -> dict[str, Any]:
    """What every implementation gets, but for the format; a part without dimensions is None."""
    return {
        **{part: problem.tensors.get(part) for part in PARTS},
        **{name: problem[name] for name in FROM_CACHE},
        "is_neox": not case.interleave,
        "quant_scale_q": case.quant_scale_q,
        "quant_scale_kv": case.quant_scale_kv,
    }


def library_arguments(case: RopeFlags, problem: Problem) -> dict[str, Any]:
    """FlashInfer's."""
    format_and_launch = {"quantize_dtype": case.quant_dtype.torch, "enable_pdl": case.enable_pdl}
    return {**arguments(case, problem), **format_and_launch}


def eager_launch(case: RopeFlags, problem: Problem) -> Launch:
    """The call in PyTorch operations that quantises all parts."""
    room = written(case, problem)
    kwargs = {**arguments(case, problem), "quantize_dtype": case.quant_dtype, **room}
    return Launch(eager.rope_quantize_fp8, kwargs=kwargs, mutates=tuple(room))


def shown(made: Mapping[str, torch.Tensor]) -> tuple[Shown, ...]:
    """Shapes of the parts and of what they are rotated by."""
    return inputs.shapes({name: made.get(name) for name in (*PARTS, *FROM_CACHE)})


def _existing(made: Mapping[str, torch.Tensor], parts: tuple[str, ...]) -> list[str]:
    return [part for part in parts if part in made]
