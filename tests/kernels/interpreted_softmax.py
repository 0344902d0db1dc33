"""Runs softmax in Triton's interpreter, a process of its own, and prints {case: whether it passes the check}."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import torch

from flashinfer_perf.kernels import softmax
from flashinfer_perf.kernels.softmax import PartTiling, RowTiling
from tests.routines.harness import problem_of

TILES = {
    "kept": RowTiling(kept=512, piece=64, warps=4, stages=3),
    "start kept": RowTiling(kept=64, piece=32, warps=4, stages=2),
    "one piece behind": RowTiling(kept=256, piece=128, warps=4, stages=3),
    "one part": PartTiling(piece=512, warps=4),
    "parts": PartTiling(piece=64, warps=4),
    "as many parts as a power of two": PartTiling(piece=128, warps=4),
}
SHAPES = ("--batch_size 3 --vocab_size 300", "--batch_size 2 --vocab_size 500", "--batch_size 1 --vocab_size 1")
INPUTS = tuple(
    f"--temperature {temperature} --input_distribution {distribution} --input_dtype {dtype}"
    for temperature, distribution in ((0.7, "normal"), (0.05, "peaked"))
    for dtype in ("float32", "float16", "bfloat16")
)


def passes(flags: str, tiles: RowTiling | PartTiling, factor: float = 1.0) -> bool:
    """Of the routine's check; ``factor`` spoils the temperature."""
    case, problem = problem_of("softmax", flags)
    logits = problem["logits"]
    probs = softmax.softmax(logits, case.temperature * factor, softmax.workspace(logits, tiles), tiles)
    return problem.checks["probs"].judge("probs", {"probs": probs}, problem.truth()).passed


def of_infinities(tiles: RowTiling | PartTiling) -> bool:
    """Rows that begin, or end, with more logits of minus infinity than a program has at once."""
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    logits[0, :270], logits[1, 30:] = -torch.inf, -torch.inf
    probs = softmax.softmax(logits, 1.0, softmax.workspace(logits, tiles), tiles)
    return torch.allclose(probs.double(), logits.double().softmax(dim=-1), rtol=1e-5, atol=0)


if __name__ == "__main__":
    found = {
        f"{label}: {shape} {given}": passes(f"{shape} {given}", tiles)
        for label, tiles in TILES.items()
        for shape in SHAPES
        for given in INPUTS
    }
    found |= {f"{label}: infinities": of_infinities(tiles) for label, tiles in TILES.items()}
    found |= {f"broken {label}": passes(SHAPES[0], tiles, factor=1.001) for label, tiles in TILES.items()}
    print(json.dumps(found))
