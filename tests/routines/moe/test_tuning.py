"""--autotune of the fused MoE: both products' tactics are found before the timed calls, and forgotten."""

from __future__ import annotations

from unittest import mock

import pytest

from tests.contract import contract
from tests.fakes import texts_in
from tests.routines.harness import assert_passes, case_of, run, unconditional
from tests.routines.moe import library
from tests.routines.moe.broken import CASE

pytest.importorskip("flashinfer")
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig
from flashinfer.fused_moe.utils import get_hybrid_num_tokens_buckets, make_hybrid_bucket_mapper

from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.ranks import SingleRank

ROUTINES = {
    "cutlass_fused_moe": ("cutlass", library.cutlass, ("gemm1", "gemm2")),
    "trtllm_fp4_block_scale_moe": ("trtllm", library.fp4, ("moe",)),
    "trtllm_fp8_block_scale_moe": ("trtllm", library.fp8_block, ("moe",)),
    "trtllm_fp8_per_tensor_scale_moe": ("trtllm", library.fp8_per_tensor, ("moe",)),
}
NAMED = {
    "cutlass_fused_moe": "CUTLASS fused MoE",
    "trtllm_fp4_block_scale_moe": "FP4 block scale MoE",
    "trtllm_fp8_block_scale_moe": "FP8 block scale MoE",
    "trtllm_fp8_per_tensor_scale_moe": "FP8 per-tensor scale MoE",
}
MOST_TOKENS = 8192
BY_TOKENS = TuningConfig(
    dynamic_tensor_specs=(
        DynamicTensorSpec(
            (0,), (0,), get_hybrid_num_tokens_buckets(MOST_TOKENS), make_hybrid_bucket_mapper(MOST_TOKENS)
        ),
    )
)
"""As the library tunes its mixtures: for 21 numbers of tokens."""


class MoERunner(TunableRunner):
    def get_valid_tactics(self, inputs, profile):
        return [0, 1, 2]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        return None


@pytest.fixture
def measured(monkeypatch):
    """Numbers of tokens at which tactics were measured; 1 is the fastest."""
    tokens: list[int] = []

    def profile(self, runner, inputs, tactic, *args, **kwargs):
        tokens.append(len(inputs[0]))
        return abs(tactic - 1)

    monkeypatch.setattr(AutoTuner, "_profile_single_kernel", profile)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    with mock.patch("torch.cuda.synchronize"):
        yield tokens
    AutoTuner.get().clear_cache()


@pytest.mark.parametrize("name", ROUTINES)
def test_tactics_of_every_product_are_found_and_said(measured, name):
    backend, kernel, products = ROUTINES[name]

    def asks(**arguments):
        for product in products:
            AutoTuner.get().choose_one(product, [MoERunner()], BY_TOKENS, [arguments["output"]])
        return kernel(**arguments)

    with contract(f"flashinfer.fused_moe.{name}", asks), unconditional(name, backend):
        tuned, plain = run(name, f"{CASE} --autotune", backend), run(name, CASE, backend)
    assert_passes(tuned)
    assert measured == [tuned.case["num_tokens"]] * 3 * len(products)
    assert tuned.facts["tactic"] == "; ".join(["MoERunner 1"] * len(products))
    assert tuned.facts["tuning_ms"] > 0
    assert (tuned.label, plain.label) == (f"{backend}_autotune", backend)
    assert "tactic" not in plain.facts
    assert not AutoTuner.get().profiling_cache


@pytest.mark.parametrize("name", NAMED)
def test_the_documented_line(measured, name):
    backend, kernel, _ = ROUTINES[name]
    with contract(f"flashinfer.fused_moe.{name}", kernel), unconditional(name, backend):
        case = case_of(name, f"{CASE} --autotune --backends {backend} -v", dry_run_iters=3)
        events = list(run_case(case, SingleRank()))
    assert f"Autotune warmup for {NAMED[name]}: 3 iters" in texts_in(events, "INFO")
