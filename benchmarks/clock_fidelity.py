"""How far each clock is from the truth, on this GPU: ``python benchmarks/clock_fidelity.py [--jsonl FILE]``.

Spins know how long they took (``%globaltimer``); copies of known size cannot beat the memory's bandwidth when the cache
is cold, and do when it is warm; a chain of short kernels stamps its start and its end. Exit status 1 when a
limit is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from gpu_needed import require_gpu

from flashinfer_perf.device.machine import find_machine
from flashinfer_perf.kernels import probes
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.ranks import SingleRank
from flashinfer_perf.timing.cache import cache_policy
from flashinfer_perf.timing.cuda_event import CudaEventTimer
from flashinfer_perf.timing.cuda_graph import CudaGraphTimer
from flashinfer_perf.timing.cupti import CuptiTimer
from flashinfer_perf.timing.target import Target

SPINS_US = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
COPIES_MB = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CHAIN = 10
CHAIN_US = 2
DRY_RUNS, SAMPLES = 50, 51

BIAS_LIMITS = {
    "cupti": lambda us: 1.0 + 0.01 * us,
    "cupti_graph": lambda us: 1.0 + 0.01 * us,
    "cuda_event": lambda us: 1.5,
    "cuda_graph": lambda us: 1.1,
}
"""Largest bias in microseconds for a spin of so many."""
AGREEMENT_LIMIT = 0.05
AGREEMENT_FROM_US = 20
LARGE_MB = 256
BANDWIDTH_LIMIT = 1.05
CHAIN_LIMIT = 0.05
GATED = ("cuda_event", "cupti")
"""Clocks that time launches and not a graph: there the gate has to hide the launching between the kernels of a call."""


Clock = Callable[[float], Any]
"""Makes a timer for a call that moves so many bytes."""

CLOCKS: dict[str, Clock] = {
    "cuda_event": lambda work_bytes: CudaEventTimer(),
    "cuda_graph": CudaGraphTimer,
    "cupti": lambda work_bytes: CuptiTimer(in_graph=False),
    "cupti_graph": lambda work_bytes: CuptiTimer(in_graph=True),
}
"""CUPTI last: once it has been used, kernels in the process start a little later."""


def measure(timer: Any, launch: Launch, cache: str) -> tuple[float, Any]:
    """Median in microseconds, and the timer's facts."""
    target = Target(launch, (), cache_policy(cache, find_machine("cuda")), SingleRank())
    timer.open(target)
    try:
        timer.sample(DRY_RUNS)
        samples = [sum(phases) for phases in timer.sample(SAMPLES)]
        return statistics.median(samples) * 1e3, {**timer.facts, "cache": timer.cache_description}
    finally:
        timer.close()


def bias(name: str, clock: Clock) -> Iterator[dict[str, Any]]:
    """Reading minus the kernel's own, for each spin; and what a kernel that does nothing reads."""
    stamps = torch.zeros(2, dtype=torch.int64, device="cuda")
    reading, facts = measure(clock(0), Launch(probes.nothing, kwargs={"scratch": stamps}), "warm")
    yield {"what": "null kernel", "clock": name, "reading_us": reading, "facts": facts}
    for spin_us in SPINS_US:
        launch = Launch(probes.wait, kwargs={"stamps": stamps, "microseconds": spin_us})
        reading, facts = measure(clock(0), launch, "warm")
        own = int(stamps[1] - stamps[0]) / 1e3
        error, limit = reading - own, BIAS_LIMITS[name](spin_us)
        row = {"what": "spin", "clock": name, "spin_us": spin_us, "reading_us": reading, "own_us": own}
        yield {**row, "bias_us": error, "limit_us": limit, "ok": abs(error) <= limit, "facts": facts}


