from __future__ import annotations

import io
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.core.record import Status
from flashinfer_perf.core.statistics import summarise
from flashinfer_perf.core.work import Work
from flashinfer_perf.device.environment import flashinfer_version
from flashinfer_perf.run.events import CaseStarted, Message, Severity
from flashinfer_perf.sinks.console import Console, decimals, perf_line
from tests.fakes import CPU, HOPPER, Fake, measurement, record

BMM_FP8 = Work(flops=2 * 256 * 1 * 1024 * 7168, bytes=7168 + 7168 * 1024 + 2 * 1024)
"""Of the first example of the documents, as upstream counts it: the bytes of one batch only."""


def printed(*events: object) -> list[str]:
    stream = io.StringIO()
    console = Console(stream)
    for event in events:
        console.take(event)  # type: ignore[arg-type]
    console.close()
    return stream.getvalue().splitlines()


def started(fake: Fake, flags: str = "", machine=CPU) -> CaseStarted:
    return CaseStarted(fake.case(flags), machine, ("torch",), 1, 1)


# ---- [PERF] ----


def test_a_perf_line_is_the_documented_one():
    assert perf_line("cudnn", summarise([0.28513]), BMM_FP8) == (
        "[PERF] cudnn          :: median time 0.285 ms; std 0.000 ms; achieved tflops 13.180 TFLOPs/sec; "
        "achieved tb_per_sec 0.026 TB/sec"
    )


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("fa2", "fa2            ::"),
        ("exactly_fifteen", "exactly_fifteen::"),
        ("cutlass_autotuned", "cutlass_autotuned::"),
        ("trtllm-fmha-v2-native_autotune", "trtllm-fmha-v2-native_autotune::"),
    ],
)
def test_labels_are_padded_to_fifteen_and_never_cut(label: str, shown: str):
    assert perf_line(label, summarise([1.0]), None).startswith(f"[PERF] {shown} median time 1.000 ms;")


@pytest.mark.parametrize(
    ("time_ms", "shown"),
    [
        (1234.5678, "1234.568"),
        (0.1, "0.100"),
        (0.0999, "0.0999"),
        (0.0123, "0.0123"),
        (0.002, "0.00200"),
        (0.0021, "0.00210"),
        (0.00034, "0.000340"),
        (0.0000012, "0.000001"),
        (0.0, "0.000"),
    ],
)
def test_two_microseconds_are_legible(time_ms: float, shown: str):
    assert f"median time {shown} ms;" in perf_line("a", summarise([time_ms]), None)


@given(time_ms=st.floats(1e-4, 1e4))
def test_a_printed_time_has_three_digits_that_count(time_ms: float):
    assert float(f"{time_ms:.{decimals(time_ms)}f}") == pytest.approx(time_ms, rel=0.0051)


def test_the_deviation_has_the_medians_decimals():
    assert "median time 0.00200 ms; std 0.00100 ms;" in perf_line("a", summarise([0.001, 0.003]), None)


@pytest.mark.parametrize(("work", "time_ms"), [(None, 1.0), (Work(1e9, 1e9), 0.0), (Work(math.nan, math.nan), 1.0)])
def test_rates_that_nobody_knows_are_nan(work: Work | None, time_ms: float):
    """No work was declared, or the time was too short for the clock."""
    line = perf_line("a", summarise([time_ms]), work)
    assert line.endswith("achieved tflops nan TFLOPs/sec; achieved tb_per_sec nan TB/sec")


def test_a_record_has_a_line_for_each_phase_and_one_for_the_whole():
    phases = {"dispatch": (0.25, 0.5, 0.75), "combine": (1.0, 1.0, 1.0)}
    lines = printed(record(measurement=measurement(1.25, 1.5, 1.75, phases_ms=phases)))
    assert [line[:34] for line in lines] == [
        "[PERF] dispatch       :: median ti",
        "[PERF] combine        :: median ti",
        "[PERF] torch          :: median ti",
    ]
    assert "median time 0.500 ms" in lines[0]
    assert "tflops nan" in lines[0]
    assert "median time 1.500 ms" in lines[2]
    assert "tflops 0.667" in lines[2]


