"""Flags: of the tool, and of the contestants, which are what each line of its table consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.flags import Since, backends_flag, did_you_mean, flag
from flashinfer_perf.moe_tool.presets import PRESETS

EITHER = (0, 1)
BATCH_SIZES = tuple(4 << power for power in range(10))


def parse_model(text: str) -> str:
    """The name of a preset."""
    if text not in PRESETS:
        raise ValueError(f"{text!r} is not one of {', '.join(PRESETS)}.{did_you_mean(text, PRESETS)}")
    return text


@dataclass(frozen=True)
class ToolFlags:
    """What to measure: every combination that no filter leaves out."""

    models: tuple[str, ...] = flag(
        ("nvidia/DeepSeek-R1-FP4",),
        parse=parse_model,
        metavar="NAME",
        help="Presets of shapes, listed below.",
    )
    tp_sizes: tuple[int, ...] = flag(
        (1,), minimum=1, aliases=("--tp-sizes",), help="Tensor-parallel ranks; one is measured, with n divided by them."
    )
    batch_sizes: tuple[int, ...] = flag(BATCH_SIZES, minimum=1, aliases=("--batch-sizes",), help="Tokens of a call.")
    limit_k: tuple[int, ...] = flag((), minimum=1, aliases=("--limit-k",), help="Only shapes with one of these k.")
    limit_n: tuple[int, ...] = flag(
        (), minimum=1, aliases=("--limit-n",), help="Only shapes with one of these n, after division by the ranks."
    )
    limit_num_groups: tuple[int, ...] = flag(
        (), minimum=1, aliases=("--limit-num-groups",), help="Only models with one of these numbers of experts."
    )
    limit_per_act_token: tuple[int, ...] = flag(
        (0,),
        choices=EITHER,
        aliases=("--limit-per-act-token",),
        metavar="{0,1}",
        help="Scales of FP8 activations: 0 one for the tensor, 1 one for each token; give both for both.",
    )
    limit_per_out_ch: tuple[int, ...] = flag(
        (0,),
        choices=EITHER,
        aliases=("--limit-per-out-ch",),
        metavar="{0,1}",
        help="Scales of FP8 weights: 0 one for each expert, 1 one for each of its output channels.",
    )


GENERAL = (
    "use_cuda_events",
    "allow_output_mismatch",
    "random_seed",
    "verbose",
    "output_path",
    "num_iters",
    "dry_run_iters",
    "case_tag",
    "device",
    "strict_timer",
    "cache",
    "target_precision",
    "max_time",
    "append",
    "jsonl",
    "version",
    "help",
)
"""The main program's options that the tool has, too."""


@dataclass(frozen=True)
class MoeFlags:
    """One line of the table, for one contestant. Its names are those of the CSV's columns."""

    family: ClassVar[str] = "moe_fp4"

    model: str = flag(help="Whose shape it is; nothing depends on it.", since=Since.OURS)
    num_tokens: int = flag(minimum=1, help="Rows of the input: m.")
    hidden_size: int = flag(minimum=1, help="Width of a token: k.")
    intermediate_size: int = flag(minimum=1, help="Width inside an expert on one rank: n.")
    num_experts: int = flag(minimum=1, help="Experts.")
    top_k: int = flag(minimum=1, help="Experts of a token.")
    tp_size: int = flag(1, minimum=1, help="Ranks among which n was divided.")
    per_act_token: bool = flag(False, since=Since.OURS, help="A scale for each token's FP8 activations.")
    per_out_ch: bool = flag(False, since=Since.OURS, help="A scale for each output channel of FP8 weights.")
    weight_dtype: DType = flag(choices=(DType.FP8_E4M3, DType.NVFP4), help="Format of the weights.")
    quant_dtype: DType = flag(
        choices=(DType.FP8_E4M3, DType.NVFP4, DType.FLOAT16), help="Format that activations are quantised to."
    )
    backends: tuple[str, ...] = backends_flag(since=Since.OURS)
