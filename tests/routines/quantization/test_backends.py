"""What FlashInfer's quantisers need of a machine, and what is said where it is not there."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Status
from flashinfer_perf.routines.quantization import backends
from tests.fakes import HOPPER
from tests.routines.harness import case_of, records_of, routine_named, small

NAMES = ["mxfp8_quantize", "mxfp4_quantize", "nvfp4_quantize", "nvfp4_batched_quantize"]
WITH_DSL = NAMES[:3]
B200 = Machine("cuda:0", "NVIDIA B200", (10, 0))

each = pytest.mark.parametrize("name", NAMES)


def unmet(name, backend, machine, **flags):
    case = replace(case_of(name).flags, **flags)
    found = routine_named(name).backends[backend].unmet(machine, case)
    return found and found[1]


@each
@pytest.mark.parametrize("found", [(7, 5), (8, 0), (8, 9), (9, 0)])
def test_before_blackwell_the_kernels_write_nothing_and_that_is_the_reason(name, found):
    machine = replace(B200, compute_capability=found)
    assert unmet(name, "cuda", machine) == (
        "before compute capability 10.0 FlashInfer's quantizers launch and write nothing, and this GPU has "
        f"{found[0]}.{found[1]}; use --backends torch"
    )
    if name in WITH_DSL:
        assert unmet(name, "cute-dsl", machine) == (
            f"it needs compute capability 10.0 or newer, and this GPU has {found[0]}.{found[1]}"
        )


@each
@pytest.mark.parametrize("found", [(10, 0), (10, 3), (11, 0), (12, 0), (12, 1)])
def test_from_blackwell_on_they_run(name, found):
    machine = replace(B200, compute_capability=found)
    assert unmet(name, "cuda", machine) is None
    if name in WITH_DSL:
        assert unmet(name, "cute-dsl", machine) is None


@each
def test_a_cpu_is_told_what_it_lacks(name):
    reason = "it needs a CUDA GPU of compute capability 10.x, 11.x or 12.x, and this run is on 'cpu'"
    assert unmet(name, "cuda", Machine("cpu", "cpu")) == reason


@each
def test_on_hopper_it_is_skipped_with_its_reason_and_torch_runs(name, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.run.placement.find_machine", lambda device: HOPPER)
    records = {r.backend: r for r in records_of(case_of(name, f"{small(name)} --backends cuda torch"))}
    assert records["cuda"].status is Status.UNSUPPORTED
    assert "launch and write nothing, and this GPU has 9.0" in records["cuda"].reason
    assert records["torch"].status is Status.OK


def test_the_batched_quantiser_has_no_cute_dsl():
    assert list(routine_named("nvfp4_batched_quantize").backends) == ["cuda", "triton", "torch"]
    flashinfer = pytest.importorskip("flashinfer")
    assert "backend" not in inspect.signature(flashinfer.nvfp4_batched_quantize).parameters


@pytest.mark.parametrize("name", WITH_DSL)
def test_the_dsl_counts_elements_in_32_bits(name):
    size = {"m": 1 << 16, "k": 1 << 15}
    assert "2^31 or more; use --backends cuda" in unmet(name, "cute-dsl", B200, **size)
    assert unmet(name, "cuda", B200, **size) is None
    assert unmet(name, "cute-dsl", B200, m=(1 << 16) - 1, k=1 << 15) is None


def test_every_entry_of_a_batch_counts():
    assert backends.elements(SimpleNamespace(batch_size=3, m=4, k=5)) == 60
    assert backends.elements(SimpleNamespace(batch_size=None, m=4, k=5)) == 20


def test_the_installed_librarys_kernels_are_still_guarded():
    """A release that compiles them for older GPUs would make the reason untrue: then this test fails."""
    flashinfer = pytest.importorskip("flashinfer")
    folder = Path(flashinfer.__file__).parent / "data" / "csrc" / "nv_internal" / "tensorrt_llm" / "kernels"
    source = (folder / "quantization.cuh").read_text()
    for kernel in ("quantize_with_block_size(", "quantize_with_block_size_tma("):
        body = source[source.index(f"\n{kernel}") :]
        opening = body[body.index(") {") : body.index(") {") + 120]
        assert "#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 1000)" in opening
