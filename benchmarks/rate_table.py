"""A testlist with what it reaches of the card: ``python benchmarks/rate_table.py --testlist FILE [--jsonl FILE]``.

Measured as the program does by default (CUPTI where installed, cold cache) and checked. Prints a markdown table of
medians and rates, and what share they are of the copy bandwidth and of the dense rates, all measured before. Rates are
of the documented operations and bytes; of mixtures of experts, of what the experts here have to do.
Exit status 1 when anything was wrong or failed; what cannot run here is listed below the table with its reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpu_needed import require_gpu

HERE = Path(__file__).resolve().parent
LIMITS = """
import sys; sys.path[:0] = [{here!r}, {source!r}]
import torch
from clock_fidelity import CuptiTimer, Launch, measure, vendor_copy
size = 8192
a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
launch = Launch(torch.mm, kwargs={{"input": a, "mat2": b}}, returns=("out",))
took_us, _ = measure(CuptiTimer(in_graph=False), launch, "cold")
bf16 = 2 * size**3 / took_us / 1e6
fp8 = float("nan")
if torch.cuda.get_device_capability() >= (8, 9):
    one = torch.ones((), device="cuda")
    call = dict(input=a.to(torch.float8_e4m3fn), mat2=b.to(torch.float8_e4m3fn).T, scale_a=one, scale_b=one)
    call |= dict(out_dtype=torch.bfloat16, use_fast_accum=True)
    took_us, _ = measure(CuptiTimer(in_graph=False), Launch(torch._scaled_mm, kwargs=call, returns=("out",)), "cold")
    fp8 = 2 * size**3 / took_us / 1e6
print(max(vendor_copy(megabytes) for megabytes in (256, 512, 1024)), bf16, fp8)
"""
MEASURED = ("ok", "mismatch")
SHARES = ("of copy bandwidth", "of bfloat16 rate", "of FP8 rate")
HEADER = ("Case", "Backend", "µs", "TFLOP/s", "TB/s", *SHARES, "relative L2 error")


class Limits(NamedTuple):
    """TB/s of a large copy, and TFLOP/s of products of 8192 x 8192 x 8192; FP8 with fast accumulation, or NaN."""

    copy_tb_per_s: float
    bf16_tflops: float
    fp8_tflops: float


def card_limits() -> Limits:
    """Of the GPU, by PyTorch's own copy and products."""
    script = LIMITS.format(here=str(HERE), source=str(HERE.parent / "src"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return Limits(*(float(number) for number in done.stdout.split()[-3:]))


def run(testlist: str, file: Path) -> list[dict[str, Any]]:
    """The records of a testlist; what the program says goes to standard error."""
    file.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "flashinfer_benchmark.py"), "--testlist", testlist, "--refcheck"]
    subprocess.run([*command, "--strict_timer", "--jsonl", str(file)], stdout=sys.stderr, check=False)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(measured: list[dict[str, Any]], limits: Limits) -> str:
    """Markdown. A column that is zero in every row, such as the rate of a family without products, is left out."""
    rows = [row(record, limits) for record in measured]
    columns = [column for column in zip(HEADER, *rows, strict=True) if not rows or any(map(says_something, column[1:]))]
    head, *body = zip(*columns, strict=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def says_something(cell: str) -> bool:
    return cell.removesuffix(" %").strip("0.") != ""


def row(record: dict[str, Any], limits: Limits) -> tuple[str, ...]:
    """Case, backend, median, rates, and their shares."""
    median_ms, work, facts = record["measurement"]["summary"]["median_ms"], record["work"], record["facts"]
    flops, moved = facts.get("local_flops", work["flops"]), facts.get("local_bytes", work["bytes"])
    tflops, tb_per_s = flops / (1e9 * median_ms), moved / (1e9 * median_ms)
    resolved = record["resolved_backend"]
    backend = record["backend"] + (f" ({resolved})" if resolved not in ("", record["backend"]) else "")
    error = max((found["relative_l2"] or 0.0 for found in record["verdict"]["findings"]), default=0.0)
    shares = (tb_per_s / limits.copy_tb_per_s, tflops / limits.bf16_tflops, tflops / limits.fp8_tflops)
    numbers = (f"{median_ms * 1e3:.1f}", f"{tflops:.1f}", f"{tb_per_s:.3f}")
    return (tag_of(record), backend, *numbers, *(f"{100 * share:.0f} %" for share in shares), f"{error:.4f}")


def tag_of(record: dict[str, Any]) -> str:
    """The case's tag, with the values of the flags that it names in braces."""
    return str(record["options"]["case_tag"]).format_map(record["case"])


def refusals(records: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each reason: who gave it, for what."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record["status"] not in MEASURED:
            key = (f"{record['backend']}: {record['status']}", record["reason"])
            found.setdefault(key, []).append(tag_of(record))
    for (who, reason), tags in found.items():
        yield f"- {who}, {reason} ({'; '.join(dict.fromkeys(tags))})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--testlist",
        required=True,
        help="cases with a --case_tag each, which the table shows; {batch_size} stands for a flag",
    )
    parser.add_argument("--jsonl", help="file for the records")
    arguments = parser.parse_args()
    require_gpu(parser)
    limits = card_limits()
    print(
        f"Copy bandwidth: {limits.copy_tb_per_s:.3f} TB/s; dense bfloat16 rate: {limits.bf16_tflops:.0f} TFLOP/s; "
        f"dense FP8 rate: {limits.fp8_tflops:.0f} TFLOP/s\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        records = run(arguments.testlist, Path(arguments.jsonl or Path(scratch) / "records.jsonl"))
    measured = [record for record in records if record["measurement"]]
    print(table(measured, limits))
    print("\nNot run:\n", *refusals(records), sep="\n")
    bad = [r for r in records if r["status"] not in ("ok", "unsupported") or (r["measurement"] and not passed(r))]
    print(f"\n{len(records)} records, {len(measured)} measured, {len(bad)} wrong or failed")
    return bool(bad) or not records


def passed(record: dict[str, Any]) -> bool:
    return record["verdict"]["state"] == "passed"


if __name__ == "__main__":
    sys.exit(main())
