"""From a shape to the cases that the engine runs: either contestant, without CUDA graphs and with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import Routine
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.moe_tool.fp8 import triton_moe
from flashinfer_perf.moe_tool.nvfp4 import cutlass_moe_fp4
from flashinfer_perf.moe_tool.shapes import Shape


@dataclass(frozen=True)
class Contestant:
    """A routine, its weights' format, and the formats that its activations may be quantised to, the best one first."""

    routine: Routine
    weights: DType
    activations: tuple[DType, ...]


CONTESTANTS = (
    Contestant(triton_moe, DType.FP8_E4M3, (DType.FP8_E4M3,)),
    Contestant(cutlass_moe_fp4, DType.NVFP4, (DType.NVFP4, DType.FLOAT16)),
)
ROUTINES = {contestant.routine.name: contestant.routine for contestant in CONTESTANTS}
GRAPHS = "_cuda_graphs"
"""What a column's name ends with when its calls are replayed from a graph."""


def cases_of(shapes: Iterable[Shape], machine: Machine, options: Options, repro: Callable[[Shape], str]) -> list[Case]:
    """In the order of the table's columns. On the CPU there are no graphs.

    Args:
        repro: the command, or the call, that measures a shape again.

    Raises:
        InvalidInput: when a shape breaks a rule.
    """
    return [case for shape in shapes for case in _of_shape(shape, machine, options, repro(shape))]


def _of_shape(shape: Shape, machine: Machine, options: Options, repro: str) -> Iterator[Case]:
    for contestant in CONTESTANTS:
        flags = runnable(contestant, shape, machine)
        contestant.routine.check_rules(flags)
        for no_graph in (True, False) if machine.is_cuda else (True,):
            how = dataclasses.replace(options, refcheck=True, no_cuda_graph=no_graph)
            yield Case(contestant.routine, flags, how, backends=(), ignored=(), repro_command=repro)


def runnable(contestant: Contestant, shape: Shape, machine: Machine) -> MoeFlags:
    """The contestant's flags, with the first format of activations that a backend can quantise to on this machine."""
    *better, last = (_flags(contestant, shape, format) for format in contestant.activations)
    backends = contestant.routine.backends.values()
    return next((flags for flags in better if any(not backend.unmet(machine, flags) for backend in backends)), last)


def _flags(contestant: Contestant, shape: Shape, activations: DType) -> MoeFlags:
    return MoeFlags(
        model=shape.model,
        num_tokens=shape.m,
        hidden_size=shape.k,
        intermediate_size=shape.n,
        num_experts=shape.experts,
        top_k=shape.top_k,
        tp_size=shape.tp_size,
        per_act_token=shape.per_act_token,
        per_out_ch=shape.per_out_ch,
        weight_dtype=contestant.weights,
        quant_dtype=activations,
        backends=(),
    )
