"""Small layers of experts: the tool's contestants, and one in vLLM's order with its truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.routine import Routine
from flashinfer_perf.formats import e2m1
from flashinfer_perf.formats.scale_layout import padded_shape, unswizzle_128x4
from flashinfer_perf.moe_tool.call import Nvfp4MoeQuantConfig, moe_fp4, nvfp4_moe_quant_config
from flashinfer_perf.moe_tool.cases import CONTESTANTS, runnable
from flashinfer_perf.moe_tool.flags import MoeFlags
from flashinfer_perf.moe_tool.shapes import Shape
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Copies, Launch, poison
from flashinfer_perf.run.problem import Problem
from flashinfer_perf.run.ranks import SingleRank

CPU = Machine("cpu", "cpu")
HOPPER = Machine("cuda:0", "NVIDIA H200", (9, 0), 50 << 20)
BLACKWELL = Machine("cuda:0", "NVIDIA B200", (10, 0), 126 << 20)
SHAPE = Shape("small", experts=6, top_k=2, per_act_token=False, per_out_ch=False, m=9, k=128, n=128)

Made = tuple[MoeFlags, Problem, Routine]


def made(number: int, machine: Machine = CPU, **changes: Any) -> Made:
    """The flags on that machine, the problem (on the CPU) and the routine of a contestant: 0 in FP8, 1 in NVFP4."""
    contestant = CONTESTANTS[number]
    flags = runnable(contestant, SHAPE.__class__(**{**vars(SHAPE), **changes}), machine)
    make = TensorFactory("cpu", 7, 1 << 30, SingleRank())
    return flags, contestant.routine.make(flags, make), contestant.routine


def contestants() -> dict[str, Callable[[Machine], Made]]:
    """By name: FP8 in its four configurations, and NVFP4."""
    found: dict[str, Callable[[Machine], Made]] = {"nvfp4": lambda machine: made(1, machine)}
    for token, channel in ((False, False), (False, True), (True, False), (True, True)):
        found[f"fp8 {token} {channel}"] = lambda machine, t=token, c=channel: made(  # type: ignore[misc]
            0, machine, per_act_token=t, per_out_ch=c
        )
    return found


def passes(problem: Problem, launch: Launch, returned: Any = None) -> bool:
    """The verdict on what a launch wrote, or returned."""
    return problem.checks["output"].judge("output", launch.outputs(returned), problem.truth()).passed


def passes_on_copies(problem: Problem, launch: Launch) -> bool:
    """The verdict on a call with copies of all its tensors, while the problem's own hold NaN."""
    truth = problem.truth()
    copied = launch.on_copies(Copies())
    for tensor in problem.tensors.values():
        poison(tensor)
    copied()
    return problem.checks["output"].judge("output", copied.outputs(None), truth).passed


class Vllm(NamedTuple):
    """Inputs of ``moe_fp4``, which are vLLM's: gate first, scales in tiles."""

    a: torch.Tensor
    w1: torch.Tensor
    w2: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor
    m: int
    n: int
    k: int
    e: int
    config: Nvfp4MoeQuantConfig

    @property
    def top_k(self) -> int:
        return self.ids.shape[1]

    def call(self, **changes: Any) -> torch.Tensor:
        """What ``moe_fp4`` makes of it, with other values for some of its arguments."""
        arguments = dict(
            a=self.a,
            w1_fp4=self.w1,
            w2_fp4=self.w2,
            topk_weights=self.weights,
            topk_ids=self.ids,
            m=self.m,
            n=self.n,
            k=self.k,
            e=self.e,
            quant_config=self.config,
        )
        return moe_fp4(**{**arguments, **changes})

    def is_right(self, output: torch.Tensor) -> bool:
        """Within fp16's precision of the whole layer in fp64."""
        error = (output.double() - self.truth()).norm() / self.truth().norm()
        return bool(error < 2e-3)

    def truth(self) -> torch.Tensor:
        out = torch.zeros(self.m, self.k, dtype=torch.float64, device=self.a.device)
        config = self.config
        for token in range(self.m):
            for expert, weight in zip(self.ids[token].tolist(), self.weights[token].tolist(), strict=True):
                first = decoded(self.w1[expert], config.w1_scale[expert], config.g1_alphas, config.a1_gscale, expert)
                second = decoded(self.w2[expert], config.w2_scale[expert], config.g2_alphas, config.a2_gscale, expert)
                gate, up = (first @ self.a[token].double()).chunk(2)
                out[token] += weight * (second @ (gate * torch.sigmoid(gate) * up))
        return out


def decoded(
    packed: torch.Tensor, scale: torch.Tensor, alphas: torch.Tensor, of_input: torch.Tensor, expert: int
) -> torch.Tensor:
    """An expert's weight in fp64: what is left of alpha when the input's global scale is taken out of it."""
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    blocks = unswizzle_128x4(scale.view(torch.uint8), rows, columns // 16).view(torch.float8_e4m3fn).double()
    values = e2m1.decode(e2m1.unpack(packed)).double() * blocks.repeat_interleave(16, -1)
    return values * (alphas[expert] * of_input[expert]).double()


class Sizes(NamedTuple):
    """Of a layer in vLLM's order."""

    m: int
    n: int
    k: int
    e: int
    top_k: int

    def made(self, device: str = "cpu") -> Vllm:
        generator = torch.Generator().manual_seed(3)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        def codes(rows: int, columns: int) -> torch.Tensor:
            packed = torch.randint(256, (self.e, rows, columns // 2), dtype=torch.uint8, generator=generator)
            return packed.to(device)

        def scales(rows: int, columns: int) -> torch.Tensor:
            shape = (self.e, *padded_shape("128x4", rows, columns // 16))
            return noise(*shape).to(torch.float8_e4m3fn).to(device)

        def each(spread: float, unit: float) -> torch.Tensor:
            return ((1 + spread * torch.rand(self.e, generator=generator)) * unit).to(device)

        n, k = self.n, self.k
        of_inputs = each(1.0, 1.0), each(1.0, 1.0)
        config = nvfp4_moe_quant_config(
            a1_gscale=of_inputs[0],
            a2_gscale=of_inputs[1],
            w1_scale=scales(2 * n, k),
            w2_scale=scales(k, n),
            g1_alphas=each(1.0, 0.3 * k**-0.5) / of_inputs[0],
            g2_alphas=each(1.0, 0.3 * n**-0.5) / of_inputs[1],
        )
        chosen = torch.stack([torch.randperm(self.e, generator=generator)[: self.top_k] for _ in range(self.m)])
        return Vllm(
            a=noise(self.m, k).half().to(device),
            w1=codes(2 * n, k),
            w2=codes(k, n),
            weights=noise(self.m, self.top_k).half().to(device),
            ids=chosen.to(device, torch.int32),
            m=self.m,
            n=n,
            k=k,
            e=self.e,
            config=config,
        )


NVFP4_LAYER = Sizes(m=5, n=192, k=64, e=4, top_k=2)
"""Its scales have rows that only pad their tiles."""
