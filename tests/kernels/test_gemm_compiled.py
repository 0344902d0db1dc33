"""What the compiler makes of the group-wise FP8 products for Hopper, which needs no GPU."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from flashinfer_perf.kernels import gemm_fp8_groupwise as module

SHARED_BYTES = 227 << 10
"""Of a program, at most, on compute capability 9.0."""


class Offline:
    """Triton's driver for a Hopper GPU that is not there: it can compile."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch):
    """Calls compile the kernels that they would launch; gives what was compiled."""
    found = []

    def instead_of(kernel):
        launch = lambda grid: lambda *args, **options: found.append(kernel.warmup(*args, grid=grid, **options))  # noqa: E731
        return type("Kernel", (), {"__getitem__": lambda self, grid: launch(grid)})()

    monkeypatch.setattr(driver, "_active", Offline())
    monkeypatch.setattr(module, "gemm_hopper", instead_of(module.gemm_hopper))
    monkeypatch.setattr(module, "gemm_tiles", instead_of(module.gemm_tiles))
    monkeypatch.setattr(module, "_capability", lambda device: module.HOPPER)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))
    return found


def multiply(rows: int, dtype: torch.dtype) -> None:
    """Two groups of so many rows, n of 256 and k of 512."""
    a, b = torch.zeros(2 * rows, 512), torch.zeros(2, 256, 512)
    scales = torch.ones(2 * rows, 4), torch.ones(2, 2, 4)
    m_indptr, out = torch.tensor([0, rows, 2 * rows], dtype=torch.int32), torch.empty(2 * rows, 256, dtype=dtype)
    operands = (operand.to(torch.float8_e4m3fn) for operand in (a, b))
    module.gemm_fp8_groupwise(*operands, *scales, m_indptr, out, "K")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hoppers_kernel_loads_by_the_copy_engine_and_multiplies_in_warpgroups(compiled, dtype):
    multiply(200, dtype)
    (kernel,) = compiled
    ptx = kernel.asm["ptx"]
    assert kernel.metadata.shared <= SHARED_BYTES
    assert "cp.async.bulk.tensor" in ptx
    # Four products of 32 of a block's 128 of k, in each of three parts
    assert len(re.findall(r"wgmma\.mma_async\S+\.m64n128k32\.f32\.e4m3\.e4m3", ptx)) == 3 * 4
    assert ".local" not in ptx, "nothing is spilt"


@pytest.mark.parametrize(("rows", "dtype"), [(16, torch.bfloat16), (200, torch.float32)])
def test_the_kernel_for_any_gpu_loads_wide_words(compiled, rows, dtype):
    multiply(rows, dtype)
    (kernel,) = compiled
    ptx = kernel.asm["ptx"]
    assert "cp.async.cg.shared.global" in ptx, "loads overlap with products"
    assert re.search(r"(wgmma|mma\.sync)\S+e4m3", ptx)
    assert ".local" not in ptx
