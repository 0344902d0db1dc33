"""What needs no GPU: sets of buffers, and what is refused."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.run.launch import Copies, Launch, Phase, storages_in
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.timing.cache import Warm
from flashinfer_perf.timing.cuda_graph import NotCapturable, refuse_what_cannot_be_captured, rotated
from flashinfer_perf.timing.target import Target


def append(cache: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, plan: torch.Tensor, out: torch.Tensor) -> None:
    cache[0].add_(x)
    cache[1].sub_(x)
    out.copy_(cache[0])


def target() -> tuple[Target, torch.Tensor]:
    """A launch on copies of the pool that it mutates, as the engine makes it, and the problem's own pool."""
    pool = torch.arange(6.0).view(3, 2)
    kwargs = {"cache": pool.unbind(1), "x": torch.ones(3), "plan": torch.ones(3), "out": torch.empty(3)}
    launch = Launch(append, kwargs=kwargs, mutates=("cache", "out"), scratch=("plan",))
    copies = Copies()
    private = launch.on_copies(copies, ("cache",))
    return Target(private, copies.pairs, Warm(), SingleRank()), pool


def test_every_set_has_buffers_of_its_own_but_for_scratch():
    made, pool = target()
    launches, _ = rotated(made, 3)
    assert launches[0] is made.launch
    addresses = [storages_in(list(launch.data())) for launch in launches] + [storages_in(pool)]
    assert sum(map(len, addresses)) == len(set().union(*addresses))
    assert len({launch.arguments()["plan"].data_ptr() for launch in launches}) == 1
    for launch in launches:
        assert len(storages_in(launch.arguments()["cache"])) == 1  # K and V of a set share its pool


def test_every_set_is_restored_from_the_problems_own_inputs():
    made, pool = target()
    launches, restores = rotated(made, 3)
    assert len(restores) == 3 * 2
    for _ in range(2):
        for launch in launches:
            launch()
        for copy, original in restores:
            assert storages_in(original) == storages_in(pool)
            copy.copy_(original)
    for launch in launches:
        k, v = launch.arguments()["cache"]
        assert torch.equal(k, pool[:, 0])
        assert torch.equal(v, pool[:, 1])
        launch()
        assert launch.outputs(None)["out"].tolist() == [1, 3, 5]
    assert pool.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_one_set_is_the_launch_itself():
    made, _ = target()
    launches, restores = rotated(made, 1)
    assert launches == [made.launch]
    assert restores == list(made.restores)


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (Launch(lambda: None, host_sync=True), "waits for the device"),
        (Launch(lambda: None, host_sync=True, no_graph="shuffle=True is slow."), r"^shuffle=True is slow\.$"),
        (Launch(phases=(Phase("a", lambda _: None),)), "phases"),
    ],
)
def test_what_no_graph_can_hold_is_refused_with_the_reason(launch: Launch, said: str):
    with pytest.raises(NotCapturable, match=said):
        refuse_what_cannot_be_captured(launch)
    assert refuse_what_cannot_be_captured(Launch(lambda: None)) is None
