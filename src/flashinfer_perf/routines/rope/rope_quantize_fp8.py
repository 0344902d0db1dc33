"""RoPE and FP8 quantisation in one, of heads whose rotated part and rest are tensors of their own."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.rope import backends, calls, inputs, quantising, reference, work
from flashinfer_perf.routines.rope.flags import WHOLE_PAIRS, RopeFlags, rotated
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "rope_quantize_fp8",
    flags=RopeFlags,
    uses=(*calls.SHAPE, "no_rope_dim", *quantising.FLAGS),
    rules=WHOLE_PAIRS,
)
def rope_quantize_fp8(case: RopeFlags, make: TensorFactory) -> Problem:
    """RoPE with FP8 quantization (SM8.9+)."""
    tensors = quantising.tensors(case, make, rotated(case), case.no_rope_dim)
    options = {
        "rotary_dim": rotated(case),
        "no_rope_dim": case.no_rope_dim,
        "is_neox": not case.interleave,
    }
    return Problem(
        tensors=tensors,
        reference=partial(reference.quantised, **quantising.scales(case)),
        work=work.quantised(case),
        checks=quantising.checks(tensors),
        ranks=make.ranks,
        shown=(*quantising.shown(tensors), *inputs.values(**options)),
    )


@rope_quantize_fp8.backend("cuda", requires=backends.QUANTISES, documented=backends.WITH_FP8)
def flashinfer_cuda(case: RopeFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    written = quantising.written(case, problem)
    kwargs = {**quantising.library_arguments(case, problem), **written, "backend": "cuda"}
    return Launch(flashinfer.rope.rope_quantize_fp8, kwargs=kwargs, mutates=tuple(written))


@rope_quantize_fp8.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: RopeFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    return quantising.eager_launch(case, problem)
