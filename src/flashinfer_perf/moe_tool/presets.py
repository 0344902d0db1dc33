"""Shapes of the experts of published models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """One layer of experts.

    Attributes:
        experts: how many there are.
        top_k: how many of them a token goes to.
        k: width of a token.
        n: width inside an expert, over all tensor-parallel ranks.
        note: what a reader of the list should know.
    """

    experts: int
    top_k: int
    k: int
    n: int
    note: str = ""


TINY = "tiny"
PRESETS = {
    "nvidia/DeepSeek-R1-FP4": Preset(256, 8, 2048, 7168, "k and n as this benchmark has always had them: swapped"),
    "deepseek-ai/DeepSeek-R1": Preset(256, 8, 7168, 2048, "the model's real shape"),
    "mistralai/Mixtral-8x7B": Preset(8, 2, 4096, 14336),
    "Qwen/Qwen3-235B-A22B": Preset(128, 8, 4096, 1536),
    "meta-llama/Llama-4-Maverick": Preset(128, 1, 5120, 8192),
    "moonshotai/Kimi-K2": Preset(384, 8, 7168, 2048),
    "openai/gpt-oss-120b": Preset(128, 4, 2880, 2880, "its shape; measured without its biases and clamps"),
    TINY: Preset(8, 2, 128, 256, "no model: for trying out, seconds on a CPU"),
}
"""By the models' names. Sources: their published configurations."""


def listed() -> str:
    """A line for each, for the help."""
    lines = (
        f"{name}: {preset.experts} experts, top {preset.top_k}, k = {preset.k}, n = {preset.n}"
        + (f" ({preset.note})" if preset.note else "")
        for name, preset in PRESETS.items()
    )
    return "\n".join(lines)
