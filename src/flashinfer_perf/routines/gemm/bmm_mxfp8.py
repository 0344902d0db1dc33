"""Batched product of MXFP8 operands: out[i] = A[i] B[i]."""

from __future__ import annotations

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.requirement import case_rule
from flashinfer_perf.core.routine import narrowed, routine
from flashinfer_perf.formats import mxfp8
from flashinfer_perf.lazy import flashinfer, torch
from flashinfer_perf.routines.gemm import backends, inputs, mxfp8_operands, tuning
from flashinfer_perf.routines.gemm import work as formulas
from flashinfer_perf.routines.gemm.flags import SIXTEEN_BITS, GemmFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem

entries_of_whole_tiles = case_rule(
    "a batch of one, or m and n divisible by 128",
    lambda case: case.batch_size == 1 or (case.m % 128 == 0 and case.n % 128 == 0),
    "kernels look for every batch entry's scales in tiles of their own, the library takes those of all rows together: "
    "with a batch_size above 1 m and n must be divisible by 128",
)


@routine(
    "bmm_mxfp8",
    flags=GemmFlags,
    uses=("batch_size", "m", "n", "k", narrowed("out_dtype", choices=SIXTEEN_BITS), "autotune"),
    facts=tuning.TUNING_FACTS,
    rules=(mxfp8_operands.RULE,),
)
def bmm_mxfp8(case: GemmFlags, make: TensorFactory) -> Problem:
    """Batched matrix multiplication with MXFP8 inputs."""
    batch, m, n, k = case.batch_size, case.m, case.n, case.k
    inputs.reserve_outputs(case, make, batch)
    a = mxfp8_operands.operand(make, "a", batch * m, k)
    b = mxfp8_operands.operand(make, "b", batch * n, k)
    tensors = {
        "a": a.elements.view(batch, m, k),
        "b": b.elements.view(batch, n, k).transpose(1, 2),
        "a_scale": a.scales,
        "b_scale": b.scales,
    }
    return Problem(
        tensors=tensors,
        reference=truth,
        work=formulas.products(case, DType.FP8_E4M3, DType.FP8_E4M3, batch),
        checks={"out": mxfp8_operands.check(case, batch)},
        ranks=make.ranks,
        shown=mxfp8_operands.shown(tensors),
    )


def truth(a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """(batch, m, n)."""
    of_a, of_b = by_entry(a_scale, a), by_entry(b_scale, b.transpose(1, 2))
    entries = zip(a, b.transpose(1, 2), of_a, of_b, strict=True)
    return {"out": torch.stack([mxfp8_operands.product(*entry) for entry in entries])}


def by_entry(scales: torch.Tensor, operand: torch.Tensor) -> torch.Tensor:
    """(batch, rows, blocks) of the flat bytes of all rows of (batch, rows, k)."""
    batch, rows, k = operand.shape
    return mxfp8_operands.linear(scales, batch * rows, k).unflatten(0, (batch, rows))


def call_flashinfer(case: GemmFlags, problem: Problem, backend: str) -> Launch:
    kwargs = {
        "A": problem["a"],
        "B": problem["b"],
        "A_scale": problem["a_scale"],
        "B_scale": problem["b_scale"],
        "dtype": case.out_dtype.torch,
        "out": inputs.room(case, problem),
        "backend": backend,
    }
    return tuning.tuned(case, Launch(flashinfer.gemm.bmm_mxfp8, kwargs=kwargs, mutates=("out",)), backend)


@bmm_mxfp8.backend(
    "cudnn",
    requires=backends.on(
        backends.BLACKWELL, backends.cudnn_installed, mxfp8_operands.whole_tiles, entries_of_whole_tiles
    ),
    state=tuning.tuner,
)
def cudnn(case: GemmFlags, problem: Problem) -> Launch:
    """cuDNN."""
    return call_flashinfer(case, problem, "cudnn")


@bmm_mxfp8.backend(
    "cutlass",
    requires=backends.on(
        "12.0 12.1",
        mxfp8_operands.whole_tiles,
        entries_of_whole_tiles,
        backends.n_multiple_of(32, "FlashInfer's CUTLASS kernels demand it"),
    ),
    ignores=("autotune",),
)
def cutlass(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's CUTLASS kernels."""
    return call_flashinfer(case, problem, "cutlass")


@bmm_mxfp8.backend(
    "auto",
    requires=backends.on(backends.BLACKWELL, mxfp8_operands.whole_tiles, entries_of_whole_tiles),
    state=tuning.tuner,
)
def auto(case: GemmFlags, problem: Problem) -> Launch:
    """FlashInfer's own choice; the record says which."""
    return call_flashinfer(case, problem, "auto")


@bmm_mxfp8.backend("torch", ignores=("autotune",))
def torch_eager(case: GemmFlags, problem: Problem) -> Launch:
    """PyTorch, dequantised to fp32 and multiplied."""
    kwargs = {**problem.tensors, "out": inputs.room(case, problem)}
    return Launch(multiply, kwargs=kwargs, mutates=("out",))


def multiply(a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, out: torch.Tensor) -> None:
    """out (batch, m, n) = A B of A (batch, m, k) and B (batch, k, n), scales of all rows in 128x4 tiles."""
    weights = b.transpose(1, 2)
    left = mxfp8.decode(mxfp8.Mxfp8(a, by_entry(a_scale, a)))
    right = mxfp8.decode(mxfp8.Mxfp8(weights, by_entry(b_scale, weights)))
    out.copy_(torch.bmm(left, right.transpose(1, 2)))
