"""Runs the contestants on this project's kernels in Triton's interpreter, a process of its own, and ``moe_fp4`` as on a
GPU; prints {case: whether its check passes}.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import torch

from flashinfer_perf.kernels.moe.experts import TritonExperts
from flashinfer_perf.moe_tool import call
from tests.kernels import rounding_interpreter
from tests.moe_tool.layers import HOPPER, NVFP4_LAYER, contestants, passes, passes_on_copies


def main() -> None:
    rounding_interpreter.install()
    found = {}
    for name, case in contestants().items():
        flags, problem, routine = case(HOPPER)
        launch = routine.backends["triton"].prepare(flags, problem)
        launch()
        found[name] = passes(problem, launch)
        replace(launch, kwargs={**launch.kwargs, "weights": torch.ones_like(problem["weights"])})()
        found[f"{name}, without routing weights"] = passes(problem, launch)
        found[f"{name}, on copies"] = passes_on_copies(problem, launch)
    found["moe_fp4"] = called()
    print(json.dumps(found))


def called() -> bool:
    """The plan that a GPU has, of the weights that ``moe_fp4`` brought into order."""
    layer = NVFP4_LAYER.made()
    sizes = (layer.m, layer.n, layer.k, layer.e)
    plan = call.plan_of(layer.config, layer.w1, layer.w2, sizes, layer.top_k, layer.a.dtype)
    assert isinstance(plan, TritonExperts)
    output = torch.empty_like(layer.a)
    held = call.launches.weights_of(plan)
    call.launches.mixed_by_triton(plan, layer.ids, layer.weights.float(), output, x=layer.a, **held)
    return layer.is_right(output)


if __name__ == "__main__":
    main()
