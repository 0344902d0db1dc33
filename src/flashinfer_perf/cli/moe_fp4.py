"""``benchmark_cutlass_fp4_moe.py`` and ``flashinfer-perf moe-fp4``: NVFP4 against FP8 mixtures of experts."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from flashinfer_perf import __version__
from flashinfer_perf.cli.help import flag_section, paragraph
from flashinfer_perf.cli.measure import file_sinks
from flashinfer_perf.core.arguments import Grammar, Typed, values_of
from flashinfer_perf.core.errors import InvalidInput, Unsupported
from flashinfer_perf.core.exit_status import INTERRUPTED, NOTHING_PARSED, SUCCESS
from flashinfer_perf.core.flags import FlagSpec, build, specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.moe_tool.flags import GENERAL, ToolFlags
from flashinfer_perf.moe_tool.presets import TINY, listed
from flashinfer_perf.moe_tool.shapes import Shape, selected
from flashinfer_perf.run.session import SinkFailed

PROGRAM = "benchmark_cutlass_fp4_moe.py"
ABOUT = (
    "Compares NVFP4 mixtures of experts (scales for blocks of 16) with FP8 ones (scales for tensors): inputs in fp16, "
    "quantised inside the timed call, outputs checked first. The table goes to standard output, all else to standard "
    "error. Kernels: vLLM's where it is installed and the card runs them; else FlashInfer's CUTLASS for NVFP4, where "
    "activations can be quantised to it (compute capability 10.0); else this project's. The table's title says which."
)
EXITS = "exit status: 0 when everything was measured; 1 otherwise; 2 when nothing could be understood; 130 after Ctrl-C"
NO_GRAPHS = (
    "[INFO] There are no CUDA graphs on the CPU: the columns triton_moe_cuda_graphs and cutlass_moe_fp4_cuda_graphs "
    "are absent."
)
SLOW = f"[INFO] On the CPU the experts of a model take minutes or hours; --models {TINY} takes seconds."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments; its exit status."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except InvalidInput as error:
        print(f"[ERROR] {error}", file=sys.stderr)
        return NOTHING_PARSED
    except KeyboardInterrupt:  # before there was anything to record; afterwards the session sees to it
        print("[ERROR] Interrupted.", file=sys.stderr)
        return INTERRUPTED


def general_specs() -> list[FlagSpec]:
    """Of the main program's options, those that the tool has, too."""
    specs = {**specs_of(Options), "help": replace(specs_of(Options)["help"], help="Show this.")}
    return [specs[name] for name in GENERAL]


def understand(tokens: Sequence[str]) -> tuple[ToolFlags, Options, Sequence[Typed]]:
    """What was typed: what to measure, how, and the flags one by one.

    Raises:
        InvalidInput: naming the first flag that is wrong.
    """
    typed = Grammar([*specs_of(ToolFlags).values(), *general_specs()]).parse(tokens)
    return _built(ToolFlags, typed), _built(Options, typed), typed


def _run(tokens: list[str]) -> int:
    tool, options, typed = understand(tokens)
    if options.version:
        print(f"flashinfer-perf {__version__}")
        return SUCCESS
    if options.help:
        print("\n".join(section.rstrip() + "\n" for section in _help()), end="")
        return SUCCESS
    return _measure(selected(tool), options, repro_of(typed))


F = TypeVar("F")


def _built(flags: type[F], typed: Sequence[Typed]) -> F:
    specs = specs_of(flags)
    return build(flags, specs, values_of([flag for flag in typed if flag.name in specs], specs))


def _measure(shapes: Sequence[Shape], options: Options, repro: Callable[[Shape], str]) -> int:
    from flashinfer_perf.device.machine import find_machine
    from flashinfer_perf.moe_tool.cases import ROUTINES, cases_of
    from flashinfer_perf.moe_tool.measure import measure
    from flashinfer_perf.moe_tool.table import compared

    try:
        machine = find_machine(options.device)
        files = file_sinks(options, ROUTINES)
    except (SinkFailed, Unsupported) as error:
        print(f"[ERROR] {error}", file=sys.stderr)
        return NOTHING_PARSED
    if not machine.is_cuda and any(shape.model != TINY for shape in shapes):
        print(SLOW, file=sys.stderr)
    status, records = measure(cases_of(shapes, machine, options, repro), options, files)
    print(compared(records), end="")
    if not machine.is_cuda:
        print(NO_GRAPHS)
    return status


def repro_of(typed: Sequence[Typed]) -> Callable[[Shape], str]:
    """The command that measures one shape again, with the general options as typed."""
    kept = [token for flag in typed if flag.name in _ABOUT_THE_CASE for token in flag.tokens]

    def command(shape: Shape) -> str:
        words = ["--models", shape.model, "--tp-sizes", shape.tp_size, "--batch-sizes", shape.m]
        words += ["--limit-per-act-token", int(shape.per_act_token), "--limit-per-out-ch", int(shape.per_out_ch)]
        return f"python3 {PROGRAM} {shlex.join([*map(str, words), *kept])}"

    return command


_ABOUT_THE_CASE = {spec.name for spec in general_specs() if not spec.per_process}


def _help() -> Iterable[str]:
    yield paragraph(usage=f"{PROGRAM} [FLAGS…]", description=ABOUT)
    yield flag_section("what to measure", specs_of(ToolFlags).values())
    yield flag_section("presets", (), listed())
    yield flag_section("general flags", general_specs())
    yield paragraph(usage=argparse.SUPPRESS, description=EXITS)
