"""XQA, which the library runs on Hopper and compute capability 12 where Blackwell has generated kernels."""

from __future__ import annotations

from flashinfer_perf.core.requirement import case_rule, on_generations
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.attention.backends import E4M3_CACHE, SAME_16, dims, formats, group_size, head_dims
from flashinfer_perf.routines.attention.flags import AttentionFlags

GENERATIONS = (9, 12)
PAGE_SIZES = (16, 32, 64, 128)
TILE_BYTES = 16 << 10
"""It keeps the rows of all heads of a group, in multiples of 16, in so much; of several queries, 32 rows at a time."""


def _fits_tile(case: AttentionFlags) -> bool:
    rows = -(-group_size(case) // 16) * 16
    return case.s_qo > 1 or rows * dims(case)[0] * case.q_dtype.bytes <= TILE_BYTES


limits = tuple(
    on_generations(GENERATIONS, rule)
    for rule in (
        case_rule("page_size of 16, 32, 64 or 128", lambda case: case.page_size in PAGE_SIZES),
        head_dims(64, 128, 256),
        formats(*SAME_16, *E4M3_CACHE),
        case_rule("num_qo_heads / num_kv_heads up to 64, or 32 for head_dim_qk of 256", _fits_tile),
    )
)

WORD_BITS = 16
ROW_BITS = 32
"""A row of bits is padded to a multiple of so many."""


def causal_bits(batch_size: int, queries: int, device: torch.device) -> torch.Tensor:
    """(batch, queries, words) uint16: bit j of row i, the lowest first, is set where query i sees query j."""
    words = -(-queries // ROW_BITS) * (ROW_BITS // WORD_BITS)
    seen = torch.arange(words * WORD_BITS)[None] <= torch.arange(queries)[:, None]
    places = torch.arange(WORD_BITS, dtype=torch.int32)
    bits = (seen.view(queries, words, WORD_BITS).int() << places).sum(-1)
    return bits.to(torch.uint16).expand(batch_size, -1, -1).contiguous().to(device)