def test_phases_and_the_whole_have_the_rates_that_are_known():
    phases = {"a2a_dispatch": (0.5,), "a2a_combine": (1.0,)}
    measured = measurement(1.5, phases_ms=phases, total_name="a2a_total")
    lines = printed(record(measurement=measured, phase_work={"a2a_dispatch": Work(0, 1e9)}))
    assert [line.split()[1] for line in lines] == ["a2a_dispatch", "a2a_combine", "a2a_total"]
    assert lines[0].endswith("achieved tflops 0.000 TFLOPs/sec; achieved tb_per_sec 2.000 TB/sec")
    assert lines[1].endswith("achieved tb_per_sec nan TB/sec")


def test_a_record_without_a_time_has_no_line():
    assert printed(record(status=Status.UNSUPPORTED, reason="no", measurement=None)) == []


def test_a_mismatch_that_was_timed_has_its_line():
    assert len(printed(record(status=Status.MISMATCH))) == 1


# ---- what stands above ----


def test_lines_above_a_case_in_the_documents_order(fake: Fake):
    lines = printed(started(fake, "-vv --use_cupti --generate_repro_command --case_tag x", HOPPER))
    assert lines[0].startswith("[INFO] args = Namespace(routine='fake', no_cuda_graph=False, ")
    assert lines[1:] == [
        "[WARNING] --use_cupti is deprecated and will be removed in a future release. CUPTI is now enabled by default.",
        "[INFO] Running testFake",
        f"[INFO] FlashInfer version: {flashinfer_version()}",
        "[VVERBOSE] gpu_name = 'NVIDIA_H200'",
        "[INFO] To reproduce this test case, run the following command: python3 flashinfer_benchmark.py "
        "--routine fake --device cpu --num_iters 3 --dry_run_iters 1 -vv --use_cupti --generate_repro_command "
        "--case_tag x",
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", []),
        ("-v", ["args", "Running", "FlashInfer"]),
        ("-vv", ["args", "Running", "FlashInfer", "gpu_name"]),
        ("--generate_repro_command", ["To"]),
        ("--use_cupti", ["--use_cupti"]),
    ],
)
def test_more_lines_need_more_vs(fake: Fake, flags: str, words: list[str]):
    assert [line.split()[1] for line in printed(started(fake, flags))] == words


def test_on_a_cpu_the_gpu_is_called_cpu(fake: Fake):
    assert "[VVERBOSE] gpu_name = 'cpu'" in printed(started(fake, "-vv"))


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ("", ["INFO", "WARNING", "ERROR", "REFCHECK", "VALIDATE"]),
        ("-v", ["INFO", "WARNING", "ERROR", "REFCHECK", "VALIDATE", "VERBOSE"]),
        ("-vv", ["INFO", "WARNING", "ERROR", "REFCHECK", "VALIDATE", "VERBOSE", "VVERBOSE"]),
    ],
)
def test_messages_are_shown_by_their_severity(fake: Fake, flags: str, shown: list[str]):
    messages = [Message(severity, "x = 1") for severity in Severity]
    lines = printed(started(fake, flags), *messages)
    assert [line for line in lines if line.endswith("x = 1")] == [f"[{severity}] x = 1" for severity in shown]


def test_a_message_about_a_rank_names_it(fake: Fake):
    message = Message(Severity.VALIDATE, "ERROR: x", rank=1)
    assert printed(started(fake), message)[-1] == "[VALIDATE][Rank 1] ERROR: x"


def test_each_case_has_its_own_verbosity(fake: Fake):
    message = Message(Severity.VVERBOSE, "x")
    assert "[VVERBOSE] x" not in printed(started(fake, "-vv"), started(fake), message)
    assert "[VVERBOSE] x" in printed(started(fake), started(fake, "-vv"), message)


# ---- where to ----


class Flushed(io.StringIO):
    """Remembers what had been written when it was flushed."""

    def flush(self) -> None:
        self.seen = self.getvalue()


def test_every_line_is_flushed():
    stream = Flushed()
    Console(stream).take(Message(Severity.INFO, "x"))
    assert stream.seen == "[INFO] x\n"


def test_by_default_lines_go_to_where_standard_output_is_now(monkeypatch: pytest.MonkeyPatch):
    """A progress bar takes its place after the console was made."""
    consoles = Console(), Console(stderr=True)
    late = {"stdout": io.StringIO(), "stderr": io.StringIO()}
    for name, stream in late.items():
        monkeypatch.setattr(sys, name, stream)
    for console in consoles:
        console.take(Message(Severity.INFO, "x"))
    assert [stream.getvalue() for stream in late.values()] == ["[INFO] x\n"] * 2
