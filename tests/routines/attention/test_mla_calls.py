"""Latent attention: what each backend calls, and FlashInfer's own Python up to its kernels."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from flashinfer_perf.routines.attention import backends
from flashinfer_perf.routines.attention.operands import E4M3_MAX, LARGEST
from tests.contract import contract, covers
from tests.routines.attention import compiled_latent
from tests.routines.harness import assert_passes, launch_of, run, unconditional

NAME = "BatchMLAPagedAttentionWrapper"
API = "flashinfer.mla.BatchMLAPagedAttentionWrapper"
CASE = "--batch_size 4 --s_kv 29 --page_size 8 --random_actual_seq_len --num_qo_heads 4"
CASE += " --head_dim_ckv 256 --head_dim_kpe 64"
DEEPSEEK = "--batch_size 2 --s_kv 100 --page_size 32 --num_qo_heads 128 --head_dim_ckv 512 --head_dim_kpe 64"
DEEPSEEK += " --random_actual_seq_len"
SAME = ["bfloat16 bfloat16", "float16 float16"]
MIXED = ["bfloat16 fp8_e4m3"]
ALL_FP8 = ["fp8_e4m3 fp8_e4m3"]
TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn}
Q_SCALE, K_SCALE = LARGEST["q"] / E4M3_MAX, LARGEST["k"] / E4M3_MAX


def formats_of(formats):
    q, kv = formats.split()
    return f"--q_dtype {q} --kv_dtype {kv}"


@pytest.fixture(autouse=True)
def _small_workspaces(monkeypatch):
    """128 MiB of zeros cost more than all else."""
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 1 << 12)


# ---- The calls of the library ----

WRAPPED = [
    *[(name, formats) for name in ("fa2", "fa3") for formats in (*SAME, *MIXED)],
    *[("cutlass", formats) for formats in SAME],
]


@covers(NAME, "fa2", "fa3", "cutlass")
@pytest.mark.parametrize(("name", "formats"), WRAPPED)
def test_the_wrapper_is_called_as_it_declares(name, formats):
    with contract(API, plan=None, run=lambda **call: call["out"]) as wrapper:
        launch, problem = launch_of(NAME, name, f"{CASE} {formats_of(formats)}")
        returned = launch()
    made, plan, call = wrapper.instance.made_with, wrapper.instance.plan.call, wrapper.instance.run.call
    q_dtype, kv_dtype = (TORCH[dtype] for dtype in formats.split())
    assert not made.pop("float_workspace_buffer").any()
    assert made == {"backend": name}
    metadata = plan.pop("metadata")
    assert all(getattr(metadata, field) is problem[field] for field in ("qo_indptr", "kv_indptr", "kv_indices"))
    assert metadata.kv_len_arr is problem["kv_len"]
    assert plan == {
        "num_heads": 4,
        "head_dim_ckv": 256,
        "head_dim_kpe": 64,
        "page_size": 8,
        "causal": False,
        "sm_scale": 1 / math.sqrt(192),
        "q_data_type": q_dtype,
        "kv_data_type": kv_dtype,
        "query_layout": "packed",
        "kv_cache_layout": "packed",
    }
    assert call.pop("query") is problem["q"]
    assert call.pop("kv_cache") is problem["kv_cache"]
    assert_output(call.pop("out"), (4, 4, 256), q_dtype)
    assert call == ({"ckv_scale": K_SCALE, "kpe_scale": K_SCALE} if formats in MIXED else {})
    assert launch.outputs(returned).keys() == problem.checks.keys()
    assert launch.facts["plan_ms"] >= 0


def assert_output(out, shape, dtype):
    assert (out.shape, out.dtype, out.is_contiguous()) == (shape, dtype, True)


@covers(NAME, "trtllm-native")
@pytest.mark.parametrize("pdl", ["--enable_pdl", ""])
@pytest.mark.parametrize(("formats", "scales"), [(SAME[0], (1.0, 1.0)), (ALL_FP8[0], (Q_SCALE, K_SCALE))])
def test_trtllm_native_is_called_as_it_declares(formats, scales, pdl):
    with contract("flashinfer.mla.trtllm_batch_decode_with_kv_cache_mla", lambda **call: call["out"]) as kernel:
        launch, problem = launch_of(NAME, "trtllm-native", f"{DEEPSEEK} {formats_of(formats)} {pdl}")
        returned = launch()
    call, (q_scale, k_scale) = dict(kernel.call), scales
    query, out = call.pop("query"), call.pop("out")
    assert query.shape == (2, 1, 128, 576)
    assert torch.equal(query.squeeze(1).view(torch.uint8), problem["q"].view(torch.uint8))
    assert_output(out, (2, 1, 128, 512), torch.bfloat16)
    assert out.data_ptr() == launch.arguments()["out"].data_ptr()
    tensors = {"kv_cache": "kv_cache", "block_tables": "block_tables", "seq_lens": "kv_len"}
    assert all(call.pop(name) is problem[tensor] for name, tensor in tensors.items())
    assert not call.pop("workspace_buffer").any()
    assert call == {
        "qk_nope_head_dim": 128,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "max_seq_len": 100,
        "bmm1_scale": pytest.approx(q_scale * k_scale / math.sqrt(192)),
        "bmm2_scale": k_scale,
        "enable_pdl": bool(pdl),
    }
    assert launch.outputs(returned).keys() == problem.checks.keys()
    assert launch.scratch == ("workspace_buffer",)


# ---- FlashInfer's own Python, up to its kernels ----


def assert_works(called, name, flags, kernel):
    with warnings.catch_warnings(), unconditional(NAME, name):
        warnings.simplefilter("error")
        assert_passes(run(NAME, flags, name))
    assert set(called) == {kernel}


@pytest.mark.parametrize("name", ["fa2", "fa3"])
@pytest.mark.parametrize("formats", [*SAME, *MIXED])
@pytest.mark.parametrize(
    "more", ["", "--batch_size 1 --s_kv 1", "--page_size 1", "--page_size 64", "--no-random_actual_seq_len"]
)
def test_flashinfers_own_code_accepts_the_plan_and_the_run(monkeypatch, name, formats, more):
    """Metadata, layouts and formats pass the library's validation, and what reaches its kernel gives right outputs."""
    called = compiled_latent.install(monkeypatch)
    flags = f"{CASE} --head_dim_ckv {512 if formats in MIXED else 256} {formats_of(formats)} {more}"
    assert_works(called, name, flags, name)


@pytest.mark.parametrize("formats", SAME)
@pytest.mark.parametrize("page", [1, 32, 128])
def test_flashinfers_own_code_of_cutlass_accepts_the_plan_and_the_run(monkeypatch, formats, page):
    called = compiled_latent.install(monkeypatch, (10, 0))
    flags = f"{DEEPSEEK} --page_size {page} {formats_of(formats)}"
    assert_works(called, "cutlass", flags, "cutlass")
