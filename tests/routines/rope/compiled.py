"""FlashInfer's RoPE on a CPU: all its own Python runs, but for the compiled module, in place of which this computes
what the CUDA kernels do: in fp32, with fast functions that err as much as their vendor says they may.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
HND = 1
"""The library's number."""


def fast_power(base: float, exponents: torch.Tensor) -> torch.Tensor:
    """``__powf``: 2^(exponent * log2(base)), the logarithm two units in the last place off, the power 2^-22.5."""
    logarithm = torch.tensor(math.log2(base), dtype=torch.float32)
    logarithm = logarithm * (1 + 2 * 2.0**-23)
    return (torch.exp2((exponents.float() * logarithm).double()) * (1 + 2**-22.5)).float()


def fast_sincos(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``__sincosf``: the angle in turns is rounded to fp32, the results are off by 2^-20.5."""
    turns = angles * torch.tensor(1 / (2 * math.pi), dtype=torch.float32)
    radians = 2 * math.pi * turns.double()
    return (radians.sin() + 2**-20.5).float(), (radians.cos() - 2**-20.5).float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleave: bool) -> torch.Tensor:
    """x (tokens, heads, dim) in fp32, as many dimensions rotated as cos (tokens, pairs) has twice."""
    x, rotary_dim = x.float(), 2 * cos.shape[-1]
    out = x.clone()
    for pair in range(rotary_dim // 2):
        one, two = (2 * pair, 2 * pair + 1) if interleave else (pair, pair + rotary_dim // 2)
        c, s = cos[:, pair, None], sin[:, pair, None]
        out[..., one] = x[..., one] * c - x[..., two] * s
        out[..., two] = x[..., two] * c + x[..., one] * s
    return out


def store(out: torch.Tensor, values: torch.Tensor) -> None:
    limit = LARGEST.get(out.dtype)
    out.copy_(values if limit is None else values.clamp(-limit, limit))


class RopeModule:
    """The functions of the compiled module. ``calls`` are their names."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def apply_rope(self, q, k, q_rope, k_rope, indptr, offsets, *options):
        lengths = indptr.diff().tolist()
        pos_ids = torch.cat([offsets[i] + torch.arange(length) for i, length in enumerate(lengths)])
        self.apply_rope_pos_ids(q, k, q_rope, k_rope, pos_ids, *options)

    apply_llama31_rope = apply_rope

    def apply_rope_pos_ids(self, q, k, q_rope, k_rope, pos_ids, rotary_dim, interleave, scale, theta, *llama31):
        self.calls.append("apply")
        frequencies = fast_power(1 / theta, torch.arange(0, rotary_dim, 2) / rotary_dim)
        smooth = torch.zeros(1)
        if llama31:
            low, high, old_context_len = llama31
            smooth = frequencies * (old_context_len / (2 * math.pi * (high - low))) - 1 / (high / low - 1)
            smooth = smooth.clamp(0, 1)
        frequencies = (1 - smooth) * (frequencies * (1 / scale)) + smooth * frequencies
        sin, cos = fast_sincos(pos_ids.float()[:, None] * frequencies)
        for x, out in ((q, q_rope), (k, k_rope)):
            store(out, rotate(x, cos, sin, interleave))

    apply_llama31_rope_pos_ids = apply_rope_pos_ids

    def apply_rope_pos_ids_cos_sin_cache(self, q, k, q_rope, k_rope, cos_sin_cache, pos_ids, interleave):
        self.calls.append("cache")
        cos, sin = cos_sin_cache[pos_ids].chunk(2, dim=-1)
        for x, out in ((q, q_rope), (k, k_rope)):
            store(out, rotate(x, cos, sin, interleave))

    def rope_quantize(self, q_rope, k_rope, q_nope, k_nope, *rest):
        self.calls.append("quantize")
        *outs, cos_sin_cache, pos_ids, scale_q, scale_kv, interleave, _pdl = rest
        cos, sin = cos_sin_cache[pos_ids].chunk(2, dim=-1)
        for x, out, scale in zip((q_rope, k_rope), outs[:2], (scale_q, scale_kv), strict=True):
            heads = x.reshape(len(x), -1, x.shape[-1])
            store(out, (rotate(heads, cos, sin, interleave) * scale).reshape(x.shape))
        for x, out, scale in zip((q_nope, k_nope), outs[2:], (scale_q, scale_kv), strict=True):
            store(out, x.float() * scale)

    def rope_quantize_append_paged_kv_cache(self, q_rope, k_rope, q_nope, k_nope, v, *rest):
        self.calls.append("append")
        (q_rope_out, q_nope_out, cos_sin_cache, pos_ids, k_cache, v_cache, _, _, *where) = rest
        kv_indices, kv_indptr, batch_indices, positions, layout, page_size, *scales, interleave, _pdl = where
        cos, sin = cos_sin_cache[pos_ids].chunk(2, dim=-1)
        store(q_rope_out, rotate(q_rope, cos, sin, interleave) * scales[0])
        store(q_nope_out, q_nope.float() * scales[0])
        keys = torch.cat([rotate(k_rope, cos, sin, interleave), k_nope.float()], dim=-1) * scales[1]
        for token, (sequence, place) in enumerate(zip(batch_indices.tolist(), positions.tolist(), strict=True)):
            page = kv_indices[kv_indptr[sequence] + place // page_size]
            for cache, rows in ((k_cache, keys), (v_cache, v.float() * scales[1])):
                slots = cache[page].transpose(0, 1) if layout == HND else cache[page]
                store(slots[place % page_size], rows[token])


@contextlib.contextmanager
def rope_module() -> Iterator[Any]:
    """FlashInfer's functions of RoPE take CPU tensors inside. Gives the module's stand-in."""
    import flashinfer.rope

    module = RopeModule()
    with mock.patch.object(flashinfer.rope, "get_rope_module", return_value=module):
        yield module