def chain(name: str, clock: Clock) -> Iterator[dict[str, Any]]:
    """Ten short kernels in one call: the reading against the time from the first one's start to the last one's end.

    By their own stamps, so that what the device pauses between them is in both. Where the clock tells in how much of
    that time a kernel ran (CUPTI), that is held against ten times the same of one of them.
    """
    stamps = torch.zeros(CHAIN, 2, dtype=torch.int64, device="cuda")

    def call(stamps: torch.Tensor, count: int) -> None:
        for position in range(count):
            probes.wait(stamps[position], CHAIN_US)

    (_, one), (reading, ten) = (
        measure(clock(0), Launch(call, kwargs={"stamps": stamps, "count": count}), "warm") for count in (1, CHAIN)
    )
    own = int(stamps[-1, 1] - stamps[0, 0]) / 1e3
    kernels = sum(int(end - start) for start, end in stamps.tolist()) / 1e3
    row = {"what": "chain", "clock": name, "reading_us": reading, "own_us": own, "kernels_us": kernels}
    if "busy" in ten:
        row["busy_ratio"] = ten["busy"] / (CHAIN * one["busy"])
    ratios = [reading / own, row.get("busy_ratio", 1.0)]
    ok = name not in GATED or all(abs(ratio - 1) <= CHAIN_LIMIT for ratio in ratios)
    yield {**row, "ratio": ratios[0], "ok": ok, "facts": ten}


def copies(name: str, clock: Clock) -> Iterator[dict[str, Any]]:
    """Bandwidth of a copy of each size, cold and warm; megabytes are those of the source."""
    for megabytes in COPIES_MB:
        source = torch.rand(int(megabytes * 2**20) // 4, device="cuda")
        moved = 2 * source.numel() * 4
        launch = Launch(probes.copy, kwargs={"source": source, "target": torch.empty_like(source)}, mutates=("target",))
        for cache in ("cold", "warm"):
            reading, facts = measure(clock(moved), launch, cache)
            row = {"what": "copy", "clock": name, "megabytes": megabytes, "cache": cache, "reading_us": reading}
            yield {**row, "tb_per_s": moved / reading / 1e6, "facts": facts}
        del launch, source
        torch.cuda.empty_cache()


def vendor_copy(megabytes: float) -> float:
    """TB/s of torch's own copy under CUPTI."""
    source = torch.rand(int(megabytes * 2**20) // 4, device="cuda")
    target = torch.empty_like(source)
    launch = Launch(lambda source, target: target.copy_(source), kwargs={"source": source, "target": target})
    reading, _ = measure(CuptiTimer(in_graph=False), launch, "cold")
    return 2 * source.numel() * 4 / reading / 1e6


def judge_copies(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cold readings agree, and none beats the memory; warm ones of small copies do."""
    found = {(row["clock"], row["megabytes"], row["cache"]): row for row in rows if row["what"] == "copy"}
    if not found:
        return
    limit = max(vendor_copy(megabytes) for megabytes in COPIES_MB if megabytes >= LARGE_MB)
    yield {"what": "copy bandwidth", "tb_per_s": limit, "ok": True}
    for size in COPIES_MB:
        cold = [found[name, size, "cold"]["reading_us"] for name in CLOCKS]
        best = max(found[name, size, "cold"]["tb_per_s"] for name in CLOCKS)
        spread = max(cold) / min(cold) - 1
        agree = min(cold) < AGREEMENT_FROM_US or spread <= AGREEMENT_LIMIT
        row = {"what": "cold agreement", "megabytes": size, "spread": spread, "best_of_bandwidth": best / limit}
        yield {**row, "ok": agree and best <= BANDWIDTH_LIMIT * limit}
    for name in CLOCKS:
        best = max(found[name, size, "warm"]["tb_per_s"] for size in COPIES_MB)
        yield {"what": "warm beats memory", "clock": name, "best_tb_per_s": best, "ok": best > limit}


def show(row: dict[str, Any]) -> None:
    """A line for people; the facts are for the file."""
    texts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items() if k != "facts")
    print("  ".join(texts), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jsonl", help="file for all rows")
    arguments = parser.parse_args()
    require_gpu(parser)
    rows = []
    for name, clock in CLOCKS.items():
        for part in (bias, chain, copies):
            for row in part(name, clock):
                rows.append(row)
                show(row)
    for row in judge_copies(rows):
        rows.append(row)
        show(row)
    missed = [row for row in rows if not row.get("ok", True)]
    print(f"{len(missed)} limits missed" if missed else "all limits kept")
    for row in missed:
        show(row)
    if arguments.jsonl:
        Path(arguments.jsonl).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
