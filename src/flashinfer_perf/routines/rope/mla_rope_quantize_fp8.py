"""RoPE and FP8 quantisation in one, for multi-head latent attention: all heads share their keys, (tokens, dim).

``head_dim`` includes both parts: DeepSeek's 576 are 512 without rotation (``no_rope_dim``) and 64 with.
"""

from __future__ import annotations

from functools import partial

from flashinfer_perf.core.requirement import capability_in
from flashinfer_perf.core.routine import routine
from flashinfer_perf.lazy import flashinfer
from flashinfer_perf.routines.gemm.backends import CUTILE, cutile_installed
from flashinfer_perf.routines.rope import backends, inputs, quantising, reference, work
from flashinfer_perf.routines.rope.flags import WHOLE_PAIRS_OF_MLA, RopeFlags, rotated_of_mla
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem


@routine(
    "mla_rope_quantize_fp8",
    flags=RopeFlags,
    uses=(
        "batch_size",
        "seq_len",
        "num_qo_heads",
        "head_dim",
        "no_rope_dim",
        "input_dtype",
        *quantising.FLAGS,
    ),
    rules=WHOLE_PAIRS_OF_MLA,
)
def mla_rope_quantize_fp8(case: RopeFlags, make: TensorFactory) -> Problem:
    """MLA RoPE with FP8 quantization (SM8.9+)."""
    rope_dim = rotated_of_mla(case)
    tensors = quantising.tensors(case, make, rope_dim, case.no_rope_dim, one_key_head=True)
    options = {"rope_dim": rope_dim, "no_rope_dim": case.no_rope_dim, "is_neox": not case.interleave}
    return Problem(
        tensors=tensors,
        reference=partial(reference.quantised, **quantising.scales(case)),
        work=work.quantised_mla(case),
        checks=quantising.checks(tensors),
        ranks=make.ranks,
        shown=(*quantising.shown(tensors), *inputs.values(**options)),
    )


@mla_rope_quantize_fp8.backend("cuda", requires=backends.QUANTISES_MLA, documented=backends.WITH_FP8)
def flashinfer_cuda(case: RopeFlags, problem: Problem) -> Launch:
    """FlashInfer's CUDA kernel."""
    written = quantising.written(case, problem)
    kwargs = {**quantising.library_arguments(case, problem), **written}
    return Launch(flashinfer.rope.mla_rope_quantize_fp8, kwargs=kwargs, mutates=tuple(written))


@mla_rope_quantize_fp8.backend(
    "cutile",
    requires=(
        capability_in(CUTILE),
        backends.flashinfer_installed,
        cutile_installed,
        backends.interleaved,
        backends.powers_of_two,
    ),
    ignores=("enable_pdl",),
)
def flashinfer_cutile(case: RopeFlags, problem: Problem) -> Launch:
    """FlashInfer's cuTile kernel, which tunes itself at its first call."""
    written = quantising.written(case, problem)
    kwargs = {**quantising.library_arguments(case, problem), **written, "backend": "cutile"}
    return Launch(flashinfer.rope.rope_quantize_fp8, kwargs={**kwargs, "enable_pdl": False}, mutates=tuple(written))


@mla_rope_quantize_fp8.backend("torch", ignores=("enable_pdl",))
def torch_eager(case: RopeFlags, problem: Problem) -> Launch:
    """PyTorch operations, one after the other."""
    return quantising.eager_launch(case, problem)
