"""The general options: those that every routine has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashinfer_perf.core.flags import Since, flag


def parse_precision(text: str) -> float:
    """'1%' or '0.01' -> 0.01."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ValueError(f"{text!r} is not a precision; give a percentage such as 1% or a fraction such as 0.01")
    return value


SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0}


def parse_seconds(text: str) -> float:
    """'90', '90s', '1.5m' or '200ms' -> seconds."""
    unit = next((unit for unit in SECONDS if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * SECONDS.get(unit, 1.0)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a time; give seconds such as 90, or 200ms, 1.5m")
    return value


def parse_device(text: str) -> str:
    """'auto', 'cpu', 'cuda' or 'cuda:N'."""
    kind, colon, index = text.partition(":")
    if text in ("auto", "cpu", "cuda") or (kind == "cuda" and colon and index.isdecimal()):
        return text
    raise ValueError(f"{text!r} is not a device; give auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class Options:
    """General options, in the order in which upstream's Namespace line lists its own; then those of this program."""

    routine: str | None = flag(None, short="R", help="Routine to run; --list shows all.", metavar="NAME")
    no_cuda_graph: bool = flag(False, help="Launch kernels one by one instead of replaying a CUDA graph.")
    use_cupti: bool = flag(False, help="Deprecated: CUPTI is used by default wherever it is available.")
    use_cuda_events: bool = flag(False, help="Time with CUDA graphs or events even where CUPTI is available.")
    refcheck: bool = flag(False, help="Check every backend against fp32/fp64 mathematics and against the others.")
    allow_output_mismatch: bool = flag(
        False, help="Time a backend whose output is wrong, too; it does not affect the exit status then."
    )
    random_seed: int = flag(42, minimum=0, help="Seed of all inputs.")
    verbose: int = flag(0, short="v", counted=True, help="More detail; -vv for shapes and statistics.")
    output_path: str | None = flag(
        None, per_process=True, metavar="CSV", help="CSV file to write, a row per backend as soon as it is measured."
    )
    num_iters: int = flag(30, short="n", minimum=1, help="Measured iterations.")
    dry_run_iters: int = flag(5, short="d", minimum=0, help="Iterations before measuring starts.")
    case_tag: str | None = flag(None, help="Text to find the case by in the CSV.", metavar="TEXT")
    generate_repro_command: bool = flag(False, help="Print a command that repeats the case, and store it in the CSV.")
    repro_command: str = flag("", help="Placeholder that upstream accepts; always computed.", metavar="TEXT")
    testlist: str | None = flag(
        None, per_process=True, metavar="FILE", help="File of test cases, one to a line; - reads standard input."
    )
    device: str = flag(
        "auto",
        parse=parse_device,
        since=Since.OURS,
        metavar="auto|cpu|cuda|cuda:N",
        help="Where to run; auto takes the first CUDA GPU, else the CPU.",
    )
    strict_timer: bool = flag(
        False, since=Since.OURS, help="Fail rather than measure with another clock than the one asked for."
    )
    cache: str | None = flag(
        None,
        choices=("cold", "warm"),
        since=Since.OURS,
        help="State of the last-level cache at each call. Default: cold on a GPU, warm on a CPU.",
    )
    target_precision: float | None = flag(
        None,
        parse=parse_precision,
        since=Since.OURS,
        metavar="PERCENT",
        help="Measure until the 95 % interval of the median is that narrow (its relative half-width) "
        "instead of --num_iters times.",
    )
    max_time: float | None = flag(
        None,
        parse=parse_seconds,
        since=Since.OURS,
        metavar="SECONDS",
        help="Stop measuring a backend after this time, whatever has been reached.",
    )
    format: str = flag(
        "text",
        choices=("text", "table", "json"),
        per_process=True,
        since=Since.OURS,
        help="Standard output: the documented lines, those and a closing table, or a JSON record a line.",
    )
    append: bool = flag(False, per_process=True, since=Since.OURS, help="Add to existing result files.")
    jsonl: str | None = flag(
        None, per_process=True, since=Since.OURS, metavar="FILE", help="File for full records, samples included."
    )
    list: bool = flag(
        False, per_process=True, since=Since.OURS, help="List routines and which backends run here; why others do not."
    )
    plan: bool = flag(
        False, per_process=True, since=Since.OURS, help="Parse and validate, print what would run, touch no device."
    )
    version: bool = flag(False, per_process=True, since=Since.OURS, help="Print the version.")
    help: bool = flag(False, short="h", per_process=True, help="Show help; with --routine, that routine's flags.")
