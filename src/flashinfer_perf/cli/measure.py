"""Runs parsed cases: chooses the sinks and starts a session."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.exit_status import NOTHING_PARSED
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import Routine
from flashinfer_perf.core.testlist import InvalidLine
from flashinfer_perf.run.ranks import FailedElsewhere, Ranks, in_step
from flashinfer_perf.run.session import Session, Sink, SinkFailed
from flashinfer_perf.sinks.columns import columns_of
from flashinfer_perf.sinks.console import Console
from flashinfer_perf.sinks.csv_file import CsvFile
from flashinfer_perf.sinks.json_console import JsonConsole
from flashinfer_perf.sinks.jsonl_file import JsonlFile
from flashinfer_perf.sinks.progress import Progress, wanted
from flashinfer_perf.sinks.table import Table

CONSOLES = {"text": Console, "table": Table, "json": JsonConsole}


def measure_items(
    items: Sequence[Case | InvalidLine], run: Options, routines: Mapping[str, Routine], ranks: Ranks
) -> int:
    """The exit status. Over several ranks only the first one writes."""
    try:
        importlib.import_module(
            "torch"
        )  # now: records need it, and an import that Ctrl-C cuts short cannot be repeated
        sinks = in_step(ranks, lambda: _sinks(run, routines, len(items)) if ranks.rank == 0 else [])
        return Session(sinks, ranks).run(items)
    except SinkFailed as failure:
        print(f"[ERROR] {failure}", file=sys.stderr)
        return NOTHING_PARSED
    except FailedElsewhere:
        return NOTHING_PARSED
    except BaseException as error:
        ranks.abort(error)
        raise


def _sinks(run: Options, routines: Mapping[str, Routine], total: int) -> list[Sink]:
    sinks: list[Sink] = [CONSOLES[run.format](run=run), *file_sinks(run, routines)]
    if wanted(total):
        sinks.append(Progress(total))
    return sinks


def file_sinks(run: Options, routines: Mapping[str, Routine]) -> list[Sink]:
    """The result files asked for.

    Args:
        routines: those whose flags and facts the CSV has columns for.

    Raises:
        SinkFailed: when one cannot be written, or both are the same.
    """
    sinks: list[Sink] = []
    if run.output_path is not None and run.jsonl is not None and Path(run.output_path) == Path(run.jsonl):
        raise SinkFailed(f"--output_path and --jsonl both name {run.jsonl}; give them two files")
    if run.output_path is not None:
        sinks.append(CsvFile(run.output_path, columns_of(routines), run.append))
    if run.jsonl is not None:
        sinks.append(JsonlFile(run.jsonl, run.append))
    return sinks
