"""What stands in for FlashInfer's compiled modules of attention on a machine without a GPU."""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch

CAUSAL, NHD, HND = 1, 0, 1
"""The library's numbers of masks and layouts."""


def torch_without_gpu() -> SimpleNamespace:
    """What the library's module calls torch: without pinned memory and CUDA's devices."""
    cuda = {**vars(torch.cuda), "device": contextlib.nullcontext}
    cuda["get_device_properties"] = lambda device: SimpleNamespace(multi_processor_count=148)
    replaced = {"cuda": SimpleNamespace(**cuda), "empty": _empty}
    return SimpleNamespace(**{**vars(torch), **replaced})


def _empty(*size: int, pin_memory: bool = False, **how: Any) -> torch.Tensor:
    return torch.empty(*size, **how)


def gathered(cache: torch.Tensor, pages: torch.Tensor, length: int) -> torch.Tensor:
    """(length, kv heads, dim) in fp32, page by page, from (pages, kv heads, page size, dim)."""
    return torch.cat([cache[page].float() for page in pages.tolist()], dim=1)[:, :length].transpose(0, 1)


def attend(q, pairs, starts, causal, sm_scale, v_scale, out) -> None:
    """Writes the output of each sequence, whose keys and values are (tokens, kv heads, dim)."""
    for (keys, values), (first, last) in zip(pairs, pairwise(starts), strict=True):
        group = q.shape[1] // keys.shape[1]
        keys, values = (tensor.float().repeat_interleave(group, 1) for tensor in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", q[first:last].float(), keys) * sm_scale
        if causal:
            queries, seen = scores.shape[1:]
            scores.masked_fill_(torch.ones(queries, seen, dtype=torch.bool).triu(seen - queries + 1), -math.inf)
        out[first:last] = (torch.einsum("hqk,khd->qhd", scores.softmax(-1), values) * v_scale).to(out.dtype)
