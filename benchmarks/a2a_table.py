"""Exchanges between ranks beside a plain NCCL all-to-all of the same bytes, started with mpirun or torchrun:

    mpirun -np 2 python benchmarks/a2a_table.py [--testlist benchmarks/samples/a2a_on_gpus.txt] [--jsonl FILE]

Every rank runs the testlist in one process, as ``flashinfer_benchmark.py`` does; then, on the same GPUs and with the
same clock, an all-to-all of equal shares for every size that a dispatch or a combine had to move. The first rank prints
a markdown table. Bus bandwidth is bytes between ranks over ranks and time: what each GPU sends in a second; of
all-reduces, what NCCL's tests call so. ``of plain`` is the plain all-to-all's time over the phase's. The spread is the
standard deviation over the median. On CPUs all of it goes over gloo.
Exit status 1 when anything was not ok.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch

from flashinfer_perf.cli.bench import ranks_that_agree
from flashinfer_perf.core.case import Case
from flashinfer_perf.core.record import Measurement, Record, Status
from flashinfer_perf.core.statistics import summarise
from flashinfer_perf.core.stop_rules import FixedNumber
from flashinfer_perf.core.testlist import parse_testlist, read_testlist
from flashinfer_perf.routines import all_routines
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.placement import machine_of
from flashinfer_perf.run.process_group import nccl_group, start_line
from flashinfer_perf.run.ranks import Ranks
from flashinfer_perf.run.session import Session
from flashinfer_perf.sinks.console import Console
from flashinfer_perf.sinks.jsonl_file import JsonlFile
from flashinfer_perf.timing.cache import cache_policy
from flashinfer_perf.timing.choose import Wish, open_timer
from flashinfer_perf.timing.measure import measure
from flashinfer_perf.timing.target import Target

TESTLIST = Path(__file__).resolve().parent / "samples" / "a2a_on_gpus.txt"
DRY_RUNS, SAMPLES = 10, 100
MOVED = {"a2a_dispatch": "dispatch_bytes", "a2a_combine": "combine_bytes"}
HEADER = (
    "case", "backend", "exchange", "phase", "median µs", "spread", "skew µs", "MB between ranks", "bus GB/s",
    "plain all-to-all µs", "plain GB/s", "of plain", "check",
)  # fmt: skip


class Kept:
    """A sink that remembers records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def take(self, event: Any) -> None:
        if isinstance(event, Record):
            self.records.append(event)

    def close(self) -> None:
        return None


def plain_all_to_all(ranks: Ranks, moved: int) -> Measurement:
    """An all-to-all of equal shares in which so many bytes, over all ranks, go from one rank to another."""
    machine = machine_of("auto", ranks)
    group = nccl_group(ranks) if machine.is_cuda else None
    share = max(moved // (ranks.size * max(ranks.size - 1, 1)), 1)
    sent = torch.zeros(ranks.size * share, dtype=torch.uint8, device=machine.device)
    launch = Launch(
        functools.partial(torch.distributed.all_to_all_single, group=group),
        kwargs={"output": torch.empty_like(sent), "input": sent},
        mutates=("output",),
        no_graph="Collectives are launched one by one.",
    )
    launch()
    target = Target(launch, (), cache_policy(None, machine), ranks, start_line(ranks, machine))
    opened = open_timer(machine, Wish(cupti=False, graph=False), target, moved)
    try:
        return measure(target, opened, FixedNumber(SAMPLES), DRY_RUNS)
    finally:
        opened.timer.close()


def run(testlist: str, jsonl: str | None, ranks: Ranks) -> list[Record]:
    """The records of a testlist, on every rank; the first one says what happens, on standard error."""
    kept = Kept()
    sinks: list[Any] = [kept]
    if ranks.rank == 0:
        sinks += [Console(stderr=True), *([JsonlFile(jsonl, False)] if jsonl else [])]
    items = parse_testlist(read_testlist(testlist), testlist, [], all_routines())
    Session(sinks, ranks).run([item for item in items if isinstance(item, Case)])
    return kept.records


def phases_of(record: Record) -> Iterator[tuple[str, tuple[float, ...], float]]:
    """Name, samples in milliseconds, and bytes between ranks of each part of a call and of the whole."""
    measured = record.measurement
    if measured is None or record.work is None:
        return
    for name, samples in measured.phases_ms.items():
        yield name, samples, record.facts.get(MOVED.get(name, ""), 0)
    yield measured.total_name or "all", measured.samples_ms, record.work.bytes


def cells(record: Record, plain: dict[int, Measurement]) -> Iterator[tuple[str, ...]]:
    """A row for each phase of a record, or one with the reason why there is none."""
    case = f"{record.routine} {record.summary}"
    if record.measurement is None:
        yield (case, record.backend, *[""] * (len(HEADER) - 3), f"{record.status}: {record.reason}")
        return
    ranks, skew = record.measurement.ranks, record.measurement.timer_facts.get("rank_skew", 0.0)
    for name, samples, moved in phases_of(record):
        summary = summarise(samples)
        whole = name == (record.measurement.total_name or "all")
        beside = plain.get(int(moved)) if name in MOVED else None
        each = moved if record.routine == "allreduce_fusion" else moved / ranks
        yield (
            case,
            record.backend,
            str(record.facts.get("exchange", "")),
            name,
            f"{summary.median_ms * 1e3:.1f}",
            f"{100 * summary.std_ms / summary.median_ms:.1f} %",
            f"{skew * 1e3:.1f}" if whole else "",
            f"{moved / 1e6:.2f}",
            f"{each / summary.median_ms / 1e6:.1f}" if moved else "",
            f"{beside.summary.median_ms * 1e3:.1f}" if beside else "",
            f"{moved / ranks / beside.summary.median_ms / 1e6:.1f}" if beside else "",
            f"{100 * beside.summary.median_ms / summary.median_ms:.0f} %" if beside else "",
            str(record.verdict.state) if whole else "",
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--testlist", default=str(TESTLIST))
    parser.add_argument("--jsonl", help="file for full records")
    arguments = parser.parse_args()
    ranks = ranks_that_agree(sys.argv[1:])
    records = run(arguments.testlist, arguments.jsonl, ranks)
    sizes = sorted({int(m) for record in records for name, _, m in phases_of(record) if name in MOVED and m})
    plain = {moved: plain_all_to_all(ranks, moved) for moved in sizes}
    if ranks.rank == 0:
        print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
        for record in records:
            for row in cells(record, plain):
                print(f"| {' | '.join(row)} |")
    return 0 if records and all(record.status in (Status.OK, Status.UNSUPPORTED) for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
