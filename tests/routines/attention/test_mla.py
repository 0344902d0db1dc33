"""BatchMLAPagedAttentionWrapper: what each backend calls and refuses, its checks, and kernels that those must find out.

What its problem consists of is in test_mla_inputs.py.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Status
from flashinfer_perf.routines.attention import backends
from flashinfer_perf.routines.attention.operands import E4M3_MAX, LARGEST
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.ranks import SingleRank
from tests.contract import contract, covers
from tests.fakes import texts_in
from tests.routines.attention import compiled_latent
from tests.routines.attention.broken import broken
from tests.routines.attention.broken_latent import FP8_CACHE, FP8_QUERY, MLA
from tests.routines.harness import (
    assert_caught,
    assert_passes,
    case_of,
    launch_of,
    problem_of,
    routine_named,
    run,
    run_broken,
    unconditional,
)

NAME = "BatchMLAPagedAttentionWrapper"
API = "flashinfer.mla.BatchMLAPagedAttentionWrapper"
LENGTHS = "--batch_size 4 --s_kv 45 --page_size 8 --random_actual_seq_len"
CASE = f"{LENGTHS} --num_qo_heads 4 --head_dim_ckv 256 --head_dim_kpe 64"
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
    assert reason(name, (9, 0), flags) is None
    assert_works(called, name, flags, name)


@pytest.mark.parametrize("formats", SAME)
@pytest.mark.parametrize("page", [1, 32, 128])
def test_flashinfers_own_code_of_cutlass_accepts_the_plan_and_the_run(monkeypatch, formats, page):
    called = compiled_latent.install(monkeypatch, (10, 0))
    flags = f"{DEEPSEEK} --page_size {page} {formats_of(formats)}"
    assert reason("cutlass", (10, 0), flags) is None
    assert_works(called, "cutlass", flags, "cutlass")


# ---- What is refused, and that the library refuses the same ----

FA_FORMATS = "it needs q_dtype and kv_dtype of bfloat16, float16, bfloat16 with fp8_e4m3"
SAME_FORMATS = "it needs q_dtype and kv_dtype of bfloat16, float16"
DEEPSEEK_DIMS = "it needs head_dim_ckv of 512 and head_dim_kpe of 64"
GPU = "it needs compute capability {}, and this GPU has {}"
MIXED_16 = "--q_dtype bfloat16 --kv_dtype float16"
DENSE = f"{DEEPSEEK} --s_kv 128"
REFUSED = [
    ("fa2", (7, 5), "", GPU.format("8.0 or newer", "7.5")),
    ("fa2", (9, 0), formats_of(ALL_FP8[0]), FA_FORMATS),
    ("fa2", (9, 0), "--q_dtype float16 --kv_dtype fp8_e4m3", FA_FORMATS),
    ("fa2", (9, 0), MIXED_16, FA_FORMATS),
    ("fa2", (10, 0), formats_of(MIXED[0]), SAME_FORMATS),
    ("fa2", (8, 0), formats_of(MIXED[0]), SAME_FORMATS),
    ("fa2", (9, 0), f"{formats_of(MIXED[0])} --head_dim_ckv 256", f"{DEEPSEEK_DIMS} for an FP8 cache"),
    ("fa3", (8, 9), "", GPU.format("9.x", "8.9")),
    ("fa3", (10, 0), "", GPU.format("9.x", "10.0")),
    ("fa3", (9, 0), formats_of(ALL_FP8[0]), FA_FORMATS),
    ("fa3", (9, 0), f"{formats_of(MIXED[0])} --head_dim_ckv 256", f"{DEEPSEEK_DIMS} for an FP8 cache"),
    ("cutlass", (9, 0), "", GPU.format("10.x or 11.x", "9.0")),
    ("cutlass", (10, 0), formats_of(MIXED[0]), SAME_FORMATS),
    ("cutlass", (10, 0), "--head_dim_ckv 256", DEEPSEEK_DIMS),
    ("cutlass", (10, 0), "--head_dim_kpe 128", DEEPSEEK_DIMS),
    ("cutlass", (10, 0), "--num_qo_heads 64", "it needs num_qo_heads of 128"),
    ("cutlass", (10, 0), "--page_size 48", "it needs page_size a divisor of 128"),
    ("cutlass", (10, 0), "--page_size 256", "it needs page_size a divisor of 128"),
]
OF_TRTLLM = [
    ((10, 0), formats_of(SAME[1]), "it needs q_dtype and kv_dtype of bfloat16, fp8_e4m3"),
    ((10, 0), formats_of(MIXED[0]), "it needs q_dtype and kv_dtype of bfloat16, fp8_e4m3"),
    ((10, 0), "--head_dim_kpe 128", DEEPSEEK_DIMS),
    ((10, 0), "--page_size 16", "it needs page_size of 32 or 64"),
    ((10, 0), "--num_qo_heads 96", "it needs num_qo_heads up to 64 or from 128 on"),
    ((10, 0), "--s_kv 129", "it needs pages of every sequence that fill multiples of 128 tokens"),
    ((9, 0), "", None),
]


def reason(name, capability, flags):
    """Why such a GPU cannot run it, packages aside; None if it can."""
    machine, case = Machine("cuda:0", "NVIDIA H200", capability), case_of(NAME, flags).flags
    found = (need.unmet(machine, case) for need in routine_named(NAME).backends[name].requires if not need.on_package)
    return next(filter(None, found), None)


@pytest.mark.parametrize(("name", "capability", "more", "says"), REFUSED)
def test_a_limit_is_said_and_is_the_librarys(monkeypatch, name, capability, more, says):
    """Its planning refuses the same, as unsupported."""
    flags = f"{DEEPSEEK} {more}"
    assert reason(name, capability, flags) == says
    compiled_latent.install(monkeypatch, capability)
    case, problem = problem_of(NAME, flags)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  (its type and text are checked below)
        routine_named(NAME).backends[name].prepare(case, problem)
    assert refusal.type.__name__ == "_BackendPlanUnsupportedError"


@pytest.mark.parametrize(("capability", "more", "says"), OF_TRTLLM)
def test_limits_of_trtllm_native(capability, more, says):
    found = reason("trtllm-native", capability, f"{DENSE} {more}")
    assert found == says if says else "compute capability" in found


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (11, 0)])
def test_the_library_has_no_trtllm_native_elsewhere(monkeypatch, capability):
    assert "compute capability" in reason("trtllm-native", capability, DENSE)
    compiled_latent.install(monkeypatch, capability)
    case, problem = problem_of(NAME, DENSE)
    with pytest.raises(ValueError, match="XQA MLA requires SM120a"):
        routine_named(NAME).backends["trtllm-native"].prepare(case, problem)()


def test_up_to_its_limits_it_runs():
    assert reason("trtllm-native", (10, 0), f"{DENSE} --num_qo_heads 64") is None
    assert reason("trtllm-native", (10, 3), f"{DENSE} {formats_of(ALL_FP8[0])} --page_size 64") is None
    assert reason("cutlass", (11, 0), f"{DEEPSEEK} --page_size 1") is None
    assert reason("fa2", (9, 0), f"{DEEPSEEK} {formats_of(MIXED[0])}") is None
    assert reason("fa2", (12, 0), DEEPSEEK) is None


@pytest.mark.parametrize("name", ["fa2", "fa3"])
@pytest.mark.parametrize("ckv", [32, 64, 96, 128, 192, 256, 384, 512])
@pytest.mark.parametrize("kpe", [8, 32, 64, 96])
def test_head_dimensions_that_flashinfer_refuses_are_refused_with_a_reason(monkeypatch, name, ckv, kpe):
    """The requirements say the same as the library's own planning, and say it before anything is allocated."""
    compiled_latent.install(monkeypatch)
    flags = f"--batch_size 1 --s_kv 9 --page_size 8 --num_qo_heads 4 --head_dim_ckv {ckv} --head_dim_kpe {kpe}"
    refused, prepare = reason(name, (9, 0), flags), routine_named(NAME).backends[name].prepare
    if refused is None:
        prepare(*problem_of(NAME, flags))
    else:
        assert "head_dim_ckv" in refused
        with pytest.raises(ValueError, match="requires head_dim_ckv"):
            prepare(*problem_of(NAME, flags))


