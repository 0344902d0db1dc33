from __future__ import annotations

from dataclasses import replace

import pytest

from flashinfer_perf.core.record import Measurement, Record, Status
from flashinfer_perf.core.statistics import summarise
from flashinfer_perf.moe_tool.table import Collected, compared, measurements
from flashinfer_perf.run.events import Message, Severity

CASE = {
    "model": "a/model",
    "num_tokens": 4,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_experts": 8,
    "top_k": 2,
    "per_act_token": False,
    "per_out_ch": False,
}
LINE = "a/model, num_experts=8, topk=2, per_act_token=False per_out_ch=False, MKN=((4, 128, 256))"


def record(routine: str, graph: bool, ms: float, backend: str = "triton", in_graph: bool | None = None) -> Record:
    samples = (ms, ms * 1.02, ms * 0.98)
    measurement = Measurement(
        samples_ms=samples,
        phases_ms={},
        summary=summarise(list(samples)),
        timer="cuda_graph",
        fallback_reason="",
        cache_policy="cold",
        tick_ms=1e-6,
        calls_per_sample=5 if graph else 1,
        dry_runs=0,
        stop_reason="",
        ranks=1,
        timer_facts={"in_graph": graph if in_graph is None else in_graph},
    )
    return Record(
        Status.OK,
        "",
        routine,
        backend,
        case=CASE,
        options={"no_cuda_graph": not graph},
        measurement=measurement,
        environment={"gpu": "NVIDIA H200"},
    )


ALL = [
    record("triton_moe", False, 0.2),
    record("triton_moe", True, 0.15),
    record("cutlass_moe_fp4", False, 0.1),
    record("cutlass_moe_fp4", True, 0.08),
]


def test_measurements_are_per_invocation_and_say_where_they_stand():
    found = measurements(ALL)
    assert [m.description for m in found] == [
        "triton_moe",
        "triton_moe_cuda_graphs",
        "cutlass_moe_fp4",
        "cutlass_moe_fp4_cuda_graphs",
    ]
    assert {m.sub_label for m in found} == {LINE}
    assert [m.median for m in found] == pytest.approx([2e-4, 1.5e-4, 1e-4, 8e-5])
    assert [m.number_per_run for m in found] == [1, 5, 1, 5]
    assert found[1].raw_times[0] == pytest.approx(5 * 1.5e-4)


def test_the_table():
    _, head, _, line, *_ = compared(ALL).splitlines()
    columns = ["triton_moe", "triton_moe_cuda_graphs", "cutlass_moe_fp4", "cutlass_moe_fp4_cuda_graphs"]
    assert [cell.strip() for cell in head.split("|")] == ["", *columns]
    assert [cell.strip() for cell in line.split("|")] == [LINE, "200.0", "150.0", "100.0", "80.0"]
    assert "Times are in microseconds (us)." in compared(ALL)


def test_its_title_says_what_the_contestants_were():
    title = compared(ALL).splitlines()[0]
    assert "triton_moe: W8A8 by this project's Triton kernels" in title
    assert "cutlass_moe_fp4: W4A16 fallback by this project's Triton kernels" in title
    blackwell = [*ALL[:2], *(replace(record, backend="flashinfer") for record in ALL[2:])]
    assert "cutlass_moe_fp4: W4A4 by FlashInfer's CUTLASS kernels" in compared(blackwell).splitlines()[0]


def test_other_kernels_at_another_shape_make_another_table():
    other = [replace(r, backend="torch", case={**CASE, "num_tokens": 8}) for r in ALL[2:]]
    assert compared([*ALL, *other]).count("Times are in") == 2


def test_what_was_timed_outside_of_a_graph_is_in_no_column_of_graphs():
    fallen_back = record("cutlass_moe_fp4", True, 0.1, in_graph=False)
    assert [m.description for m in measurements([ALL[0], fallen_back])] == ["triton_moe"]


def test_without_a_time_there_is_no_table():
    assert compared([Record(Status.OUT_OF_MEMORY, "needs …", "triton_moe", "triton", case=CASE)]) == ""


def test_only_records_are_collected():
    collected = Collected()
    for event in (Message(Severity.INFO, "x"), ALL[0]):
        collected.take(event)
    collected.close()
    assert collected.records == [ALL[0]]
