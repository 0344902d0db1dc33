"""Which shapes a command line selects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.moe_tool.flags import ToolFlags
from flashinfer_perf.moe_tool.presets import PRESETS


@dataclass(frozen=True)
class Shape:
    """One line of the table: what both contestants compute.

    Tokens are (m, k); an expert's first weight is (2 n, k), its second (k, n).
    """

    model: str
    experts: int
    top_k: int
    per_act_token: bool
    per_out_ch: bool
    m: int
    k: int
    n: int
    tp_size: int = 1

    @property
    def text(self) -> str:
        """What stands at the head of the table's line."""
        return (
            f"{self.model}, num_experts={self.experts}, topk={self.top_k}, per_act_token={self.per_act_token} "
            f"per_out_ch={self.per_out_ch}, MKN=({(self.m, self.k, self.n)})"
        )


def selected(tool: ToolFlags) -> list[Shape]:
    """Model by model, rank count by rank count, configuration by configuration, batch by batch.

    Raises:
        InvalidInput: when a filter leaves nothing, or n cannot be divided by the ranks.
    """
    layers = [(model, tp) for model, tp in product(tool.models, tool.tp_sizes) if _admitted(tool, model, tp)]
    if not layers:
        raise InvalidInput(
            f"no shape is left by {' '.join(_filters(tool))}; without filters there are {_offered(tool)}"
        )
    return [shape for model, tp in layers for shape in _of_layer(tool, model, tp)]


def _of_layer(tool: ToolFlags, model: str, tp: int) -> Iterator[Shape]:
    preset = PRESETS[model]
    for per_act_token, per_out_ch, m in product(tool.limit_per_act_token, tool.limit_per_out_ch, tool.batch_sizes):
        yield Shape(
            model, preset.experts, preset.top_k, bool(per_act_token), bool(per_out_ch), m, preset.k, preset.n // tp, tp
        )


def _admitted(tool: ToolFlags, model: str, tp: int) -> bool:
    preset = PRESETS[model]
    if preset.n % tp:
        raise InvalidInput(
            f"--tp-sizes: n = {preset.n} of {model} cannot be divided among {tp} ranks; give divisors of it"
        )
    found = (preset.k, preset.n // tp, preset.experts)
    return all(not wanted or value in wanted for value, wanted in zip(found, _wanted(tool), strict=True))


def _wanted(tool: ToolFlags) -> tuple[Sequence[int], ...]:
    return tool.limit_k, tool.limit_n, tool.limit_num_groups


def _filters(tool: ToolFlags) -> Iterator[str]:
    for option, wanted in zip(("--limit-k", "--limit-n", "--limit-num-groups"), _wanted(tool), strict=True):
        if wanted:
            yield f"{option} {' '.join(map(str, wanted))}"


def _offered(tool: ToolFlags) -> str:
    offered = (
        f"{model}: {PRESETS[model].experts} experts, k = {PRESETS[model].k}, n = {PRESETS[model].n // tp} (TP {tp})"
        for model, tp in product(tool.models, tool.tp_sizes)
    )
    return "; ".join(offered)
