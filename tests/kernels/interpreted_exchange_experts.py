"""The experts between dispatch and combine in Triton's interpreter, a process of its own; prints {case: passed}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import torch

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.routines.moe_comm.mixture import ByTriton, LocalExperts, allowed
from flashinfer_perf.routines.moe_comm.payload import WIRE_FORMATS
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Problem
from flashinfer_perf.run.ranks import SingleRank
from tests.kernels import rounding_interpreter

EXPERTS, SLOTS, TOP_K, SIZE = 4, 6, 2, 128


def passes(format: str, offset: int = 0) -> bool:
    """Of four experts the last two, and one slot without a token; ``offset`` is added to the experts asked for."""
    case = MoeCommFlags(
        num_tokens=SLOTS,
        hidden_size=SIZE,
        num_experts=EXPERTS,
        top_k=TOP_K,
        input_dtype=DType.BFLOAT16,
        quant_dtype=format,
        real_math=True,
        intermediate_size=SIZE,
    )
    local = LocalExperts(case, TensorFactory("cpu", 42, 1 << 30, SingleRank()), range(2, 4))
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(SLOTS, SIZE, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(SLOTS)]).int()
    ids[-1] = EXPERTS
    routing = torch.rand(SLOTS, TOP_K, generator=generator)
    wire = WIRE_FORMATS[format]
    factor = wire.factor(float(hidden.abs().amax()))
    payload = wire.encode(hidden, factor)
    weights = local.draw()
    problem = Problem({**weights, "hidden": payload.hidden}, dict, None, {}, SingleRank())  # type: ignore[arg-type]
    out = torch.full((SLOTS, SIZE), 7.0, dtype=torch.bfloat16)
    experts = ByTriton(case, problem, factor, local.numbers, SLOTS)
    experts((ids, routing, *payload), out, **experts.weights)
    asked = torch.where(ids >= 2, ids + offset, EXPERTS)
    here = torch.where((asked >= 2) & (asked < EXPERTS), asked, 2).long()
    truth = local.truth(wire.decode(payload, factor), here, torch.where((asked >= 2) & (asked < EXPERTS), routing, 0))
    return allowed(case, 1).judge("out", {"out": out}, {"out": truth}).passed


if __name__ == "__main__":
    rounding_interpreter.install()
    found = {format: passes(format) for format in ("nvfp4", "fp8_block_scale")}
    print(json.dumps({**found, "broken": passes("nvfp4", offset=-1)}))
