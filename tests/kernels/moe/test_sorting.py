"""How much room sorting takes; that it sorts is shown with the whole mixture, ``test_experts``."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.kernels.moe.sorting import chunk_of, most_blocks


def test_no_load_has_more_blocks():
    for pairs, experts, rows in itertools.product((1, 5, 8), (1, 2, 3), (1, 2, 4)):
        loads = (load for load in itertools.product(range(pairs + 1), repeat=experts) if sum(load) <= pairs)
        needed = max(sum(-(-count // rows) for count in load) for load in loads)
        assert needed <= most_blocks(pairs, experts, rows) <= needed + experts


@pytest.mark.parametrize(("pairs", "chunk"), [(1, 128), (129, 256), (1 << 20, 2048)])
def test_few_pairs_are_taken_at_once(pairs, chunk):
    assert chunk_of(pairs) == chunk
