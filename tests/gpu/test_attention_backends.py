"""Attention on a GPU: every backend that runs there, the kernels that each starts, graphs, and making a pool."""

from __future__ import annotations

import time

import pytest
import torch

from flashinfer_perf.device.machine import find_machine, free_bytes
from flashinfer_perf.routines import all_routines
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.launch import Copies
from flashinfer_perf.run.ranks import SingleRank
from tests.gpu.harness import assert_all_right, case_of, kernels_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
on_hopper = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)

DECODE = "BatchDecodeWithPagedKVCacheWrapper"
PAGED = "BatchPrefillWithPagedKVCacheWrapper"
RAGGED = "BatchPrefillWithRaggedKVCacheWrapper"
MLA = "BatchMLAPagedAttentionWrapper"
LLAMA = "--num_qo_heads 64 --num_kv_heads 8 --head_dim_qk 128"
DEEPSEEK = "--num_qo_heads 128 --head_dim_ckv 512 --head_dim_kpe 64"
FP8_CACHE = "--kv_dtype fp8_e4m3"
ALL_FP8 = "--q_dtype fp8_e4m3 --kv_dtype fp8_e4m3"
RANDOM = "--random_actual_seq_len"
CASES = [
    *(
        (DECODE, f"--page_size 16 --batch_size 5 --s_kv 700 {LLAMA} {RANDOM} {formats}")
        for formats in ("", FP8_CACHE, ALL_FP8, "--q_dtype float16 --kv_dtype float16", "--s_qo 4", "--enable_pdl")
    ),
    (DECODE, "--page_size 16 --batch_size 3 --s_kv 333 --num_qo_heads 40 --num_kv_heads 8 --head_dim_qk 128"),
    (DECODE, "--page_size 16 --batch_size 3 --s_kv 333 --num_qo_heads 8 --num_kv_heads 8 --head_dim_qk 128"),
    (DECODE, f"--page_size 16 --batch_size 1 --s_kv 1 {LLAMA}"),
    *(
        (PAGED, f"--page_size 16 --batch_size 4 --s_qo 300 --s_kv {s_kv} {LLAMA} {RANDOM} {mask} {formats}")
        for s_kv, mask, formats in (
            (300, "--causal", ""),
            (700, "--causal", ""),
            (700, "", ""),
            (300, "--causal", FP8_CACHE),
            (700, "--causal", ALL_FP8),
            (300, "", ALL_FP8),
            (300, "--causal", "--q_dtype float16 --kv_dtype float16"),
        )
    ),
    *(
        (RAGGED, f"--batch_size 4 --s_qo 300 --s_kv {s_kv} {heads} {RANDOM} {mask} {formats}")
        for s_kv, heads, mask, formats in (
            (700, LLAMA, "--causal", ""),
            (300, "--num_qo_heads 16 --num_kv_heads 16 --head_dim_qk 192 --head_dim_vo 128", "--causal", ""),
            (300, "--num_qo_heads 16 --num_kv_heads 16 --head_dim_qk 192 --head_dim_vo 128", "", ""),
            (300, LLAMA, "--causal", FP8_CACHE),
            (700, LLAMA, "--causal", ALL_FP8),
        )
    ),
    *((MLA, f"--page_size {page} --batch_size 5 --s_kv 700 {DEEPSEEK} {RANDOM}") for page in (1, 32, 64)),
    (MLA, f"--page_size 64 --batch_size 5 --s_kv 700 {DEEPSEEK} {RANDOM} {FP8_CACHE}"),
    (MLA, f"--page_size 64 --batch_size 3 --s_kv 70 --num_qo_heads 16 --head_dim_ckv 512 --head_dim_kpe 64 {RANDOM}"),
]


@pytest.mark.parametrize(("name", "flags"), CASES)
@pytest.mark.parametrize("clock", ["", "--use_cuda_events", "--use_cuda_events --no_cuda_graph"])
def test_every_backend_that_runs_here_is_right(name, flags, clock):
    """The first call's output and the last timed one's; with --use_cuda_events that of a replayed graph, on rotated
    copies of the operands.
    """
    records = assert_all_right(name, f"{flags} {clock}")
    if clock == "--use_cuda_events":
        assert {record.measurement.timer for record in records} == {"cuda_graph"}


