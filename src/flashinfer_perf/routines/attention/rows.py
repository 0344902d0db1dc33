"""Which query tokens the reference computes: all of them, or on large cases a sample drawn with the seed."""

from __future__ import annotations

from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.attention.sequences import Sequences
from flashinfer_perf.run.factory import TensorFactory

FLOPS = 2.0**36
"""What the reference may cost: a second on a laptop, a millisecond on a GPU."""
ELEMENTS = 2.0**25
"""Of the output, at most: they are compared in fp64."""
AT_LEAST = 16


def reference_rows(make: TensorFactory, sequences: Sequences, heads: int, dims: tuple[int, int]) -> torch.Tensor | None:
    """(n,) int64, sorted, on the CPU: tokens to compute for all heads; None where all of them are cheap enough.

    The first and the last token are always among them.

    Args:
        heads: of the query.
        dims: of query and key, and of value and output.
    """
    tokens = sequences.q_tokens
    pairs = int((sequences.q_lens.long() * sequences.kv_lens).sum())
    flops, elements = 2.0 * pairs * heads * sum(dims), float(tokens * heads * dims[1])
    share = min(FLOPS / flops, ELEMENTS / elements)
    if share >= 1:
        return None
    count = min(max(int(tokens * share), AT_LEAST), tokens)
    chosen = torch.randperm(tokens, generator=make.generator("reference rows"))[:count]
    ends = torch.tensor([0, tokens - 1])
    return torch.cat((chosen, ends)).unique()
