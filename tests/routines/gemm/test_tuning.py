"""--autotune: FlashInfer's own tuner, with runners that need no GPU."""

from __future__ import annotations

from unittest import mock

import pytest

from flashinfer_perf.core.record import Status
from flashinfer_perf.routines import all_routines
from flashinfer_perf.routines.gemm import tuning
from tests.contract import contract
from tests.fakes import texts_in
from tests.routines.harness import assert_passes, case_of, launch_of, records_of, run, unconditional

pytest.importorskip("flashinfer")
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig
from flashinfer.fused_moe.utils import get_hybrid_num_tokens_buckets, map_to_hybrid_bucket_uncapped

from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.sinks.console import perf_lines
from flashinfer_perf.sinks.row import row_of

CASE = "--batch_size 2 --m 4 --n 16 --k 32"
BY_ROWS = TuningConfig(
    dynamic_tensor_specs=(DynamicTensorSpec((0,), (-2,), get_hybrid_num_tokens_buckets, map_to_hybrid_bucket_uncapped),)
)
"""As the library tunes its GEMMs: for many numbers of rows, and a call finds the next larger one's tactic."""


class CublasFp8GemmRunner(TunableRunner):
    """Right, with three tactics; remembers those that ran outside of the tuner's measurements."""

    ran: list = []  # noqa: RUF012

    def get_valid_tactics(self, inputs, profile):
        return [0, 1, 2]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        a, b, a_scale, b_scale, out = inputs
        if not do_preparation:
            self.ran.append(tactic)
        out.copy_(a.float() @ b.float() * a_scale * b_scale)
        return out


class CudnnFp8GemmRunner(CublasFp8GemmRunner):
    pass


@pytest.fixture
def measured(monkeypatch):
    """The shapes of a at which tactics were measured; 1 is the fastest, and of the runners cuDNN's."""
    shapes: list[tuple[int, ...]] = []

    def profile(self, runner, inputs, tactic, *args, **kwargs):
        shapes.append(tuple(inputs[0].shape))
        return abs(tactic - 1) + (0.5 if type(runner) is CublasFp8GemmRunner else 0.0)

    monkeypatch.setattr(AutoTuner, "_profile_single_kernel", profile)
    return shapes


@pytest.fixture
def ran(monkeypatch, measured):
    """bmm_fp8 asks the tuner as FlashInfer's does."""
    runners = {"cublas": CublasFp8GemmRunner(), "cudnn": CudnnFp8GemmRunner()}

    def bmm_fp8(A, B, A_scale, B_scale, dtype, out, backend):
        inputs = [A, B, A_scale, B_scale, out]
        chosen = list(runners.values()) if backend == "auto" else [runners[backend]]
        runner, tactic = AutoTuner.get().choose_one("fp8_gemm", chosen, BY_ROWS, inputs)
        return runner(inputs=inputs, tactic=tactic)

    monkeypatch.setattr(CublasFp8GemmRunner, "ran", [])
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    with contract("flashinfer.gemm.bmm_fp8", bmm_fp8), mock.patch("torch.cuda.synchronize"):
        yield CublasFp8GemmRunner.ran
    AutoTuner.get().clear_cache()


def record_of(backend, flags):
    with unconditional("bmm_fp8", backend):
        return run("bmm_fp8", f"{CASE} {flags}", backend)


def test_the_tuned_tactic_is_the_one_that_is_timed(ran):
    record = record_of("cublas", "--autotune")
    assert_passes(record)
    assert set(ran) == {1}
    assert record.facts["tactic"] == "CublasFp8GemmRunner 1"
    assert record.facts["tuning_ms"] > 0
    assert record.resolved_backend == "cublas"
    assert record.case["autotune"] is True
    assert (record.backend, record.label) == ("cublas", "cublas_autotune")
    assert row_of(record)["backend"] == "cublas_autotune"
    assert perf_lines(record)[0].startswith("[PERF] cublas_autotune:: median time ")


@pytest.mark.parametrize("m", [1, 4, 5, 300])
def test_tactics_are_measured_at_the_size_that_is_timed_alone(ran, measured, m):
    """Also at sizes that are rounded to look a tactic up; the library would measure at all powers of two below."""
    with unconditional("bmm_fp8", "cublas"):
        record = run("bmm_fp8", f"--batch_size 2 --m {m} --n 16 --k 32 --autotune", "cublas")
    assert_passes(record)
    assert measured == [(2, m, 32)] * 3
    assert set(ran) == {1}


