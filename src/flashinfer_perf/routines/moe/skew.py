"""--routing_skew: logits that make tokens choose some experts more often than others.

The selection is left to the routing method. Adding Gumbel noise to the logarithms of weights and taking the k largest
draws k different experts with those weights (Yellott 1977; Kool et al. 2019, arXiv:1903.06059).
"""

from __future__ import annotations

import math
from pathlib import Path

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.factory import TensorFactory

UNIFORM = "uniform"
ZIPF = "zipf:"
FILE = "file:"
CHOSEN = (2.0, 6.0)
"""Logits of the last and the first of a file's experts; they are evenly spaced, far enough for 16 bits."""
OTHERS = -4.0
"""Logit of an expert that a file does not name, with a tenth of a normal number added."""


def parse_skew(text: str) -> str:
    """The text, if it means something."""
    if text == UNIFORM or (text.startswith(FILE) and len(text) > len(FILE)):
        return text
    if text.startswith(ZIPF):
        if _is_exponent(text.removeprefix(ZIPF)):
            return text
        raise ValueError(f"the exponent in {text!r} must be a number of at least 0, as in zipf:1.2")
    raise ValueError(f"{text!r} is not one of uniform, zipf:S, file:PATH")


def _is_exponent(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def skewed_logits(make: TensorFactory, skew: str, tokens: int, experts: int, top_k: int) -> torch.Tensor:
    """(tokens, experts) fp32 on the CPU: the same on every device."""
    make.reserve("routing_logits", (2 * tokens, experts), DType.FLOAT32)  # and a router's scores
    if skew.startswith(ZIPF):
        return _zipf(make, float(skew.removeprefix(ZIPF)), tokens, experts)
    noise = torch.randn(tokens, experts, generator=make.generator("routing_logits"))
    if skew.startswith(FILE):
        chosen = experts_in(Path(skew.removeprefix(FILE)), experts, top_k)
        return _choosing(chosen[torch.arange(tokens) % len(chosen)], noise)
    return noise


def experts_in(path: Path, experts: int, top_k: int) -> torch.Tensor:
    """(lines, top_k) int64: the experts on each line of a file, separated by blanks or commas; '#' begins a comment.

    Raises:
        InvalidInput: with the line that does not name ``top_k`` different experts.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--routing_skew: cannot read {path}: {error}") from None
    lines = [(number, line.partition("#")[0]) for number, line in enumerate(text.splitlines(), 1)]
    rows = [_row(f"{path}, line {number}", line, experts, top_k) for number, line in lines if line.strip()]
    if not rows:
        raise InvalidInput(f"--routing_skew: {path} names no experts; each line lists the {top_k} of a token")
    return torch.tensor(rows)


def _row(where: str, line: str, experts: int, top_k: int) -> list[int]:
    words = line.replace(",", " ").split()
    if not all(word.isdecimal() and int(word) < experts for word in words):
        raise InvalidInput(f"--routing_skew: {where}: {line.strip()!r}: experts are numbered 0 to {experts - 1}")
    if len(words) != top_k or len(set(map(int, words))) != top_k:
        raise InvalidInput(
            f"--routing_skew: {where} must name {top_k} different experts (--top_k), not {line.strip()!r}"
        )
    return [int(word) for word in words]


def _zipf(make: TensorFactory, exponent: float, tokens: int, experts: int) -> torch.Tensor:
    """Which expert is how popular is drawn, too: neighbours in number are not neighbours in rank."""
    ranks = 1 + torch.randperm(experts, generator=make.generator("routing_popularity"))
    uniform = torch.rand(tokens, experts, generator=make.generator("routing_logits"), dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
    return (gumbel - exponent * torch.log(ranks.double())).float()


def _choosing(chosen: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Logits with which every method chooses these (tokens, k), the first one with the largest weight."""
    steps = torch.linspace(CHOSEN[1], CHOSEN[0], chosen.shape[1]).expand(chosen.shape)
    return (OTHERS + noise / 10).scatter(1, chosen, steps)
