"""``bench_gpu_time``, as the documents use it; on CPU tensors here, on a GPU in tests/gpu/test_clocks.py."""

from __future__ import annotations

import statistics

import pytest
import torch

from flashinfer_perf.testing import RENAMED, bench_gpu_time


def kernel(q: torch.Tensor, k: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    return (q @ k.T) * scale


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 16), torch.randn(32, 16)


def test_median_and_standard_deviation_are_unpacked(tensors):
    result = bench_gpu_time(
        kernel, args=tensors, kwargs={"scale": 0.5}, enable_cupti=True, num_iters=30, dry_run_iters=5
    )
    median_time, std_time = result
    assert len(result.samples_ms) == 30
    assert median_time == pytest.approx(statistics.median(result.samples_ms))
    assert std_time == pytest.approx(statistics.pstdev(result.samples_ms))


def test_what_was_really_done_is_known(tensors):
    measurement = bench_gpu_time(kernel, args=tensors).measurement
    assert (measurement.timer, measurement.cache_policy, measurement.dry_runs) == ("cpu", "warm", 5)


def test_cold_means_swept(tensors):
    assert bench_gpu_time(kernel, args=tensors, cold_l2_cache=True, num_iters=2).measurement.cache_policy.startswith(
        "cold"
    )


def test_a_closure_without_tensors_can_be_timed_cold():
    calls = []
    result = bench_gpu_time(lambda: calls.append(1), cold_l2_cache=True, num_iters=3, dry_run_iters=2)
    assert len(calls) == 5
    assert result.measurement.cache_policy.startswith("cold")


def test_rotating_nothing_is_refused_with_advice():
    with pytest.raises(ValueError, match="pass them in args or kwargs, not in a closure"):
        bench_gpu_time(lambda: None, rotate_buffers=True)


@pytest.mark.parametrize("name", RENAMED)
def test_keywords_of_flashinfers_function_are_refused_with_the_name_to_use(name: str, tensors):
    with pytest.raises(TypeError) as caught:
        bench_gpu_time(kernel, args=tensors, **{name: 1})
    assert f"{name!r}; use {RENAMED[name]}" in str(caught.value)


def test_an_unknown_keyword_is_refused(tensors):
    with pytest.raises(TypeError, match="no argument 'num_itres'"):
        bench_gpu_time(kernel, args=tensors, num_itres=3)


@pytest.mark.parametrize("numbers", [{"num_iters": 0}, {"dry_run_iters": -1}])
def test_no_iterations_are_refused(numbers, tensors):
    with pytest.raises(ValueError, match="num_iters must be at least 1"):
        bench_gpu_time(kernel, args=tensors, **numbers)


def test_what_the_function_raises_comes_through_and_the_next_call_works(tensors):
    calls = []

    def breaks(q: torch.Tensor) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        bench_gpu_time(breaks, args=(tensors[0],), num_iters=10, dry_run_iters=1)
    assert len(bench_gpu_time(kernel, args=tensors, num_iters=2).samples_ms) == 2


def test_gradients_are_off(tensors):
    seen = []
    bench_gpu_time(lambda x: seen.append(torch.is_grad_enabled()), args=(tensors[0],), num_iters=1)
    assert not any(seen)
