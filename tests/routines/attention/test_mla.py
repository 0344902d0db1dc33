"""BatchMLAPagedAttentionWrapper: its calls, its checks, and kernels that those must find out."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Status
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.attention.mla import attend
from tests.contract import contract, covers
from tests.routines.attention.broken import BROKEN, launch_with
from tests.routines.harness import (
    assert_caught,
    assert_passes,
    launch_of,
    problem_of,
    routine_named,
    run,
    run_broken,
    unconditional,
)

NAME = "BatchMLAPagedAttentionWrapper"
API = "flashinfer.mla.BatchMLAPagedAttentionWrapper"
SHAPE = "--num_qo_heads 4 --head_dim_ckv 128 --head_dim_kpe 64"
CASE = f"--batch_size 4 --s_kv 45 --page_size 8 --random_actual_seq_len {SHAPE}"
INSIDE = "flashinfer.mla._batch_mla._backends"


# ---- The calls of the library ----


@covers(NAME, "fa2", "fa3")
@pytest.mark.parametrize("backend", ["fa2", "fa3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_flashinfer_is_called_as_it_declares(backend, dtype):
    with contract(API, plan=None, run=lambda **arguments: arguments["out"]) as wrapper:
        launch, problem = launch_of(NAME, backend, f"{CASE} --q_dtype {dtype} --kv_dtype {dtype}")
        returned = launch()
    made, plan, call = wrapper.instance.made_with, wrapper.instance.plan.call, wrapper.instance.run.call
    assert made["backend"] == backend
    assert made["float_workspace_buffer"].nbytes == 128 << 20
    metadata = plan.pop("metadata")
    names = ("qo_indptr", "kv_indptr", "kv_indices")
    assert all(getattr(metadata, name) is problem[name] for name in names)
    assert metadata.kv_len_arr is problem["kv_len"]
    assert plan == {
        "num_heads": 4,
        "head_dim_ckv": 128,
        "head_dim_kpe": 64,
        "page_size": 8,
        "causal": False,
        "sm_scale": 1 / math.sqrt(192),
        "q_data_type": getattr(torch, dtype),
        "kv_data_type": getattr(torch, dtype),
        "query_layout": "split",
        "kv_cache_layout": "split",
    }
    assert set(call) == {"query", "kv_cache", "out"}
    assert [tensor is problem[name] for tensor, name in zip(call["query"], ("q_nope", "q_pe"), strict=True)] == [
        True
    ] * 2
    caches = zip(call["kv_cache"], ("ckv_cache", "kpe_cache"), strict=True)
    assert [tensor is problem[name] for tensor, name in caches] == [True] * 2
    assert call["out"].shape == problem["q_nope"].shape
    assert call["out"].dtype is getattr(torch, dtype)
    assert launch.outputs(returned).keys() == problem.checks.keys()
    assert launch.facts["plan_ms"] >= 0


class Compiled:
    """The compiled module behind FlashInfer's wrapper, with PyTorch's attention in place of the kernel."""

    def plan(self, float_workspace, int_workspace, pinned, qo_indptr, kv_indptr, kv_len, num_heads, ckv, causal):
        assert not causal
        assert qo_indptr.tolist() == list(range(len(kv_len) + 1))
        return SimpleNamespace(kv_indptr=kv_indptr.tolist(), lengths=kv_len.tolist())

    def run(
        self, float_workspace, int_workspace, plan, q_nope, q_pe, ckv_cache, kpe_cache, kv_indices, out, lse, mask_mode,
        num_heads, page_size, sm_scale, base_e, ckv_scale, kpe_scale, ckv_scale_arr,
    ):  # fmt: skip
        assert (ckv_cache.shape[1], num_heads, mask_mode) == (page_size, q_nope.shape[1], 0)
        attend(q_nope, q_pe, ckv_cache, kpe_cache, kv_indices, plan.kv_indptr, plan.lengths, sm_scale, out)


@pytest.fixture
def hopper(monkeypatch):
    """FlashInfer's wrapper believes to be on an H200: all its own code runs, but for the compiled module."""
    common = f"{INSIDE}._fa_common"
    monkeypatch.setattr(f"{common}.get_compute_capability", lambda device: (9, 0))
    monkeypatch.setattr(f"{common}.is_sm90a_supported", lambda device: True)
    monkeypatch.setattr(f"{common}.get_device_sm_count", lambda device: 132)
    monkeypatch.setattr(f"{common}._get_fa_shared_memory_limits", lambda device: (233472, 232448))
    pageable = SimpleNamespace(**vars(torch))
    pageable.empty = lambda *size, pin_memory=False, **how: torch.empty(*size, **how)
    monkeypatch.setattr(f"{common}.torch", pageable)
    for backend in ("fa2", "fa3"):
        monkeypatch.setattr(f"{INSIDE}.{backend}_backend.get_batch_mla_module", lambda *which: Compiled())


