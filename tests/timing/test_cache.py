from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.timing import cache
from flashinfer_perf.timing.cache import FLUSH_FACTOR, Swept, Warm, cache_policy

MIB = 1 << 20
CPU = Machine("cpu", "cpu", last_level_cache_bytes=MIB)


class Touched:
    """Counts bytes that fills and sums of tensors touch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written = self.read = 0
        zero, add = torch.Tensor.zero_, torch.sum

        def zero_(tensor: torch.Tensor) -> torch.Tensor:
            self.written += tensor.nbytes
            return zero(tensor)

        def sum_(tensor: torch.Tensor, **kwargs: object) -> torch.Tensor:
            self.read += tensor.nbytes
            return add(tensor, **kwargs)  # type: ignore[call-overload,no-any-return]

        monkeypatch.setattr(torch.Tensor, "zero_", zero_)
        monkeypatch.setattr(cache.torch, "sum", sum_)  # the lazy module keeps what it has looked up


def test_a_warm_cache_is_left_alone():
    assert Warm().description == "warm"
    assert Warm().prepare() is None
    assert (Warm.cold, Warm.cache_bytes) == (False, 0)


def test_a_cold_cache_is_swept_with_more_than_its_size_before_each_call(monkeypatch: pytest.MonkeyPatch):
    policy = Swept(CPU)
    touched = Touched(monkeypatch)
    policy.prepare()
    assert touched.written == touched.read == FLUSH_FACTOR * MIB > MIB
    policy.prepare()
    assert touched.written == 2 * FLUSH_FACTOR * MIB


def test_what_was_done_is_described():
    policy = Swept(CPU)
    assert policy.description == "cold: 2 MiB written, then as much read, before each call"
    assert (policy.cold, policy.cache_bytes) == (True, MIB)


def test_a_cache_of_unknown_size_is_assumed_to_be_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "UNKNOWN_CACHE_BYTES", 3 * MIB)
    policy = Swept(Machine("cpu", "cpu"))
    assert policy.cache_bytes == 3 * MIB
    assert policy.description.startswith("cold: 6 MiB")


@pytest.mark.parametrize(("choice", "kind"), [(None, Warm), ("warm", Warm), ("cold", Swept)])
def test_on_a_cpu_the_default_is_warm(choice: str | None, kind: type):
    assert isinstance(cache_policy(choice, CPU), kind)


@pytest.mark.parametrize(("choice", "is_cold"), [(None, True), ("cold", True), ("warm", False)])
def test_on_a_gpu_the_default_is_cold(choice: str | None, is_cold: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "Swept", lambda machine: "swept")
    policy = cache_policy(choice, Machine("cuda:0", "GPU", (9, 0), MIB))
    assert (policy == "swept") is is_cold