@pytest.mark.parametrize("name", ["fa2", "fa3"])
def test_what_only_flashinfer_can_know_is_unsupported_too(monkeypatch, name):
    """Its planning refuses what needs more shared memory than the GPU has."""
    compiled_latent.install(monkeypatch)
    with unconditional(NAME, name):
        record = run(NAME, f"{CASE} --head_dim_ckv 512 --head_dim_kpe 128", name)
    assert record.status is Status.UNSUPPORTED
    assert "shared-memory bytes" in record.reason


# ---- Right kernels pass, wrong ones are caught ----


@pytest.mark.parametrize("formats", [*SAME, *MIXED, *ALL_FP8])
@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 1 --s_kv 1 --page_size 1",
        "--batch_size 3 --s_kv 1 --page_size 4",
        "--batch_size 7 --s_kv 33 --page_size 1 --random_actual_seq_len",
        "--batch_size 2 --s_kv 5 --page_size 32 --random_actual_seq_len",
        "--batch_size 3 --s_kv 64 --page_size 16",
        "--batch_size 3 --s_kv 63 --page_size 13 --random_actual_seq_len",
        "--batch_size 2 --s_kv 700 --page_size 32 --random_actual_seq_len",
    ],
)
@pytest.mark.parametrize("shape", ["4 128 64", "1 7 1", "16 512 64"])
def test_torch_passes(flags, shape, formats):
    heads, ckv, kpe = shape.split()
    shaped = f"{flags} --num_qo_heads {heads} --head_dim_ckv {ckv} --head_dim_kpe {kpe}"
    assert_passes(run(NAME, f"{shaped} {formats_of(formats)}", "torch"))


