"""Decoding: what each backend refuses, with which words, and that the installed library refuses the same."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Status
from flashinfer_perf.routines.attention import backends, decode
from flashinfer_perf.routines.attention.xqa import PAGE_SIZES
from tests.routines.attention import compiled_decode
from tests.routines.harness import case_of, problem_of, routine_named, run, unconditional

NAME = "BatchDecodeWithPagedKVCacheWrapper"
CASE = "--batch_size 2 --s_kv 20 --page_size 16 --num_qo_heads 4 --num_kv_heads 2 --head_dim_qk 128"
GROUP_OF_5 = "--num_qo_heads 10"
MIXED_16 = "--q_dtype bfloat16 --kv_dtype float16"
FP8_CACHE = "--kv_dtype fp8_e4m3"
ALL_FP8 = "--q_dtype fp8_e4m3 --kv_dtype fp8_e4m3"
E5M2 = "--kv_dtype fp8_e5m2"
ALL_E5M2 = "--q_dtype fp8_e5m2 --kv_dtype fp8_e5m2"
OTHER_VALUES = "--head_dim_vo 64"
SAME_DIMS = "it needs head_dim_vo the same as head_dim_qk"
WHOLE_HEADS = "it needs head_dim_qk and head_dim_vo of 64, 128, 256, 512"
HOPPER_HEADS = "it needs head_dim_qk and head_dim_vo of 64, 128, 256"
WIDE_HEADS = "it needs head_dim_qk of 128 or 256 for FP8"
ONE_QUERY = "it needs s_qo of 1"
FORMATS = "it needs q_dtype and kv_dtype of bfloat16, float16"
FP8_WITH_16 = ", bfloat16 with fp8_e4m3, bfloat16 with fp8_e5m2, float16 with fp8_e4m3, float16 with fp8_e5m2"
E4M3_WITH_16 = ", bfloat16 with fp8_e4m3, float16 with fp8_e4m3"
GPU = "it needs compute capability {}, and this GPU has {}"
OLD = "for bfloat16 it needs compute capability 8.0 or newer"
XQA_GROUPS = "it needs num_qo_heads / num_kv_heads up to 64, or 32 for head_dim_qk of 256"
XQA_PAGES = "it needs page_size of 16, 32, 64 or 128"
POWER = "it needs page_size a power of two"

REFUSED = [
    ("fa2", "9.0", GROUP_OF_5, "it needs num_qo_heads / num_kv_heads of 1, 2, 3, 4, 6, 8 or 16"),
    ("fa2", "9.0", "--head_dim_qk 96", WHOLE_HEADS),
    ("fa2", "9.0", OTHER_VALUES, WHOLE_HEADS),
    ("fa2", "9.0", "--s_qo 2", ONE_QUERY),
    ("fa2", "9.0", ALL_FP8, FORMATS + FP8_WITH_16),
    ("fa2", "9.0", MIXED_16, FORMATS + FP8_WITH_16),
    ("fa2", "7.5", "", OLD),
    ("fa2", "7.5", "--q_dtype float16 --kv_dtype bfloat16", OLD),
    ("fa2", "7.0", "--q_dtype float16 --kv_dtype float16", GPU.format("7.5 or newer", "7.0")),
    ("fa2_tc", "7.5", "--q_dtype float16 --kv_dtype float16", GPU.format("8.0 or newer", "7.5")),
    ("fa2_tc", "9.0", "--head_dim_qk 96", WHOLE_HEADS),
    ("fa2_tc", "9.0", "--head_dim_qk 192", WHOLE_HEADS),
    ("fa2_tc", "9.0", OTHER_VALUES, WHOLE_HEADS),
    ("fa2_tc", "9.0", f"{FP8_CACHE} --head_dim_qk 64", WIDE_HEADS),
    ("fa2_tc", "9.0", f"{FP8_CACHE} --head_dim_qk 512", WIDE_HEADS),
    ("fa2_tc", "9.0", ALL_FP8, FORMATS + FP8_WITH_16),
    ("fa2_tc", "9.0", MIXED_16, FORMATS + FP8_WITH_16),
    ("fa3", "8.9", "", GPU.format("9.x", "8.9")),
    ("fa3", "10.0", "", GPU.format("9.x", "10.0")),
    ("fa3", "12.0", "", GPU.format("9.x", "12.0")),
    ("fa3", "9.0", "--s_qo 2", ONE_QUERY),
    ("fa3", "9.0", "--head_dim_qk 96", HOPPER_HEADS),
    ("fa3", "9.0", "--head_dim_qk 512", HOPPER_HEADS),
    ("fa3", "9.0", FP8_CACHE, f"{FORMATS}, fp8_e4m3"),
    ("fa3", "9.0", ALL_E5M2, f"{FORMATS}, fp8_e4m3"),
    ("fa3", "9.0", MIXED_16, f"{FORMATS}, fp8_e4m3"),
    ("fa3", "9.0", f"{ALL_FP8} --head_dim_qk 64", WIDE_HEADS),
    ("auto", "7.5", "", GPU.format("8.0 or newer", "7.5")),
    ("auto", "9.0", "--head_dim_qk 96", WHOLE_HEADS),
    ("auto", "9.0", MIXED_16, f"{FORMATS}{FP8_WITH_16}, fp8_e4m3"),
    ("auto", "9.0", f"{FP8_CACHE} --head_dim_qk 64", WIDE_HEADS),
    *[
        ("auto", found, ALL_FP8, "for FP8 queries it needs compute capability 9.x: it would choose FlashAttention-2, "
         "which has none") for found in ("8.0", "10.0", "12.0")
    ],
    ("cudnn", "7.5", "", GPU.format("8.0 or newer", "7.5")),
    ("cudnn", "9.0", FP8_CACHE, FORMATS),
    ("cudnn", "9.0", ALL_FP8, FORMATS),
    ("cudnn", "9.0", OTHER_VALUES, SAME_DIMS),
    ("cudnn-native", "7.5", "", GPU.format("8.0 or newer", "7.5")),
    ("cudnn-native", "9.0", FP8_CACHE, FORMATS),
    ("cudnn-native", "9.0", MIXED_16, FORMATS),
    ("trtllm-gen", "9.0", "", GPU.format("10.x", "9.0")),
    ("trtllm-gen", "12.0", "", GPU.format("10.x", "12.0")),
    ("trtllm-gen", "10.0", f"{FP8_CACHE} --q_dtype float16", f"{FORMATS}, fp8_e4m3, bfloat16 with fp8_e4m3"),
    ("trtllm-gen", "10.0", E5M2, f"{FORMATS}, fp8_e4m3, bfloat16 with fp8_e4m3"),
    ("trtllm-gen", "10.0", OTHER_VALUES, SAME_DIMS),
    ("trtllm-gen", "10.3", "--page_size 24", POWER),
    ("trtllm-native", "8.0", "", GPU.format("9.x, 10.x or 12.x", "8.0")),
    ("trtllm-native", "11.0", "", GPU.format("9.x, 10.x or 12.x", "11.0")),
    ("trtllm-native", "9.0", "--page_size 8", XQA_PAGES),
    ("trtllm-native", "12.0", "--page_size 256", XQA_PAGES),
    ("trtllm-native", "10.0", "--page_size 48", POWER),
    ("trtllm-native", "9.0", OTHER_VALUES, SAME_DIMS),
    ("trtllm-native", "9.0", "--head_dim_qk 96", HOPPER_HEADS),
    ("trtllm-native", "12.0", "--head_dim_qk 512", HOPPER_HEADS),
    ("trtllm-native", "9.0", ALL_FP8, FORMATS + E4M3_WITH_16),
    ("trtllm-native", "10.0", E5M2, f"{FORMATS}{E4M3_WITH_16}, fp8_e4m3"),
    ("trtllm-native", "9.0", "--num_qo_heads 130 --num_kv_heads 2", XQA_GROUPS),
    ("trtllm-native", "9.0", "--num_qo_heads 33 --num_kv_heads 1 --head_dim_qk 256", XQA_GROUPS),
    ("torch", "9.0", MIXED_16, "it needs kv_dtype the same as q_dtype, or FP8"),
    ("torch", "9.0", "--q_dtype fp8_e4m3", "it needs kv_dtype the same as q_dtype, or FP8"),
]  # fmt: skip

ACCEPTED = [
    ("fa2", "7.5", "--q_dtype float16 --kv_dtype float16"),
    ("fa2", "9.0", f"{E5M2} --head_dim_qk 64 --page_size 1"),
    *[("fa2", "9.0", f"--num_qo_heads {2 * group}") for group in decode.CUDA_CORE_GROUPS],
    ("fa2", "12.0", "--head_dim_qk 512"),
    ("fa2_tc", "8.0", f"{GROUP_OF_5} --s_qo 4 --page_size 13"),
    ("fa2_tc", "9.0", f"{E5M2} --head_dim_qk 256"),
    ("fa3", "9.0", f"{ALL_FP8} --page_size 7"),
    ("fa3", "9.0", f"{GROUP_OF_5} --head_dim_qk 64"),
    ("auto", "9.0", ALL_FP8),
    ("auto", "12.0", FP8_CACHE),
    ("cudnn", "9.0", "--s_qo 2 --head_dim_qk 96"),
    ("cudnn-native", "9.0", f"{OTHER_VALUES} --s_qo 2"),
    ("trtllm-gen", "10.3", f"{ALL_FP8} --page_size 8 --s_qo 2"),
    *[("trtllm-native", "9.0", f"--page_size {size}") for size in PAGE_SIZES],
    ("trtllm-native", "9.0", f"{FP8_CACHE} --s_qo 5"),
    ("trtllm-native", "9.0", "--num_qo_heads 128"),
    ("trtllm-native", "9.0", "--num_qo_heads 256 --head_dim_qk 64"),
    ("trtllm-native", "9.0", "--num_qo_heads 130 --num_kv_heads 2 --s_qo 2"),
    ("trtllm-native", "10.0", f"{ALL_FP8} --page_size 8 --head_dim_qk 512"),
    ("torch", "9.0", f"{OTHER_VALUES} {E5M2}"),
]


def reason(name, capability, flags):
    """Why such a GPU cannot run it, packages aside; None if it can."""
    machine = Machine("cuda:0", "NVIDIA H200", tuple(map(int, capability.split("."))))
    case = case_of(NAME, f"{CASE} {flags}").flags
    found = (need.unmet(machine, case) for need in routine_named(NAME).backends[name].requires if not need.on_package)
    return next(filter(None, found), None)


@pytest.mark.parametrize(("name", "capability", "flags", "says"), REFUSED)
def test_a_limit_is_said(name, capability, flags, says):
    assert reason(name, capability, flags) == says


@pytest.mark.parametrize(("name", "capability", "flags"), ACCEPTED)
def test_up_to_its_limits_it_runs(name, capability, flags):
    assert reason(name, capability, flags) is None


def test_every_limit_is_tested():
    """Each of the requirements is the reason of a refusal in the table, but for those about packages."""
    silent = []
    for name, backend in routine_named(NAME).backends.items():
        rows = [row for row in REFUSED if row[0] == name]
        for need in backend.requires:
            machines = [Machine("cuda:0", "", tuple(map(int, row[1].split(".")))) for row in rows]
            cases = [case_of(NAME, f"{CASE} {row[2]}").flags for row in rows]
            said = [need.unmet(*pair) for pair in zip(machines, cases, strict=True)]
            if not need.on_package and not set(said) & {row[3] for row in rows}:
                silent.append((name, need.text))
    assert not silent


@pytest.mark.parametrize("flags", ["--q_dtype bfloat16 --kv_dtype float16", "--q_dtype fp8_e4m3 --kv_dtype bfloat16"])
@pytest.mark.parametrize("capability", ["8.0", "9.0", "10.0", "12.0"])
def test_formats_that_nothing_takes(flags, capability):
    reasons = {name: reason(name, capability, flags) for name in routine_named(NAME).backends}
    assert all(reasons.values()), reasons


# ---- The library refuses the same ----


@pytest.mark.parametrize(
    ("name", "capability", "flags", "error", "says"),
    [
        ("fa2", (9, 0), "--s_qo 2", ValueError, "q_len_per_req > 1 requires tensor-core decode"),
        ("fa3", (9, 0), "--s_qo 2", NotImplementedError, "only supported on the fa2 tensor-core backend"),
        ("fa2", (9, 0), OTHER_VALUES, ValueError, "out"),
        ("fa2_tc", (9, 0), OTHER_VALUES, ValueError, "out"),
        ("fa3", (9, 0), OTHER_VALUES, ValueError, "out"),
        ("cudnn", (9, 0), FP8_CACHE, NotImplementedError, "to share one fp16 or bf16 dtype"),
        ("cudnn", (9, 0), ALL_FP8, NotImplementedError, "to share one fp16 or bf16 dtype"),
        ("cudnn-native", (9, 0), FP8_CACHE, ValueError, "only supports torch.float16"),
        ("cudnn-native", (9, 0), ALL_FP8, ValueError, "only supports torch.float16"),
        ("trtllm-native", (8, 0), "", RuntimeError, "XQA is only supported on SM90, SM100"),
        ("trtllm-native", (9, 0), "--page_size 8", ValueError, "Invalid page_size: 8"),
        ("trtllm-native", (9, 0), "--page_size 256", ValueError, "Invalid page_size: 256"),
        ("trtllm-native", (9, 0), ALL_FP8, (ValueError, AssertionError), "dtype"),
    ],
)
def test_what_the_library_refuses_is_refused_beforehand(monkeypatch, name, capability, flags, error, says):
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 1 << 12)
    compiled_decode.install(monkeypatch, capability)
    generator = importlib.import_module("flashinfer.jit.xqa").gen_xqa_module
    monkeypatch.setattr(importlib.import_module("flashinfer.xqa"), "_get_xqa_module_cached", generator)
    case, problem = problem_of(NAME, f"{CASE} {flags}")
    assert reason(name, "{}.{}".format(*capability), flags)
    with pytest.raises(error, match=says):
        routine_named(NAME).backends[name].prepare(case, problem)()


def test_flash_attention_2_has_no_fp8_queries():
    flashinfer = pytest.importorskip("flashinfer")
    e4m3 = torch.float8_e4m3fn
    with pytest.raises(AssertionError, match="fp8 tensor core is not supported in fa2"):
        flashinfer.jit.attention.modules.gen_batch_prefill_module(
            "fa2", e4m3, e4m3, torch.bfloat16, torch.int32, 128, 128, 0, False, False, False
        )


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "fa3"), ((10, 0), "fa2"), ((8, 0), "fa2")])
def test_what_the_library_would_choose_for_fp8_queries(monkeypatch, capability, chosen):
    made = compiled_decode.install(monkeypatch, capability)
    case, problem = problem_of(NAME, f"{CASE} {ALL_FP8}")
    routine_named(NAME).backends["auto"].prepare(case, problem)
    assert made.modules == [chosen]
    assert (reason("auto", "{}.{}".format(*capability), ALL_FP8) is None) == (chosen == "fa3")


def test_what_only_the_library_knows_is_unsupported(monkeypatch):
    """Several FP8 queries: only FlashAttention-3 has the format, and it has one query."""
    compiled_decode.install(monkeypatch)
    with unconditional(NAME, "auto"):
        record = run(NAME, f"{CASE} {ALL_FP8} --s_qo 2", "auto")
    assert record.status is Status.UNSUPPORTED
    assert "q_len_per_req > 1 is currently only supported on the fa2" in record.reason


@pytest.mark.parametrize(
    ("macro", "allowed"), [("GQA_GROUP_SIZE", decode.CUDA_CORE_GROUPS), ("HEAD_DIM", (64, 128, 256, 512))]
)
def test_what_the_librarys_headers_dispatch(macro, allowed):
    """The sizes that its kernels are compiled for; any other is an error of the first call or of the plan."""
    flashinfer = pytest.importorskip("flashinfer")
    header = Path(flashinfer.__file__).parent / "data/include/flashinfer/utils.cuh"
    body = header.read_text().split(f"#define DISPATCH_{macro}(", 1)[1].split("#define", 1)[0]
    assert tuple(map(int, re.findall(r"(?:==|case) (\d+)", body))) == allowed
