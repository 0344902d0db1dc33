"""``flashinfer-perf``: the commands under one name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from flashinfer_perf.core.flags import did_you_mean

COMMANDS = {
    "bench": "measure: the same program as flashinfer-benchmark",
    "moe-fp4": "compare NVFP4 with FP8 mixtures of experts: the same program as benchmark_cutlass_fp4_moe.py",
    "readme": "write benchmarks/README.md anew from the declarations",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the named command; its exit status."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    if tokens and tokens[0] in COMMANDS:
        return int(importlib.import_module(module_of(tokens[0])).main(tokens[1:]))
    asked = tokens[:1] in (["-h"], ["--help"])
    problem = (
        f"[ERROR] unknown command {tokens[0]!r}.{did_you_mean(tokens[0], COMMANDS)}\n" if tokens and not asked else ""
    )
    listing = "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())
    print(
        f"{problem}usage: flashinfer-perf COMMAND …\n\n{listing}\n\nflashinfer-perf COMMAND --help tells more.",
        file=sys.stdout if asked else sys.stderr,
    )
    return 0 if asked else 2


def module_of(command: str) -> str:
    """The file of a command."""
    return f"flashinfer_perf.cli.{command.replace('-', '_')}"