BROKEN = {
    SAME[0]: MLA,
    SAME[1]: MLA,
    MIXED[0]: [*MLA, *FP8_CACHE],
    ALL_FP8[0]: [*MLA, *FP8_CACHE, *FP8_QUERY],
}


@pytest.mark.parametrize(
    ("formats", "change"),
    [(formats, change) for formats, changes in BROKEN.items() for change in changes],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_broken_kernel_is_caught(formats, change):
    assert_caught(run_broken(NAME, broken(NAME, change), f"{CASE} {formats_of(formats)}"))


# ---- Names, and bad input ----


def test_the_former_name_of_a_backend():
    case = case_of(NAME, f"{CASE} --backends trtllm-gen-native torch")
    assert case.backends == ("trtllm-native", "torch")
    said = texts_in(list(run_case(case, SingleRank())), "WARNING")
    assert said[0] == (
        "Backend name 'trtllm-gen-native' has been renamed to 'trtllm-native' and will be removed in a future release."
    )


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("--page_size 0", "--page_size must be at least 1, not 0"),
        ("--s_qo 2", "--s_qo: '?2'? is not one of 1"),
        ("--q_dtype fp8_e5m2", "--q_dtype: 'fp8_e5m2' is not one of bfloat16, float16, fp8_e4m3"),
        ("--kv_dtype fp8_e5m2", "--kv_dtype: 'fp8_e5m2' is not one of bfloat16, float16, fp8_e4m3"),
    ],
)
def test_bad_values(typed, says):
    with pytest.raises(InvalidInput, match=says):
        case_of(NAME, f"{CASE} {typed}")


@pytest.mark.parametrize("missing", ["page_size", "head_dim_ckv", "head_dim_kpe", "num_qo_heads", "s_kv"])
def test_missing_flags(missing):
    typed = f"{CASE} ".split(f"--{missing} ")
    with pytest.raises(InvalidInput, match=f"missing required flag --{missing}"):
        case_of(NAME, typed[0] + typed[1].partition(" ")[2])


def test_formats_that_torch_does_not_mix():
    record = run(NAME, f"{CASE} {MIXED_16}", "torch")
    assert record.status is Status.UNSUPPORTED
    assert record.reason == "it needs kv_dtype the same as q_dtype, or FP8"