KERNELS = [
    (DECODE, "fa2", "BatchDecodeWithPagedKVCacheKernel", "fa2"),
    (DECODE, "fa2_tc", "BatchPrefillWithPagedKVCacheKernel", "fa2_tc"),
    (DECODE, "fa3", "SparseCollectiveMainloop", "fa3"),
    (DECODE, "auto", "BatchPrefillWithPagedKVCacheKernel", "fa2_tc"),
    (DECODE, "cudnn", "cudnn", "cudnn"),
    (DECODE, "cudnn-native", "cudnn", ""),
    (DECODE, "trtllm-native", "kernel_mha", ""),
    (PAGED, "fa2", "BatchPrefillWithPagedKVCacheKernel", ""),
    (PAGED, "fa3", "SparseCollectiveMainloop", ""),
    (PAGED, "auto", "SparseCollectiveMainloop", "fa3"),
    (PAGED, "cudnn", "cudnn", ""),
    (RAGGED, "fa2", "BatchPrefillWithRaggedKVCacheKernel", ""),
    (RAGGED, "fa3", "CollectiveMainloop", ""),
    (RAGGED, "auto", "CollectiveMainloop", "fa3"),
    (RAGGED, "cudnn-native", "cudnn", ""),
    (MLA, "fa2", "mla::BatchMLAPagedAttentionKernel", ""),
    (MLA, "fa3", "mla::hopper::BatchMLAPageAttentionHopperKernel", ""),
]
SMALL = {
    DECODE: f"--page_size 16 --batch_size 4 --s_kv 700 {LLAMA}",
    PAGED: f"--page_size 16 --batch_size 4 --s_qo 300 --s_kv 300 --causal {LLAMA}",
    RAGGED: f"--batch_size 4 --s_qo 300 --s_kv 300 --causal {LLAMA}",
    MLA: f"--page_size 64 --batch_size 4 --s_kv 700 {DEEPSEEK}",
}


@on_hopper
@pytest.mark.parametrize(("name", "backend", "kernel", "resolved"), KERNELS)
def test_a_backend_runs_the_kernels_that_it_names(name, backend, kernel, resolved):
    kernels, said = kernels_of(name, SMALL[name], backend)
    assert any(kernel in found for found in kernels), kernels
    assert said == resolved


@on_hopper
@pytest.mark.parametrize(("name", "backend"), [(PAGED, "fa3"), (RAGGED, "fa3"), (MLA, "fa2"), (MLA, "fa3")])
def test_a_call_is_one_kernel(name, backend):
    """No fill of the output, no copy of an operand, no multiplication by a scale."""
    assert len(kernels_of(name, SMALL[name], backend)[0]) == 1


def test_a_serving_engines_pool_is_made_in_well_under_a_second():
    flags = f"--page_size 16 --batch_size 128 --s_kv 8192 --random_actual_seq_len {LLAMA}"
    case, machine = case_of(DECODE, flags), find_machine("cuda")
    torch.randn(1, device="cuda")
    for _ in range(2):  # the first time loads kernels
        make = TensorFactory(machine.device, 42, free_bytes(machine), SingleRank())
        began = time.perf_counter()
        problem = case.routine.make(case.flags, make)
        torch.cuda.synchronize()
        took = time.perf_counter() - began
        pool_bytes = problem["k_cache"].untyped_storage().nbytes()
        del problem
    assert pool_bytes == 128 * 8192 * 8 * 128 * 2 * 2
    assert took < 0.5


def test_a_rotated_pool_keeps_its_views():
    case, machine = case_of(DECODE, SMALL[DECODE]), find_machine("cuda")
    problem = case.routine.make(case.flags, TensorFactory(machine.device, 42, free_bytes(machine), SingleRank()))
    keys, values = Copies().of((problem["k_cache"], problem["v_cache"]))
    assert keys.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    assert keys.untyped_storage().data_ptr() != problem["k_cache"].untyped_storage().data_ptr()
    assert (keys.stride(), values.stride()) == (problem["k_cache"].stride(), problem["v_cache"].stride())
    assert torch.equal(values, problem["v_cache"])


def test_all_attention_routines_are_tested_here():
    attention = {routine.name for routine in all_routines().values() if routine.family == "attention"}
    assert attention == {name for name, _ in CASES} == {name for name, *_ in KERNELS}
