"""Measures the harness itself, not kernels: how long it takes to start, to plan, and to run cases that do nothing much.

    make bench-harness [ARGS="--repeat 5"]

Prints the median over some repetitions beside the limit; the exit status is 1 when a limit is exceeded. OpenMP gets
one thread: several spin between tiny kernels, and on cores that others use, too, that takes most of the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from flashinfer_perf.core.case import line_grammar, make_case  # noqa: E402
from flashinfer_perf.core.errors import InvalidInput  # noqa: E402
from flashinfer_perf.core.machine import Machine  # noqa: E402
from flashinfer_perf.core.routine import Routine  # noqa: E402
from flashinfer_perf.routines import all_routines  # noqa: E402

PROGRAM = (sys.executable, str(ROOT / "benchmarks" / "flashinfer_benchmark.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
CASES = 1000
WARM = 100
"""Cases after which memory must not grow any more: by then all routines have been imported and run."""
LIMITS = {
    "--help": (0.25, "s"),
    f"--plan of {CASES} lines": (1.0, "s"),
    f"{CASES} tiny CPU cases, each, all in": (10.0, "ms"),
    f"memory, from case {WARM} to {CASES}": (10.0, "MiB"),
}
"""What the project promises, on two cores."""
CPU = Machine("cpu", "cpu")


def smallest(routine: Routine) -> str:
    """Flags of the smallest case that the routine's rules allow: all required sizes the same power of two."""
    required = [spec for spec in routine.specs.values() if spec.required]
    for size in (2**exponent for exponent in range(12)):
        flags = " ".join(f"{spec.option} {spec.choices[0] if spec.choices else size}" for spec in required)
        try:
            make_case(routine, line_grammar(routine.flags).parse(flags.split()))
        except InvalidInput:
            continue
        return flags
    raise AssertionError(f"no power of two up to {size} is a valid size of {routine.name}")


def tiny_lines() -> Iterator[str]:
    """Lines for a testlist, without end: a tiny case of every routine that runs on a CPU, each time another seed."""
    runs_here = [r for r in all_routines().values() if any(b.unmet(CPU) is None for b in r.backends.values())]
    for seed in itertools.count():
        for routine in runs_here:
            yield f"--routine {routine.name} {smallest(routine)} --random_seed {seed}"


def seconds(*arguments: str) -> float:
    """Wall time of the program with these arguments."""
    began = perf_counter()
    subprocess.run([*PROGRAM, *arguments], check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    return perf_counter() - began


def run_tiny_cases(testlist: str) -> tuple[float, float]:
    """Milliseconds per case, start of the process and output included, and MiB that the process grew by."""
    began, resident = perf_counter(), []
    command = [*PROGRAM, "--testlist", testlist, "--device", "cpu", "--refcheck", "--format", "json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes) as process:
        for line in process.stdout:
            record = json.loads(line)
            if record["status"] != "ok":
                raise SystemExit(f"{record['repro_command']}: {record['status']}: {record['reason']}")
            resident.append(resident_mib(process.pid))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return (perf_counter() - began) * 1e3 / len(resident), resident[-1] - resident[WARM - 1]


def resident_mib(process: int) -> float:
    """Memory that a process has in RAM."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(testlist: str) -> tuple[float, ...]:
    """One repetition, in the order of LIMITS."""
    return (seconds("--help"), seconds("--plan", "--testlist", testlist), *run_tiny_cases(testlist))


def main() -> int:
    """Prints the table; 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions (default: %(default)s)")
    repetitions = max(parser.parse_args().repeat, 1)
    with tempfile.TemporaryDirectory() as folder:
        testlist = Path(folder) / "tiny.txt"
        testlist.write_text("".join(f"{line}\n" for line in itertools.islice(tiny_lines(), CASES)), encoding="utf-8")
        runs = [measure(str(testlist)) for _ in range(repetitions)]
    medians = [statistics.median(values) for values in zip(*runs, strict=True)]
    print(f"The harness itself, medians of {repetitions} on {os.cpu_count()} CPUs, with OMP_NUM_THREADS=1, since")
    print("several threads spin between kernels as small as these:")
    for (name, (limit, unit)), median in zip(LIMITS.items(), medians, strict=True):
        print(
            f"  {name:<38}{median:>8.3g} {unit:<3} limit {limit:>5g} {unit:<3} {'pass' if median < limit else 'FAIL'}"
        )
    return int(any(median >= limit for (limit, _), median in zip(LIMITS.values(), medians, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
