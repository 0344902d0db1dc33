from __future__ import annotations

import torch

from flashinfer_perf.routines.moe_comm.routing import Experts, draw_experts, draw_weights, unusual_routings
from flashinfer_perf.run.factory import TensorFactory
from tests.routines.harness import GIBIBYTE
from tests.routines.moe_comm.ranks import Rank
from tests.routines.moe_comm.test_traffic import flags_of

CASE = flags_of(num_tokens=200, num_experts=16, top_k=3)


def factory(rank, size):
    return TensorFactory("cpu", 42, GIBIBYTE, Rank(rank, size))


def test_ranks_that_own_a_tokens_experts():
    experts = Experts(6, 3)
    ids = torch.tensor([[0, 1], [1, 5], [4, 3]])
    assert experts.wanted(ids).tolist() == [[True, False, False], [True, False, True], [False, True, True]]
    assert experts.owned_by(1, ids).tolist() == [[False, False], [False, False], [False, True]]


def test_ranks_have_routings_and_weights_of_their_own():
    for draw in (draw_experts, draw_weights):
        assert not torch.equal(draw(CASE, factory(0, 2)), draw(CASE, factory(1, 2)))


def test_a_tokens_experts_are_different_and_all_are_used():
    for ids in (draw_experts(CASE, factory(0, 4)), *unusual_routings(CASE, factory(0, 4)).values()):
        assert ids.dtype is torch.int32
        assert ids.shape == (200, 3)
        assert all(len(set(row)) == 3 for row in ids.tolist())
    assert len(draw_experts(CASE, factory(0, 4)).unique()) == 16


def test_unusual_routings_leave_ranks_without_a_token():
    found = unusual_routings(CASE, factory(0, 4))
    assert list(found) == ["uneven", "all to rank 0", "all to rank 3"]
    owner = Experts(16, 4)
    assert owner.wanted(found["all to rank 0"]).sum(dim=0).tolist() == [200, 0, 0, 0]
    assert owner.wanted(found["all to rank 3"]).sum(dim=0).tolist() == [0, 0, 0, 200]
    counts = owner.wanted(found["uneven"]).sum(dim=0)
    assert counts[0] > 1.3 * counts[3] > 0


def test_experts_that_are_too_few_for_all_are_joined_by_others():
    case = flags_of(num_tokens=20, num_experts=8, top_k=3)
    counts = Experts(8, 4).wanted(unusual_routings(case, factory(0, 4))["all to rank 0"]).sum(dim=0)
    assert counts[0] == 20
    assert 0 < counts[1:].sum() <= 20
