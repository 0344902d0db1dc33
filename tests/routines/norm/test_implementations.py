"""FlashInfer's two implementations behind one name: which one runs, and what is left behind."""

from __future__ import annotations

import pytest
import torch

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.record import Status
from flashinfer_perf.core.routine import declared_temporarily
from flashinfer_perf.routines import all_routines
from flashinfer_perf.routines.norm import backends
from tests.contract import contract, covers
from tests.routines.harness import assert_passes, case_of, launch_of, records_of, run, unconditional
from tests.routines.norm import kernels
from tests.routines.norm.test_rmsnorm import reached

norm = pytest.importorskip("flashinfer").norm

CASE = "--batch_size 3 --hidden_size 40"
WITH_TWO = [name for name, routine in all_routines().items() if routine.family == "norm" and "fp4" not in name]
GPU = torch.device("cuda:0")


@covers("fused_add_rmsnorm_quant", "cute-dsl")
def test_cute_dsl_of_fused_add_rmsnorm_quant_calls_what_cuda_calls():
    calls = []
    for backend in ("cuda", "cute-dsl"):
        with contract("flashinfer.norm.fused_add_rmsnorm_quant") as kernel:
            launch, _ = launch_of("fused_add_rmsnorm_quant", backend, f"{CASE} --scale 0.5 --enable_pdl")
            launch()
        calls.append({name: getattr(value, "shape", value) for name, value in kernel.call.items()})
        assert launch.resolved_backend == backend
    assert calls[0] == calls[1]


@pytest.mark.parametrize("name", WITH_TWO)
@pytest.mark.parametrize(("backend", "value"), [("cuda", True), ("cute-dsl", False)])
@pytest.mark.parametrize("before", [True, False])
def test_the_state_sets_the_switch_and_puts_it_back(monkeypatch, name, backend, value, before):
    monkeypatch.setattr(norm, "_USE_CUDA_NORM", before)
    with all_routines()[name].backends[backend].state():
        assert norm._USE_CUDA_NORM is value
    assert norm._USE_CUDA_NORM is before


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("state", [backends.cuda_kernels, backends.cute_dsl_kernels])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=repr)
def test_the_switch_is_put_back_when_something_raises(monkeypatch, state, before, error):
    monkeypatch.setattr(norm, "_USE_CUDA_NORM", before)
    with pytest.raises(type(error)), state():
        raise error
    assert norm._USE_CUDA_NORM is before


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("state", "value"), [(backends.cuda_kernels, True), (backends.cute_dsl_kernels, False)])
def test_the_engine_puts_it_back_when_prepare_raises(monkeypatch, state, value, before):
    monkeypatch.setattr(norm, "_USE_CUDA_NORM", before)
    seen = []

    def prepare(case, problem):
        seen.append(norm._USE_CUDA_NORM)
        raise RuntimeError("cannot be prepared")

    with declared_temporarily():
        all_routines()["rmsnorm"].backend("failing", state=state)(prepare)
        record = run("rmsnorm", CASE, "failing")
    assert record.status is Status.FAILED
    assert seen == [value]
    assert norm._USE_CUDA_NORM is before


@pytest.mark.parametrize("order", ["cuda cute-dsl", "cute-dsl cuda"])
def test_both_run_in_one_process(order):
    """Each in its own kernels, whichever comes first; the check and the timing included."""
    with (
        kernels.flashinfer_without_gpu(reached) as ran,
        unconditional("rmsnorm", "cuda"),
        unconditional("rmsnorm", "cute-dsl"),
    ):
        records = records_of(case_of("rmsnorm", f"{CASE} --backends {order} torch"))
    for record in records:
        assert_passes(record)
    first, second = order.split()
    half = len(ran) // 2
    assert half > 2
    assert ran == [first] * half + [second] * half
    assert [record.resolved_backend for record in records] == [first, second, "torch"]


# ---- What the library would do silently is refused ----


@pytest.mark.parametrize("missing", ["_USE_CUDA_NORM", "_use_cuda_norm"])
@pytest.mark.parametrize("state", [backends.cuda_kernels, backends.cute_dsl_kernels])
def test_a_library_without_the_switch_is_unsupported(monkeypatch, missing, state):
    monkeypatch.delattr(norm, missing)
    with pytest.raises(Unsupported, match=r"flashinfer-python \S+ has no flashinfer.norm._USE_CUDA_NORM"), state():
        pass


def test_a_library_imported_without_the_dsl_is_unsupported(monkeypatch):
    """FLASHINFER_USE_CUDA_NORM=1, or a DSL that cannot be imported: the names are not there."""
    monkeypatch.delattr(norm, "rmsnorm_cute")
    monkeypatch.setattr(norm, "_USE_CUDA_NORM", True)
    with pytest.raises(Unsupported, match="FLASHINFER_USE_CUDA_NORM=1 is set"), backends.cute_dsl_kernels():
        pass
    assert norm._USE_CUDA_NORM is True
    with backends.cuda_kernels():
        assert norm._USE_CUDA_NORM is True


def test_the_engine_calls_that_unsupported(monkeypatch):
    monkeypatch.delattr(norm, "rmsnorm_cute")
    with unconditional("rmsnorm", "cute-dsl"):
        record = run("rmsnorm", CASE, "cute-dsl")
    assert record.status is Status.UNSUPPORTED
    assert "CuTe-DSL norms" in record.reason


def test_a_gpu_that_the_dsl_cannot_compile_for_is_unsupported(monkeypatch):
    """There the library takes its CUDA kernels, though its switch says otherwise."""
    monkeypatch.setattr(norm, "_cute_dsl_supports_arch", lambda major, minor: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 7))
    with backends.cute_dsl_kernels(), pytest.raises(Unsupported) as refusal:
        backends.resolved("cute-dsl", GPU)
    assert "would run its cuda kernels in place of cute-dsl" in str(refusal.value)
    assert "compute capability 10.7" in str(refusal.value)
    with backends.cuda_kernels():
        assert backends.resolved("cuda", GPU) == "cuda"


def test_the_librarys_own_dispatcher_is_believed(monkeypatch):
    monkeypatch.setattr(norm, "_cute_dsl_supports_arch", lambda major, minor: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with backends.cute_dsl_kernels():
        assert backends.resolved("cute-dsl", GPU) == "cute-dsl"
    with backends.cuda_kernels():
        assert backends.resolved("cuda", GPU) == "cuda"


def test_rows_that_do_not_fit_into_shared_memory_are_unsupported(monkeypatch):
    class Properties:
        shared_memory_per_block_optin = 227 << 10

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)

    class Row:
        device = GPU

        def __init__(self, hidden):
            self.shape = (1, hidden)

    backends.require_row_in_shared_memory(Row(58_000))
    with pytest.raises(Unsupported, match="hidden_size 65536 takes 262272 bytes, and a block has 232448 here"):
        backends.require_row_in_shared_memory(Row(65_536))
