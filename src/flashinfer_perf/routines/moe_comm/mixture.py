"""The experts between dispatch and combine (--real_math): SwiGLU, in the format that hidden states are sent in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flashinfer_perf.checks import tolerance
from flashinfer_perf.checks.close import Close
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.work import Work
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.moe import eager, launches, weights
from flashinfer_perf.routines.moe.layer import Layer, mixture
from flashinfer_perf.routines.moe_comm.flags import MoeCommFlags
from flashinfer_perf.routines.moe_comm.payload import WIRE_FORMATS, Payload
from flashinfer_perf.routines.moe_comm.routing import Experts
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.problem import Problem
from flashinfer_perf.run.ranks import Ranks

ACTIVATION = "Swiglu"
WEIGHT_FORMATS = {"nvfp4": "NVFP4", "fp8_block_scale": "FP8_BLOCK"}
"""Of ``--quant_dtype``, the weights' format by its name in ``routines.moe.weights`` and in the kernels."""
SIZE_MULTIPLES = {"nvfp4": 64, "fp8_block_scale": 128}
"""Of the intermediate size: what this project's kernels take."""
BYTES = {"nvfp4": (0.5 + 1 / 16, 0.5 + 1 / 16), "fp8_block_scale": (1 + 4 / 128, 1 + 4 / 128**2)}
"""Of an element of hidden states and of weights, their scales included: the documented formula."""
WIRE_ROUNDINGS = 2
"""To 16 bits, beside those of a mixture alone: of hidden states that kernels take in 16 bits, and of a rank's sum."""

Compute = Callable[..., None]
"""Of the rows that arrived, of where results go, and by keyword of the weights."""


@dataclass(frozen=True)
class LocalExperts:
    """Draws experts one by one, each the same on every rank.

    Attributes:
        numbers: of those that are here.
    """

    case: MoeCommFlags
    make: TensorFactory
    numbers: range

    @property
    def format(self) -> weights.Format:
        found: weights.Format = getattr(weights, WEIGHT_FORMATS[str(self.case.quant_dtype)])
        return found

    def one(self, number: int) -> weights.Weights:
        """An expert of any rank, in a first dimension of length 1."""
        sizes = (self.case.hidden_size, int(self.case.intermediate_size or 0))
        drawn = weights.Drawn(Layer(ACTIVATION, range(number, number + 1)), sizes, self.case.input_dtype)
        return self.format.make(self.make.in_common(), drawn)

    def draw(self) -> weights.Weights:
        """Those that are here; accounted for before the second one is drawn."""
        first = self.one(self.numbers.start)
        size = sum(part.nbytes for part in first.values())
        self.make.reserve("experts", (len(self.numbers), size), DType.FP8_E4M3)
        made = {name: part.new_empty(len(self.numbers), *part.shape[1:]) for name, part in first.items()}
        for place, number in enumerate(self.numbers):
            for name, part in (first if place == 0 else self.one(number)).items():
                made[name][place] = part[0]
        return made

    def truth(self, hidden: torch.Tensor, expert_ids: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) fp32: what all experts of all ranks make of this rank's rows.

        Args:
            hidden: (tokens, columns) fp32, decoded; expert_ids and routing: (tokens, top_k).
        """
        total = torch.zeros_like(hidden)
        for number in expert_ids.unique().tolist():
            layer = Layer(ACTIVATION, range(number, number + 1))
            total += mixture(layer, hidden, expert_ids.long(), routing, self.format.expert(self.one(number)))
        return total


def allowed(case: MoeCommFlags, ranks: int, by_library: bool = False) -> Close:
    """How far the sum of all ranks' answers may be off.

    Args:
        by_library: whether FlashInfer's kernels are used, which round what is between the products to NVFP4, too.
    """
    without_blocks = DType.NVFP4 if by_library else case.input_dtype
    between = DType.FP8_E4M3 if case.quant_dtype == "fp8_block_scale" else without_blocks
    added = min(ranks, case.top_k)
    sizes = (case.hidden_size, int(case.intermediate_size or 0))
    return tolerance.for_mixture(between, sizes, case.input_dtype, more_roundings=WIRE_ROUNDINGS + added)


def work_of(case: MoeCommFlags, expert_ids: torch.Tensor, ranks: Ranks) -> Work:
    """Of all ranks, by the documented formula. Every rank must ask."""
    active = len(set().union(*ranks.all_gather(set(expert_ids.unique().tolist()))))
    tokens, products = ranks.size * case.num_tokens, 3 * case.hidden_size * int(case.intermediate_size or 0)
    row, weight = BYTES[str(case.quant_dtype)]
    moved = tokens * case.hidden_size * (row + case.input_dtype.bytes) + active * products * weight
    return Work(flops=2 * tokens * case.top_k * products, bytes=moved)


def by_torch(case: MoeCommFlags, factor: float, numbers: range) -> Compute:
    """Experts by PyTorch, for any number of rows."""
    return partial(_by_torch, case, factor, Layer(ACTIVATION, numbers))


def _by_torch(
    case: MoeCommFlags,
    factor: float,
    layer: Layer,
    rows: tuple[torch.Tensor, ...],
    output: torch.Tensor,
    **tensors: torch.Tensor,
) -> None:
    ids, routing, hidden, scales = (part.contiguous() for part in rows)
    if case.quant_dtype == "nvfp4":
        hidden = WIRE_FORMATS["nvfp4"].decode(Payload(hidden, scales), factor).to(output.dtype)
    x_scale = scales if case.quant_dtype == "fp8_block_scale" else None
    eager.mix(layer, x=hidden, experts=ids, weights=routing, output=output, x_scale=x_scale, **tensors)


class ByTriton:
    """Experts by this project's kernels; all workspace is made here. A call gets ``weights``, or copies of them.

    Args:
        slots: rows of every call, those without a token included.
    """

    name = "triton"

    def __init__(self, case: MoeCommFlags, problem: Problem, factor: float, numbers: range, slots: int) -> None:
        self._factor = factor
        format, layer = WEIGHT_FORMATS[str(case.quant_dtype)], Layer(ACTIVATION, numbers)
        self._plan = launches.planned(case, problem, layer, format, num_tokens=slots)
        self.weights = launches.weights_of(self._plan)
        self._wide = None
        if case.quant_dtype == "nvfp4":
            device = problem["hidden"].device
            self._wide = torch.empty(slots, case.hidden_size, dtype=case.input_dtype.torch, device=device)

    def __call__(self, rows: tuple[torch.Tensor, ...], output: torch.Tensor, **tensors: torch.Tensor) -> None:
        ids, routing, hidden, scales = rows
        given: dict[str, Any] = {"x": hidden, "x_scale": scales, **tensors}
        if self._wide is not None:
            from flashinfer_perf.kernels.nvfp4_rows import decode_rows

            decode_rows(hidden, scales, self._factor, self._wide)
            given |= {"x": self._wide, "x_scale": None}
        launches.mix(self._plan, given, ids, routing, output)


def weights_among(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The experts' weights and their scales, among a call's arguments."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("w1", "w2"))}


def experts_here(experts: Experts, rank: int) -> range:
    """Their numbers."""
    return range(rank * experts.per_rank, (rank + 1) * experts.per_rank)