@pytest.mark.parametrize(
    ("verbosity", "calls", "lines"),
    [
        ("", 5, []),
        ("-v", 5, ["Autotune warmup for bmm_fp8: 5 iters"]),
        ("-v", 0, ["Autotune warmup for bmm_fp8: 1 iters"]),
    ],
)
def test_the_documented_line(ran, verbosity, calls, lines):
    """Of as many calls as there are before timing, of which the tuner's is one at the least."""
    with unconditional("bmm_fp8", "cublas"):
        case = case_of("bmm_fp8", f"{CASE} --autotune --backends cublas {verbosity}", dry_run_iters=calls)
        events = list(run_case(case, SingleRank()))
    assert [text for text in texts_in(events, "INFO") if "utotune" in text] == lines


def test_without_the_flag_nothing_is_tuned(ran):
    record = record_of("cublas", "")
    assert_passes(record)
    assert set(ran) == {-1}
    assert "tactic" not in record.facts


def test_the_tuner_forgets_between_cases(ran):
    record_of("cublas", "--autotune")
    assert not AutoTuner.get().profiling_cache
    del ran[:]
    record_of("cublas", "")
    assert set(ran) == {-1}


def test_it_forgets_after_a_failure_too(ran):
    with contract("flashinfer.gemm.bmm_fp8", mock.Mock(side_effect=RuntimeError("no kernel"))):
        record = record_of("cublas", "--autotune")
    assert record.status is Status.FAILED
    assert not AutoTuner.get().profiling_cache
    assert not AutoTuner.get().is_tuning_mode
    assert "choose_one" not in vars(AutoTuner.get())


@pytest.mark.parametrize(("flags", "resolved"), [("", "cublas"), ("--autotune", "cudnn")])
def test_auto_says_what_runs(ran, flags, resolved):
    """Untuned the first of its candidates, tuned the fastest."""
    record = record_of("auto", flags)
    assert_passes(record)
    assert record.resolved_backend == resolved


def test_a_backend_without_tactics_runs_and_says_so():
    events = list(run_case(case_of("bmm_fp8", f"{CASE} --autotune --backends torch"), SingleRank()))
    assert texts_in(events, "INFO") == ["torch backend does not support autotune"]
    assert not texts_in(events, "WARNING")
    (record,) = records_of(case_of("bmm_fp8", f"{CASE} --autotune --backends torch"))
    assert_passes(record)
    assert "autotune" in record.ignored_flags
    assert "autotune" not in record.case
    assert record.label == "torch"


def test_a_call_past_the_tuner_has_no_tactic():
    with contract("flashinfer.gemm.bmm_fp8", lambda **arguments: arguments["out"]) as kernel:
        launch, _ = launch_of("bmm_fp8", "cudnn", f"{CASE} --autotune")
    assert len(kernel.calls) == 2
    assert set(launch.facts) == {"tuning_ms"}


@pytest.mark.parametrize(
    ("runner", "backend"),
    [
        ("CublasFp8GemmRunner", "cublas"),
        ("CublasltBf16GemmRunner", "cublaslt"),
        ("CudnnMmMxfp8GemmRunner", "cudnn"),
        ("CutlassFp4GemmRunner", "cutlass"),
        ("CuteDSLDirectBf16Runner", "cute-dsl"),
        ("CutedslLowLatencyBlockscaledGemmRunner", "cutedsl_low_latency"),
        ("TGVRunner", "tgv"),
        ("TinyGemmBf16GemmRunner", "tinygemm"),
        ("TrtllmGemmRunner", "trtllm"),
        ("B12xFp4GemmRunner", "b12x"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_runners_are_named_after_their_backends(runner, backend):
    assert tuning.backend_of(runner) == backend


def test_every_backend_that_reads_the_flag_forgets():
    """One that may tune has the tuner's state, or a later case would run tuned."""
    for routine in all_routines().values():
        if routine.family == "gemm" and "autotune" in routine.specs:
            for backend in routine.backends.values():
                assert (backend.state is tuning.tuner) == ("autotune" not in backend.ignores), backend
