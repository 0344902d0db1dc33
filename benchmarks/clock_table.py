"""A testlist under every clock, side by side: ``python benchmarks/clock_table.py --testlist FILE [--jsonl FOLDER]``.

Each clock has a process of its own. Prints a markdown table of medians, and what share of the copy bandwidth, measured
in the same process, the declared bytes make of the CUPTI time. Exit status 1 when anything was not ok.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_needed import require_gpu

HERE = Path(__file__).resolve().parent
CLOCKS = {
    "cupti": [],
    "cuda_graph": ["--use_cuda_events"],
    "cuda_event": ["--use_cuda_events", "--no_cuda_graph"],
}
COPY = """
import sys; sys.path[:0] = [{here!r}, {source!r}]
from clock_fidelity import vendor_copy
print(max(vendor_copy(megabytes) for megabytes in (256, 512, 1024)))
"""


def run(testlist: str, clock: str, folder: Path) -> list[dict[str, Any]]:
    """The records of a testlist under one clock."""
    file = folder / f"{clock}.jsonl"
    file.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "flashinfer_benchmark.py"), "--testlist", testlist, "--refcheck"]
    command += ["--strict_timer", "--jsonl", str(file), *CLOCKS[clock]]
    with (folder / f"{clock}.txt").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def copy_bandwidth() -> float:
    """TB/s of a large copy under CUPTI."""
    script = COPY.format(here=str(HERE), source=str(HERE.parent / "src"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def rows(records: dict[str, list[dict[str, Any]]], bandwidth: float) -> Iterator[tuple[str, ...]]:
    """A row for each (case, backend), with its median under each clock in microseconds."""
    times: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for clock, found in records.items():
        for record in found:
            times.setdefault((record["case_id"], record["backend"]), {})[clock] = record
    for by_clock in times.values():
        any_record = next(iter(by_clock.values()))
        flags = any_record["case"]
        shape = " ".join(str(flags[name]) for name in ("batch_size", "hidden_size") if name in flags)
        medians = (_median_us(by_clock.get(clock)) for clock in CLOCKS)
        yield (any_record["routine"], shape, any_record["backend"], *medians, _share(by_clock.get("cupti"), bandwidth))


def _median_us(record: dict[str, Any] | None) -> str:
    if record is None or record["measurement"] is None:
        return record["status"] if record else ""
    return f"{record['measurement']['summary']['median_ms'] * 1e3:.2f}"


def _share(record: dict[str, Any] | None, bandwidth: float) -> str:
    if record is None or record["measurement"] is None:
        return ""
    achieved = record["work"]["bytes"] / (1e9 * record["measurement"]["summary"]["median_ms"])
    return f"{100 * achieved / bandwidth:.0f} %"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--testlist", required=True)
    parser.add_argument("--jsonl", help="folder for each clock's records and output")
    arguments = parser.parse_args()
    require_gpu(parser)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.jsonl or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bandwidth = copy_bandwidth()
        records = {clock: run(arguments.testlist, clock, folder) for clock in CLOCKS}
    print(f"Copy bandwidth: {bandwidth:.3f} TB/s\n")
    header = ("Routine", "Shape", "Backend", *(f"{clock}, µs" for clock in CLOCKS), "of copy bandwidth")
    for line in (header, ["---"] * len(header), *rows(records, bandwidth)):
        print(f"| {' | '.join(line)} |")
    every = [record for found in records.values() for record in found]
    bad = [record for record in every if record["status"] != "ok" or record["verdict"]["state"] != "passed"]
    print(f"\n{len(every)} records, {len(bad)} not ok")
    for record in bad:
        print(f"{record['routine']} {record['case']} {record['backend']}: {record['status']}: {record['reason']}")
    return bool(bad) or not every


if __name__ == "__main__":
    sys.exit(main())
