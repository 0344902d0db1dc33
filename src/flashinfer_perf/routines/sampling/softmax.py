"""Turns logits into probabilities: exp(logits / temperature), divided by its sum."""

from __future__ import annotations

from functools import partial

from flashinfer_perf.checks import tolerance
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.sampling import backends, eager, inputs, reference, work
from flashinfer_perf.routines.sampling.flags import SamplingFlags
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "softmax",
    flags=SamplingFlags,
    uses=("batch_size", "vocab_size", "input_dtype", "temperature", "enable_pdl", "input_distribution"),
)
def softmax(case: SamplingFlags, make: TensorFactory) -> Problem:
    """Softmax with optional temperature scaling."""
    shape = (case.batch_size, case.vocab_size)
    logits = inputs.logits(make, "logits", shape, case.input_dtype, case.input_distribution)
    return Problem(
        tensors={"logits": logits},
        reference=partial(reference.softmax, temperature=case.temperature),
        work=work.filtered(case, case.input_dtype, DType.FLOAT32),
        checks={"probs": tolerance.for_softmax(case.vocab_size, float(logits.abs().amax()) / case.temperature)},
        ranks=make.ranks,
        shown=inputs.shown("logits", logits),
    )


@softmax.backend("cuda", requires=backends.NEEDS_CUDA, documented=backends.DOCUMENTED)
def flashinfer_cuda(case: SamplingFlags, problem: Problem) -> Launch:
    """FlashInfer's kernel, after a conversion to fp32 where logits have 16 bits."""
    kwargs = {**problem.tensors, "temperature": case.temperature, "enable_pdl": case.enable_pdl}
    return Launch(flashinfer.sampling.softmax, kwargs=kwargs, returns=("probs",))


@softmax.backend("triton", requires=backends.NEEDS_TRITON, ignores=("enable_pdl",))
def triton_kernel(case: SamplingFlags, problem: Problem) -> Launch:
    """This project's Triton kernels: one for many rows, two for few."""
    from flashinfer_perf.kernels import softmax as kernels

    logits = problem["logits"]
    tiles = kernels.tiling(case.batch_size, case.vocab_size, kernels.multiprocessors(logits.device))
    kwargs = {"logits": logits, "temperature": case.temperature, "partials": kernels.workspace(logits, tiles)}
    return Launch(kernels.softmax, kwargs={**kwargs, "tiles": tiles}, returns=("probs",), scratch=("partials",))


@softmax.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: SamplingFlags, problem: Problem) -> Launch:
    """A division and torch.softmax, in fp32."""
    return Launch(eager.softmax, kwargs={**problem.tensors, "temperature": case.temperature}, returns=("probs",))
