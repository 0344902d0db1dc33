"""Kernels of the RoPE family with an error each: the torch backend's call with other arguments, or spoilt outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from flashinfer_perf.run.launch import Launch
from tests.routines.harness import routine_named

Change = Callable[[Any, dict[str, Any]], Mapping[str, Any]]
"""Of the case's flags and the call's arguments: the arguments that are wrong."""
Spoil = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]
"""Of the outputs by name, which it changes in place, and the call's arguments."""


def broken(name: str, *, before: Change | None = None, after: Spoil | None = None) -> Callable[[Any, Any], Launch]:
    """What prepares the launch of a routine's broken kernel."""

    def prepare(case, problem):
        launch = routine_named(name).backends["torch"].prepare(case, problem)

        def kernel(**call):
            call |= before(case, call) if before else {}
            returned = launch.fn(**call)
            if after:
                after(dict(dataclasses.replace(launch, kwargs=call).outputs(returned)), call)
            return returned

        return dataclasses.replace(launch, fn=kernel)

    return prepare


# ---- What can be wrong with one output ----


def raw(output: torch.Tensor) -> torch.Tensor:
    return output.view(torch.int16 if output.element_size() == 2 else torch.uint8)


def zeros(name: str) -> Spoil:
    return lambda outputs, call: raw(outputs[name]).zero_()


def one_nan(name: str) -> Spoil:
    def spoil(outputs, call):
        outputs[name].view(-1)[-1] = float("nan")

    return spoil


def next_token(name: str) -> Spoil:
    return lambda outputs, call: raw(outputs[name]).copy_(raw(outputs[name]).roll(1, dims=0))


def next_head(name: str, head_dim: int = 0) -> Spoil:
    """Of (tokens, heads, dim), or of (tokens, heads * head_dim)."""

    def spoil(outputs, call):
        output = outputs[name].unflatten(-1, (-1, head_dim)) if head_dim else outputs[name]
        raw(output).copy_(raw(output).roll(1, dims=1))

    return spoil


def last_token_forgotten(name: str) -> Spoil:
    return lambda outputs, call: raw(outputs[name])[-1].zero_()


def copied_from(name: str, source: str) -> Spoil:
    """Not rotated."""
    return lambda outputs, call: outputs[name].copy_(call[source])


# ---- What can be wrong with the rotation ----


def other_layout(case, call):
    if "interleave" in call:
        return {"interleave": not call["interleave"]}
    return {"is_neox": not call["is_neox"]}


def one_position_off(case, call):
    name = next(name for name in ("offsets", "pos_ids", "positions") if name in call)
    last = len(call["cos_sin_cache"]) if "cos_sin_cache" in call else 1 << 30
    return {name: (call[name] + 1) % last}


def sequences_not_restarted(case, call):
    """Tokens are counted through the whole batch."""
    if "indptr" in call:
        return {"offsets": call["indptr"][:-1]}
    return {"pos_ids": torch.arange(len(call["pos_ids"]), dtype=torch.int32)}


def first_position_everywhere(case, call):
    name = "pos_ids" if "pos_ids" in call else "positions"
    return {name: torch.zeros_like(call[name])}


def cache_turned_back(case, call):
    cos, sin = call["cos_sin_cache"].chunk(2, dim=-1)
    return {"cos_sin_cache": torch.cat([cos, -sin], dim=-1)}


def sines_first(case, call):
    cos, sin = call["cos_sin_cache"].chunk(2, dim=-1)
    return {"cos_sin_cache": torch.cat([sin, cos], dim=-1)}


def turned_back(case, call):
    scaling = call["scaling"]
    return {"scaling": lambda frequencies: -scaling(frequencies)}


def scale_ignored(case, call):
    return {"scaling": lambda frequencies: frequencies}


def scale_for_all(case, call):
    return {"scaling": lambda frequencies: frequencies / case.rope_scale}


def theta_ignored(case, call):
    return {"rope_theta": 10000.0}


def all_dimensions_rotated(case, call):
    return {"rotary_dim": case.head_dim}


def fewer_dimensions_rotated(case, call):
    return {"rotary_dim": case.rotary_dim // 2}


# ---- What can be wrong with quantisation ----


def scales_forgotten(case, call):
    return {"quant_scale_q": 1.0, "quant_scale_kv": 1.0}


def scale_of_keys_forgotten(case, call):
    return {"quant_scale_kv": 1.0}


def scales_divided_by(case, call):
    return {"quant_scale_q": 1 / case.quant_scale_q, "quant_scale_kv": 1 / case.quant_scale_kv}


def scales_exchanged(case, call):
    return {"quant_scale_q": case.quant_scale_kv, "quant_scale_kv": case.quant_scale_q}


def one_per_cent_more(case, call):
    return {"quant_scale_q": 1.01 * case.quant_scale_q}
