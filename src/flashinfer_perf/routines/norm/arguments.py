"""Arguments that the norms' kernels have in common, by FlashInfer's parameter names, which those in PyTorch share."""

from __future__ import annotations

from typing import Any

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.lazy import torch
from flashinfer_perf.routines.norm.flags import NormFlags
from flashinfer_perf.run.problem import Problem


def common(case: NormFlags, problem: Problem) -> dict[str, Any]:
    """Every tensor of the problem, x as ``input`` and the others under their own names, and eps."""
    named = {"input" if name == "x" else name: tensor for name, tensor in problem.tensors.items()}
    return {**named, "eps": case.eps}


def with_out(case: NormFlags, problem: Problem, dtype: DType) -> dict[str, Any]:
    """The same and ``out``: room for the result, in ``dtype`` and of x's shape."""
    return {**common(case, problem), "out": torch.empty_like(problem["x"], dtype=dtype.torch)}
