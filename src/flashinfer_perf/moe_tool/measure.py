"""Measures shapes: ``bench_run`` for programs, ``measure`` for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.flags import build, specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.record import Record
from flashinfer_perf.device.machine import find_machine
from flashinfer_perf.moe_tool.cases import cases_of
from flashinfer_perf.moe_tool.shapes import Shape
from flashinfer_perf.moe_tool.table import Collected, measurements
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.run.session import Session, Sink
from flashinfer_perf.sinks.console import Console
from flashinfer_perf.sinks.progress import Progress, wanted

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement


def bench_run(
    results: list[Measurement],
    model: str,
    num_experts: int,
    topk: int,
    per_act_token: bool,
    per_out_ch: bool,
    mkn: tuple[int, int, int],
) -> None:
    """Checks and times both contestants at one shape, on the first GPU, else on the CPU. Progress, warnings and wrong
    outputs go to standard error.

    Args:
        results: gets the Measurements, per invocation; their columns are ``triton_moe`` and ``cutlass_moe_fp4``, on a
            GPU with ``…_cuda_graphs`` beside each. A contestant that could not be measured is missing.
        model: a name for the table; nothing depends on it.
        num_experts: how many there are.
        topk: experts of a token.
        per_act_token: a scale for each token's FP8 activations, instead of one for all.
        per_out_ch: a scale for each output channel of FP8 weights, instead of one for an expert.
        mkn: m tokens of width k; experts have w1 (2 n, k) and w2 (k, n). k and n are multiples of 16.

    Raises:
        InvalidInput: when the shape breaks a rule.
    """
    m, k, n = mkn
    shape = Shape(model, num_experts, topk, bool(per_act_token), bool(per_out_ch), m, k, n)
    options: Options = build(Options, specs_of(Options), {})
    call = f"bench_run(results, {model!r}, {num_experts}, {topk}, {per_act_token}, {per_out_ch}, {mkn})"
    _, records = measure(cases_of([shape], find_machine(options.device), options, lambda _: call), options)
    results += measurements(records)


def measure(cases: Sequence[Case], options: Options, sinks: Sequence[Sink] = ()) -> tuple[int, list[Record]]:
    """Exit status and records.

    Args:
        sinks: besides standard error.
    """
    collected = Collected()
    bar = [Progress(len(cases))] if wanted(len(cases)) else []
    session = Session([Console(run=options, stderr=True), *sinks, *bar, collected], SingleRank())
    return session.run(cases), collected.records
