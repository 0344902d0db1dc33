"""The CUDA clocks on a GPU. How accurate they are is measured by benchmarks/clock_fidelity.py; here, that they work."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flashinfer_perf.device.machine import find_machine
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.testing import bench_gpu_time
from flashinfer_perf.timing.activity import why_unavailable
from flashinfer_perf.timing.bias import clock_bias
from flashinfer_perf.timing.cache import cache_policy
from flashinfer_perf.timing.cuda_event import CudaEventTimer
from flashinfer_perf.timing.cuda_graph import CudaGraphTimer, NotCapturable
from flashinfer_perf.timing.cupti import CuptiTimer
from flashinfer_perf.timing.target import Target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

CLOCKS: dict[str, Callable[[], Any]] = {
    "event": CudaEventTimer,
    "graph": lambda: CudaGraphTimer(0),
    "cupti": lambda: CuptiTimer(in_graph=False),
    "cupti graph": lambda: CuptiTimer(in_graph=True),
}
every_clock = pytest.mark.parametrize("name", CLOCKS)


@pytest.fixture(autouse=True)
def needs_cupti(request: pytest.FixtureRequest):
    name = request.node.callspec.params.get("name", "") if hasattr(request.node, "callspec") else ""
    if "cupti" in name and why_unavailable():
        pytest.skip(why_unavailable())


def target(launch: Launch, cache: str = "warm", restores: Any = ()) -> Target:
    return Target(launch, restores, cache_policy(cache, find_machine("cuda")), SingleRank())


def readings(timer: Any, at: Target, count: int = 11) -> list[float]:
    timer.open(at)
    try:
        timer.sample(3)
        return [sum(phases) * 1e3 for phases in timer.sample(count)]
    finally:
        timer.close()


def waiting(stamps: torch.Tensor, microseconds: float) -> Launch:
    from flashinfer_perf.kernels import probes

    return Launch(probes.wait, kwargs={"stamps": stamps, "microseconds": microseconds})


@every_clock
@pytest.mark.parametrize("microseconds", [5, 200])
def test_a_spin_reads_what_it_lasts(name: str, microseconds: float):
    stamps = torch.zeros(2, dtype=torch.int64, device="cuda")
    median = statistics.median(readings(CLOCKS[name](), target(waiting(stamps, microseconds))))
    own = int(stamps[1] - stamps[0]) / 1e3
    assert own - 0.5 <= median <= own + 1.5, "half a tick of the events, and the largest bias allowed"


@every_clock
def test_launching_is_not_in_the_number(name: str):
    """A call that takes the host a quarter of a millisecond to enqueue."""
    x = torch.zeros(1, device="cuda")

    def slow_to_launch(x: torch.Tensor) -> None:
        for _ in range(2):
            x.add_(1)
            sum(range(5000))

    median = statistics.median(readings(CLOCKS[name](), target(Launch(slow_to_launch, kwargs={"x": x}))))
    assert median < 20


@pytest.mark.parametrize("name", ["event", "cupti"])
def test_a_call_that_waits_for_the_device_is_timed_ungated_and_said_to_be(name: str):
    x = torch.ones(1000, device="cuda")
    timer = CLOCKS[name]()
    timer.open(target(Launch(lambda x: (x + 1).sum().item(), kwargs={"x": x}, returns=("out",))))
    try:
        assert len(timer.sample(3)) == 3
        assert timer.facts["gate"].startswith("ungated")
    finally:
        timer.close()


@pytest.mark.parametrize("name", ["graph", "cupti graph"])
def test_a_call_that_waits_for_the_device_cannot_be_captured_and_the_device_survives(name: str):
    x = torch.ones(1000, device="cuda")
    timer = CLOCKS[name]()
    with pytest.raises(NotCapturable):
        timer.open(target(Launch(lambda x: (x + 1).sum().item(), kwargs={"x": x}, returns=("out",))))
    timer.close()
    assert float((x + 1).sum()) == 2000


@every_clock
def test_after_a_call_that_raises_the_clock_works_again(name: str):
    x = torch.ones(1000, device="cuda")
    calls = []

    def breaks(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyError("in the middle")
        return x + 1

    if "graph" not in name:
        with pytest.raises(KeyError):
            readings(CLOCKS[name](), target(Launch(breaks, kwargs={"x": x}, returns=("out",))))
    assert min(readings(CLOCKS[name](), target(Launch(torch.add, kwargs={"input": x, "other": x})))) > 0


@every_clock
@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_inputs_that_a_call_changes_are_restored_before_each(name: str, cache: str):
    original = torch.zeros(1 << 20, device="cuda")
    copy = original.clone()
    launch = Launch(lambda x: x.add_(1), kwargs={"x": copy}, mutates=("x",))
    timer = CLOCKS[name]()
    timer.open(target(launch, cache, [(copy, original)]))
    try:
        timer.sample(4)
        assert float(timer.last_outputs()["x"].max()) == 1
    finally:
        timer.close()


@every_clock
@pytest.mark.parametrize("own", [False, True], ids=["argument", "returned"])
def test_what_the_warm_up_wrote_does_not_pass_for_the_output_of_a_timed_call(name: str, own: bool):
    """A call that writes its output until the clock is open, and never while it is timed."""
    x, out = torch.ones(1000, device="cuda"), torch.empty(1000, device="cuda")
    made = torch.empty(1000, device="cuda")
    opening = [True]

    def stops_writing(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        result = made if own else out
        if opening[0] and not torch.cuda.is_current_stream_capturing():
            result.copy_(x)
        x.add_(0)  # a kernel to be timed
        return result

    outputs = {"returns": ("made",)} if own else {"mutates": ("out",)}
    timer = CLOCKS[name]()
    timer.open(target(Launch(stops_writing, kwargs={"x": x, "out": out}, **outputs)))
    try:
        opening[0] = False
        timer.sample(3)
        assert all(bool(tensor.isnan().all()) for tensor in timer.last_outputs().values())
    finally:
        timer.close()


def test_the_graph_rotates_copies_that_share_what_the_originals_share():
    pool = torch.zeros(2, 1 << 18, device="cuda")
    launch = Launch(lambda k, v: k + v, kwargs={"k": pool[0], "v": pool[1]}, returns=("out",))
    timer = CudaGraphTimer(0)
    timer.open(target(launch, "cold"))
    try:
        assert "sets of 2 MiB rotated" in timer.cache_description
        for rotated in timer._sets:
            k, v = rotated.kwargs["k"], rotated.kwargs["v"]
            assert v.data_ptr() - k.data_ptr() == 1 << 20
        assert len({rotated.kwargs["k"].data_ptr() for rotated in timer._sets}) == len(timer._sets)
    finally:
        timer.close()


@every_clock
def test_an_operand_of_eight_bytes_does_not_hang(name: str):
    x = torch.zeros(1, dtype=torch.int64, device="cuda")
    assert len(readings(CLOCKS[name](), target(Launch(torch.neg, kwargs={"input": x}, returns=("out",)), "cold"))) == 11


@every_clock
def test_a_cold_copy_is_slower_than_a_warm_one(name: str):
    from flashinfer_perf.kernels import probes

    source = torch.rand(1 << 21, device="cuda")
    launch = Launch(probes.copy, kwargs={"source": source, "target": torch.empty_like(source)}, mutates=("target",))
    cold, warm = (statistics.median(readings(CLOCKS[name](), target(launch, cache))) for cache in ("cold", "warm"))
    assert cold > 1.15 * warm


def test_cupti_tells_kernels_span_and_busy():
    if why_unavailable():
        pytest.skip(why_unavailable())
    x = torch.rand(1 << 20, device="cuda")
    timer = CuptiTimer(in_graph=False)
    timer.open(target(Launch(lambda x: (x + 1).mul_(2), kwargs={"x": x}, returns=("out",))))
    try:
        spans = [phases[0] for phases in timer.sample(5)]
        assert timer.facts["kernels"] == 2
        assert len(timer.facts["kernel_names"]) == 2
        assert 0 < timer.facts["busy"] <= statistics.median(spans)
    finally:
        timer.close()


def test_the_bias_of_every_clock_is_small_and_positive():
    for name, numbers in clock_bias(find_machine("cuda"), True).items():
        assert 0 < numbers["spin_bias_us"] < 3, name


@pytest.mark.parametrize("options", [{}, {"enable_cupti": False}, {"rotate_buffers": True}, {"cold_l2_cache": False}])
def test_bench_gpu_time_on_gpu_tensors(options: dict[str, bool]):
    a = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)
    result = bench_gpu_time(torch.matmul, args=(a, a), num_iters=10, **options)
    median_ms, std_ms = result
    assert 0 < median_ms < 1
    assert std_ms >= 0
    assert len(result.samples_ms) == 10
    assert result.measurement.cache_policy.startswith("warm" if options == {"cold_l2_cache": False} else "cold")
