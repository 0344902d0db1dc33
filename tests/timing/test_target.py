from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flashinfer_perf.run.launch import Copies, Launch
from flashinfer_perf.run.ranks import Ranks, SingleRank
from flashinfer_perf.timing.cache import Warm
from flashinfer_perf.timing.target import Target, poison_outputs
from tests.fakes import on_two_ranks


def kernel(x: torch.Tensor, out: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    return out.copy_(x)


def target_of(launch: Launch, restores: Sequence[Any] = (), cache: Any = None, ranks: Any = None) -> Target:
    return Target(launch, restores, cache or Warm(), ranks or SingleRank())


def launch() -> Launch:
    tensors = {name: torch.full((3,), value) for name, value in (("x", 1.0), ("out", 2.0), ("residual", 3.0))}
    return Launch(kernel, kwargs=tensors, mutates=("out", "residual"))


def test_before_a_call_inputs_are_restored_then_the_cache_prepared_then_the_ranks_meet():
    """The cache last of the two: restoring an input brings it into the cache. And nobody starts early."""
    log: list[tuple[str, float]] = []
    original = torch.full((3,), 7.0)
    private = launch()

    class Cache(Warm):
        def prepare(self) -> None:
            log.append(("cache", float(private.kwargs["residual"][0])))

    class Ranks(SingleRank):
        def barrier(self) -> None:
            log.append(("barrier", 0.0))

    target_of(private, [(private.kwargs["residual"], original)], Cache(), Ranks()).make_ready()
    assert log == [("cache", 7.0), ("barrier", 0.0)]
    assert private.kwargs["residual"].tolist() == [7.0] * 3


def test_views_of_one_copy_are_restored_one_by_one():
    pool = torch.arange(8.0).view(4, 2)
    copies = Copies()
    private = Launch(lambda k, v: None, kwargs={"k": pool[:, 0], "v": pool[:, 1]}, mutates=("k", "v")).on_copies(copies)
    for tensor in private.written():
        tensor.fill_(-1)
    target_of(private, copies.pairs).make_ready()
    assert [tensor.tolist() for tensor in private.written()] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_outputs_that_are_no_inputs_are_poisoned_and_nothing_else_is():
    private = launch()
    target_of(private, [(private.kwargs["residual"], torch.zeros(3))]).poison_outputs()
    assert bool(private.kwargs["out"].isnan().all())
    assert private.kwargs["residual"].tolist() == [3.0] * 3
    assert private.kwargs["x"].tolist() == [1.0] * 3


def test_what_a_call_returned_on_memory_of_its_own_is_poisoned_and_a_view_of_an_argument_is_not():
    private, made = launch(), torch.zeros(3)
    x = private.kwargs["x"]
    poison_outputs(private, [], (made, x[1:]))
    assert made.isnan().all()
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_a_sample_counts_where_it_counts_on_every_rank():
    def work(ranks: Ranks) -> list[bool]:
        target = target_of(launch(), ranks=ranks)
        return [target.everywhere(True), target.everywhere(ranks.rank == 0)]

    assert on_two_ranks(work) == [[True, False]] * 2
    assert target_of(launch()).everywhere(True)


def test_outputs_have_their_names():
    private = launch()
    assert list(target_of(private).outputs_of(private())) == ["out", "residual"]
