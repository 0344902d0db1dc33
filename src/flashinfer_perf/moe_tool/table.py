"""Records as Measurements of ``torch.utils.benchmark``, which its ``Compare`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flashinfer_perf.core.record import Record
from flashinfer_perf.lazy import torch
from flashinfer_perf.moe_tool.cases import GRAPHS, ROUTINES
from flashinfer_perf.moe_tool.shapes import Shape
from flashinfer_perf.run.events import Event

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement

TITLE = "NVFP4 against FP8 experts"
SECONDS_PER_MS = 1e-3


class Collected:
    """A sink that keeps the records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def take(self, event: Event) -> None:
        if isinstance(event, Record):
            self.records.append(event)

    def close(self) -> None:
        return None


def measurements(records: Sequence[Record]) -> list[Measurement]:
    """One of each record that has a time, per invocation. Its column is ``description``, its line ``sub_label``;
    the ``label``, which is the table's title, says what each contestant really was.
    """
    timed = [record for record in records if record.measurement is not None and _as_asked(record)]
    implementations = _implementations(timed)
    return [_measurement(record, implementations[_line(record)]) for record in timed]


def compared(records: Sequence[Record]) -> str:
    """The tables of ``Compare``, one for each title; '' when nothing has a time."""
    from torch.utils.benchmark import Compare

    found = measurements(records)
    return f"{Compare(found)}\n" if found else ""


def _as_asked(record: Record) -> bool:
    """A call that no graph could hold was timed outside of one: that is not what the column is for."""
    assert record.measurement is not None
    return bool(record.options["no_cuda_graph"]) or bool(record.measurement.timer_facts.get("in_graph"))


def _measurement(record: Record, title: str) -> Measurement:
    from torch.utils.benchmark import Measurement
    from torch.utils.benchmark.utils.common import TaskSpec

    found = record.measurement
    assert found is not None
    column = record.routine + ("" if record.options["no_cuda_graph"] else GRAPHS)
    task = TaskSpec(
        stmt=f"{record.routine}({record.summary})",
        setup="pass",
        label=title,
        sub_label=_line(record),
        description=column,
        num_threads=1 if record.environment.get("gpu") else torch.get_num_threads(),
    )
    calls = found.calls_per_sample
    times = [sample * SECONDS_PER_MS * calls for sample in found.samples_ms]
    return Measurement(number_per_run=calls, raw_times=times, task_spec=task)


def _implementations(records: Iterable[Record]) -> dict[str, str]:
    """Each line's title."""
    found: dict[str, dict[str, str]] = {}
    for record in records:
        found.setdefault(_line(record), {})[record.routine] = ROUTINES[record.routine].backends[record.backend].summary
    return {
        line: f"{TITLE}; " + "; ".join(f"{name}: {what}" for name, what in contestants.items())
        for line, contestants in found.items()
    }


def _line(record: Record) -> str:
    case: dict[str, Any] = dict(record.case)
    return Shape(
        model=case["model"],
        experts=case["num_experts"],
        top_k=case["top_k"],
        per_act_token=case["per_act_token"],
        per_out_ch=case["per_out_ch"],
        m=case["num_tokens"],
        k=case["hidden_size"],
        n=case["intermediate_size"],
    ).text