@pytest.mark.parametrize("backend", ["fa2", "fa3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "flags", ["", "--batch_size 1 --s_kv 1", "--page_size 1", "--page_size 64", "--no-random_actual_seq_len"]
)
def test_flashinfers_own_code_accepts_the_plan_and_the_run(hopper, backend, dtype, flags):
    """Metadata, layouts and dtypes pass the library's validation, and what reaches its kernel gives right outputs."""
    with warnings.catch_warnings(), unconditional(NAME, backend):
        warnings.simplefilter("error")
        assert_passes(run(NAME, f"{CASE} {flags} --q_dtype {dtype} --kv_dtype {dtype}", backend))


HOPPER = Machine("cuda:0", "NVIDIA H200", compute_capability=(9, 0))


@pytest.mark.parametrize("backend", ["fa2", "fa3"])
@pytest.mark.parametrize("ckv", [32, 64, 96, 128, 192, 256, 384, 512])
@pytest.mark.parametrize("kpe", [8, 32, 64, 96])
def test_head_dimensions_that_flashinfer_refuses_are_refused_with_a_reason(hopper, backend, ckv, kpe):
    """The requirements say the same as the library's own planning, and say it before anything is allocated."""
    declared = routine_named(NAME).backends[backend]
    flags, problem = problem_of(NAME, f"--batch_size 1 --s_kv 9 --page_size 8 --num_qo_heads 4 {dims(ckv, kpe)}")
    refused = declared.unmet(HOPPER, flags)
    if refused is None:
        declared.prepare(flags, problem)
    else:
        assert "head_dim_ckv" in refused[1]
        with pytest.raises(ValueError, match="requires head_dim_ckv") as refusal:
            declared.prepare(flags, problem)
        assert refusal.type.__name__ == "_BackendPlanUnsupportedError"


@pytest.mark.parametrize("backend", ["fa2", "fa3"])
def test_what_only_flashinfer_can_know_is_unsupported_too(hopper, backend):
    """Its planning refuses what needs more shared memory than the GPU has."""
    with unconditional(NAME, backend):
        record = run(NAME, f"--batch_size 1 --s_kv 9 --page_size 8 --num_qo_heads 4 {dims(512, 128)}", backend)
    assert "shared-memory bytes" in record.reason
    assert record.status is Status.UNSUPPORTED


def dims(ckv, kpe):
    return f"--head_dim_ckv {ckv} --head_dim_kpe {kpe}"


# ---- Right kernels pass ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 1 --s_kv 1 --page_size 1",
        "--batch_size 1 --s_kv 1 --page_size 64",
        "--batch_size 3 --s_kv 1 --page_size 4",
        "--batch_size 7 --s_kv 33 --page_size 1 --random_actual_seq_len",
        "--batch_size 2 --s_kv 5 --page_size 32 --random_actual_seq_len",
        "--batch_size 3 --s_kv 64 --page_size 16",
        "--batch_size 3 --s_kv 63 --page_size 13 --random_actual_seq_len",
        "--batch_size 2 --s_kv 700 --page_size 32 --random_actual_seq_len",
    ],
)
@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        "--num_qo_heads 1 --head_dim_ckv 7 --head_dim_kpe 1",
        "--num_qo_heads 16 --head_dim_ckv 512 --head_dim_kpe 64",
    ],
)
def test_torch_passes(flags, shape, dtype):
    assert_passes(run(NAME, f"{flags} {shape} --q_dtype {dtype} --kv_dtype {dtype}", "torch"))


def test_mixed_formats_are_unsupported():
    record = run(NAME, f"{CASE} --q_dtype bfloat16 --kv_dtype float16", "torch")
    assert record.status is Status.UNSUPPORTED
    assert "same format" in record.reason


# ---- Wrong kernels are caught ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_broken_kernel_is_caught(change, dtype):
    flags = f"{CASE} --q_dtype {dtype} --kv_dtype {dtype}"
    assert_caught(run_broken(NAME, lambda case, problem: launch_with(case, problem, change), flags))


# ---- The problem ----


def test_work_counts_actual_lengths():
    """2 FLOPs for each of 2 ckv + kpe products a head and key; query, used cache and output once."""
    _, problem = problem_of(NAME, CASE)
    keys = int(problem["kv_len"].sum())
    query, cache, output = 4 * 4 * 192 * 2, keys * 192 * 2, 4 * 4 * 128 * 2
    assert problem.work == Work(flops=2 * keys * 4 * (2 * 128 + 64), bytes=query + cache + output)
    assert problem.facts == {"avg_actual_seq_len": keys // 4}


def test_the_rotary_part_takes_part():
    """Upstream's zero q_pe would hide every error in the handling of kpe."""
    _, problem = problem_of(NAME, CASE)
    assert problem["q_pe"].float().std() > 0.5
