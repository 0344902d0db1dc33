"""What our Triton kernels are called with; ``tests/kernels`` and ``tests/gpu`` ask what they do."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with the extra 'dev' on Linux")

from flashinfer_perf.kernels.moe.experts import TritonExperts
from flashinfer_perf.kernels.moe.routing import TritonRouting
from flashinfer_perf.kernels.moe.weights import MULTIPLES, ExpertFormat
from flashinfer_perf.routines.moe import hidden, launches
from flashinfer_perf.routines.moe.layer import Layer, mixture
from flashinfer_perf.routines.moe.router import Router
from flashinfer_perf.routines.moe.weights import FP8_BLOCK, FP8_TENSOR, NVFP4, SIXTEEN_BITS
from flashinfer_perf.run.judge import judge
from flashinfer_perf.run.launch import Copies
from tests.routines.gemm.kernels import assert_refused
from tests.routines.harness import assert_passes, launch_of, run, unconditional
from tests.routines.moe.broken import CASE

FORMATS = {
    ExpertFormat.BF16: SIXTEEN_BITS,
    ExpertFormat.FP8_TENSOR: FP8_TENSOR,
    ExpertFormat.FP8_BLOCK: FP8_BLOCK,
    ExpertFormat.NVFP4: NVFP4,
}
HERE = "--local_expert_offset 2 --local_num_experts 4"
CASES = [
    ("trtllm_fp8_block_scale_moe", f"--n_group 4 --topk_group 2 --use_routing_bias {HERE}"),
    ("trtllm_fp8_per_tensor_scale_moe", "--routing_method llama4 --use_routing_scales_on_input"),
    ("trtllm_fp4_block_scale_moe", "--routing_method renormalize --gated_act geglu --input_dtype float16"),
    ("trtllm_fp4_block_scale_moe", f"--routing_method topk --activation-type relu2 {HERE}"),
    ("cutlass_fused_moe", "--tp_size 2 --tp_rank 1 --ep_size 2 --ep_rank 1"),
    ("cutlass_fused_moe", "--cutlass_variant fp8 --activation-type Silu"),
    ("cutlass_fused_moe", "--cutlass_variant nvfp4"),
]
each_case = pytest.mark.parametrize(("name", "flags"), CASES)


def experts(self, x, topk_ids, topk_weights, out, *, x_scale=None):
    """By the kernels' documentation, for the weights that the plan has at the time of the call."""
    self._check_call(x, topk_ids, topk_weights, out)
    if self.weights.format.fp8:
        self._quantised(x, x_scale)
    weights = self.weights
    fields = ("w1", "w2", "w1_scale", "w2_scale", "w1_global", "w2_global")
    tensors = {name: getattr(weights, name) for name in fields if getattr(weights, name) is not None}
    here = range(self.expert_offset, self.expert_offset + weights.num_experts)
    layer = Layer(self.activation, here, self.scales_on_input)
    rows = hidden.decoded({"x": x, "x_scale": x_scale})
    out.copy_(mixture(layer, rows, topk_ids.long(), topk_weights, FORMATS[weights.format].expert(tensors)))


def route(self, logits, bias, topk_ids, topk_weights):
    router = Router(self.method, self.top_k, self.n_group, self.topk_group or 1, self.routed_scaling_factor)
    chosen = router.select(router.scores(logits, bias))
    topk_ids.copy_(chosen)
    topk_weights.copy_(router.weights(logits, chosen))


@pytest.fixture(autouse=True)
def _kernels_by_their_documentation(monkeypatch):
    """Plans are the kernels' own, with what they check."""
    monkeypatch.setattr(TritonExperts, "__call__", experts)
    monkeypatch.setattr("flashinfer_perf.kernels.moe.experts.prepared", lambda weights, dtype: weights)
    monkeypatch.setattr(TritonRouting, "__call__", route)


@each_case
def test_the_kernels_get_what_their_documentation_asks_for(name, flags):
    with unconditional(name, "triton"):
        assert_passes(run(name, f"{CASE} {flags}", "triton"))


@each_case
def test_a_call_on_copies_reads_no_original(name, flags):
    """A plan that held on to its weights would read them while the timer rotates others."""
    launch, problem = launch_of(name, "triton", f"{CASE} {flags}")
    truth = problem.truth()
    copied = launch.on_copies(Copies())
    for tensor in problem.tensors.values():
        tensor.view(torch.uint8).fill_(0xFF)
    findings = judge(problem, copied.outputs(copied()), truth)
    assert all(finding.passed for finding in findings), findings


def test_the_second_products_scale_of_fp8_is_given():
    """Otherwise it would be found in the call, by kernels that nobody else starts."""
    launch, _ = launch_of("trtllm_fp8_per_tensor_scale_moe", "triton", CASE)
    plan = launch.kwargs["plan"].experts
    assert plan._second_input.form == "given"
    assert float(plan._second_input.scale) == pytest.approx(1 / 7)


def test_multiples_are_the_kernels():
    theirs = {format.name: multiple for format, multiple in MULTIPLES.items()}
    assert theirs == launches.MULTIPLES


@pytest.mark.parametrize(
    ("name", "flags", "multiple"),
    [
        ("trtllm_fp8_per_tensor_scale_moe", "--hidden_size 48", 32),
        ("trtllm_fp4_block_scale_moe", "--hidden_size 96", 64),
        ("cutlass_fused_moe", "--tp_size 8", 32),
        ("cutlass_fused_moe", "--tp_size 4 --cutlass_variant nvfp4", 64),
    ],
)
def test_sizes_that_the_kernels_do_not_take(name, flags, multiple):
    assert_refused(name, "triton", f"{CASE} {flags}", f"divisible by {multiple}")
