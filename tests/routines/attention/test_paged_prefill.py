"""BatchPrefillWithPagedKVCacheWrapper: its calls, its limits, its problem, and kernels that the check must find out."""

from __future__ import annotations

import math

import pytest
import torch

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Status
from flashinfer_perf.core.work import Work
from flashinfer_perf.routines.attention import backends
from flashinfer_perf.routines.attention.operands import E4M3_MAX, LARGEST
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests.contract import Extras, contract, covers
from tests.routines.attention import broken, compiled_prefill
from tests.routines.harness import (
    GIBIBYTE,
    assert_caught,
    assert_passes,
    case_of,
    launch_of,
    problem_of,
    routine_named,
    run,
    run_broken,
)

NAME = "BatchPrefillWithPagedKVCacheWrapper"
API = "flashinfer.prefill.BatchPrefillWithPagedKVCacheWrapper"
LENGTHS = "--batch_size 4 --s_qo 9 --s_kv 30 --random_actual_seq_len"
CASE = f"{LENGTHS} --page_size 8 --num_qo_heads 4 --num_kv_heads 2"
SCALES = [LARGEST[operand] / E4M3_MAX for operand in "qkv"]
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def flags_of(dims=(128, 128), formats=("bfloat16", "bfloat16"), more=""):
    own = f"--head_dim_qk {dims[0]} --head_dim_vo {dims[1]} --q_dtype {formats[0]} --kv_dtype {formats[1]}"
    return f"{CASE} {own} {more}"


@pytest.fixture
def _small_workspaces(monkeypatch):
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 1 << 12)


# ---- The calls of the library ----

FP8 = ("fp8_e4m3", "fp8_e4m3")
CALLS = [
    *[(backend, dims, 2 * ["bfloat16"], "") for backend in ("fa2", "cudnn") for dims in ((128, 128), (192, 128))],
    *[(backend, (128, 128), 2 * ["float16"], "") for backend in ("fa2", "fa3", "auto", "cudnn", "trtllm-gen")],
    ("fa2", (128, 128), ("bfloat16", "fp8_e4m3"), "kv"),
    ("fa2", (256, 256), ("float16", "fp8_e5m2"), "kv"),
    ("auto", (128, 128), ("bfloat16", "fp8_e5m2"), "kv"),
    ("fa3", (128, 128), FP8, "args"),
    ("auto", (128, 128), FP8, "args"),
    ("cudnn", (128, 128), FP8, "tensors"),
    ("trtllm-gen", (128, 128), FP8, "qkv"),
]


def output(**call):
    return call["out"]


@covers(NAME, "fa2", "fa3", "auto", "cudnn", "trtllm-gen")
@pytest.mark.usefixtures("_small_workspaces")
@pytest.mark.parametrize("more", ["", "--causal --enable_pdl"])
@pytest.mark.parametrize(("backend", "dims", "formats", "scales"), CALLS)
def test_the_wrapper_is_called_as_it_declares(backend, dims, formats, scales, more):
    gives = Extras(output, 3) if scales == "args" else output
    members = {"plan": None, "run": gives, "_backend": "fa7", "prewarm_paged_kv_stride_variant": None}
    with contract(API, **members) as wrapper:
        launch, problem = launch_of(NAME, backend, flags_of(dims, formats, more))
        returned = launch()
    instance, q_dtype = wrapper.instance, DTYPES[formats[0]]
    made, plan, call = dict(instance.made_with), dict(instance.plan.call), dict(instance.run.call)
    assert made.pop("float_workspace_buffer").dtype is torch.uint8
    assert made == {"kv_layout": "HND", "backend": backend}

    tensors = {
        "qo_indptr": "qo_indptr",
        "paged_kv_indptr": "kv_indptr",
        "paged_kv_indices": "kv_indices",
        "paged_kv_last_page_len": "kv_last_page_len",
    }
    if backend == "cudnn":
        tensors |= {"block_tables": "block_tables", "seq_lens": "kv_len", "seq_lens_q": "q_len"}
        assert (plan.pop("max_token_per_sequence"), plan.pop("max_sequence_kv")) == (9, 30)
    assert all(plan.pop(argument) is problem[tensor] for argument, tensor in tensors.items())
    out_dtype = q_dtype if q_dtype.itemsize == 2 else torch.bfloat16
    assert plan == {
        "num_qo_heads": 4,
        "num_kv_heads": 2,
        "head_dim_qk": dims[0],
        "head_dim_vo": dims[1],
        "page_size": 8,
        "causal": bool(more),
        "sm_scale": 1 / math.sqrt(dims[0]),
        "q_data_type": q_dtype,
        "kv_data_type": DTYPES[formats[1]],
        "o_data_type": out_dtype,
    }

    out = call.pop("out")
    assert (out.shape, out.dtype) == ((len(problem["q"]), 4, dims[1]), out_dtype)
    assert call.pop("q") is problem["q"]
    caches = call.pop("paged_kv_cache")
    assert [cache is problem[name] for cache, name in zip(caches, ("k_cache", "v_cache"), strict=True)] == [True, True]
    assert type(caches) is tuple
    if backend != "cudnn":
        assert call.pop("enable_pdl") is bool(more)
    assert_scales(call, scales)
    assert call == {}
    assert launch.outputs(returned) == {"out": out}
    assert launch.facts["plan_ms"] >= 0
    assert launch.resolved_backend == ("fa7" if backend == "auto" else "")
    assert len(instance.prewarm_paged_kv_stride_variant.calls) == (backend == "fa2" and dims == (192, 128))


def assert_scales(call, kind):
    """By name, by position, or as tensors; of the operands that are FP8 and no others."""
    if kind == "args":
        assert list(call.pop("args")) == SCALES
    elif kind == "tensors":
        found = [call.pop(f"{operand}_scale") for operand in "qkv"]
        assert [tensor.tolist() for tensor in found] == [[torch.tensor(scale).item()] for scale in SCALES]
        assert all(tensor.dtype is torch.float32 for tensor in found)
    else:
        assert {operand: call.pop(f"{operand}_scale") for operand in kind} == {
            operand: LARGEST[operand] / E4M3_MAX for operand in kind
        }


@covers(NAME, "trtllm-native")
@pytest.mark.usefixtures("_small_workspaces")
@pytest.mark.parametrize("more", ["", "--causal --enable_pdl"])
@pytest.mark.parametrize("formats", [2 * ["bfloat16"], 2 * ["float16"], FP8])
def test_tensorrt_is_called_as_the_library_declares(formats, more):
    with contract("flashinfer.prefill.trtllm_batch_context_with_kv_cache", returns=output) as kernel:
        launch, problem = launch_of(NAME, "trtllm-native", flags_of(formats=formats, more=more))
        returned = launch()
    call, scales = dict(kernel.call), SCALES if formats is FP8 else [1, 1, 1]
    tensors = {"query": "q", "block_tables": "block_tables", "seq_lens": "kv_len", "cum_seq_lens_q": "qo_indptr"}
    assert all(call.pop(argument) is problem[tensor] for argument, tensor in tensors.items())
    prefix_sums = call.pop("cum_seq_lens_kv")
    assert prefix_sums.tolist() == [0, *problem["kv_len"].cumsum(0).tolist()]  # tokens, not pages
    assert prefix_sums.dtype is torch.int32
    keys, values = call.pop("kv_cache")
    assert (keys is problem["k_cache"], values is problem["v_cache"]) == (True, True)
    workspace = call.pop("workspace_buffer")
    assert (workspace.dtype, int(workspace.count_nonzero())) == (torch.uint8, 0)
    out = call.pop("out")
    assert (out.shape, out.dtype) == (problem["q"].shape, torch.float16 if "float16" in formats else torch.bfloat16)
    assert call == {
        "max_q_len": 9,
        "max_kv_len": 30,
        "bmm1_scale": pytest.approx(scales[0] * scales[1] / math.sqrt(128), rel=1e-12),
        "bmm2_scale": scales[2],
        "batch_size": 4,
        "kv_layout": "HND",
        "enable_pdl": bool(more),
        "causal": bool(more),
    }
    assert launch.outputs(returned) == {"out": out}
    assert launch.scratch == ("workspace_buffer",)


@pytest.mark.parametrize("formats", [2 * ["bfloat16"], ("float16", "fp8_e5m2")])
def test_the_cache_is_the_documented_pool(formats):
    """(pages, 2, heads, page size, dim), token by token and head by head: strides (2 P H D, P H D, D, H D, 1)."""
    case, problem = problem_of(NAME, flags_of((64, 64), formats))
    page = 2 * 8 * 2 * 64
    for cache, start in ((problem["k_cache"], 0), (problem["v_cache"], page // 2)):
        assert cache.shape == (16, 2, 8, 64)
        assert cache.stride() == (page, 64, 2 * 64, 1)
        assert cache.storage_offset() == start
        assert cache.dtype is case.kv_dtype.torch
        assert cache.untyped_storage().nbytes() == 16 * page * case.kv_dtype.bytes
        assert cache.untyped_storage().data_ptr() == problem["k_cache"].untyped_storage().data_ptr()


# ---- Limits ----

B16 = ("bfloat16", "bfloat16")
ANY_GPU = ((8, 0), (9, 0), (10, 0), (12, 0))
FA2_DIMS = "head_dim_qk and head_dim_vo of 64, 128, 256, 512, 192 with 128"
LIMITS = [
    *[("fa2", gpu, (128, 128), B16, None) for gpu in ANY_GPU],
    ("fa2", (7, 5), (128, 128), B16, "compute capability 8.0 or newer, and this GPU has 7.5"),
    *[("fa2", (9, 0), (dim, dim), B16, None) for dim in (64, 256, 512)],
    ("fa2", (9, 0), (192, 128), B16, None),
    *[("fa2", (9, 0), dims, B16, FA2_DIMS) for dims in ((80, 80), (32, 32), (192, 192), (128, 192), (1024, 1024))],
    *[("fa2", (9, 0), (dim, dim), (B16[0], "fp8_e5m2"), None) for dim in (128, 256)],
    *[("fa2", (9, 0), dims, (B16[0], "fp8_e4m3"), "of 128 or 256 for FP8") for dims in ((64, 64), (192, 128))],
    ("fa2", (9, 0), (512, 512), (B16[0], "fp8_e4m3"), "of 128 or 256 for FP8"),
    ("fa2", (9, 0), (128, 128), FP8, "it needs q_dtype and kv_dtype of bfloat16, float16, bfloat16 with fp8_e4m3"),
    ("fa2", (9, 0), (128, 128), ("float16", "bfloat16"), "it needs q_dtype and kv_dtype of"),
    *[("fa3", (9, 0), (dim, dim), B16, None) for dim in (64, 128, 256)],
    *[("fa3", gpu, (128, 128), B16, "compute capability 9.x, and this GPU has") for gpu in ((8, 0), (10, 0), (12, 0))],
    *[("fa3", (9, 0), dims, B16, "head_dim_vo of 64, 128, 256") for dims in ((192, 128), (512, 512), (80, 80))],
    *[("fa3", (9, 0), (dim, dim), FP8, None) for dim in (128, 256)],
    ("fa3", (9, 0), (64, 64), FP8, "of 128 or 256 for FP8"),
    ("fa3", (9, 0), (128, 128), ("fp8_e5m2", "fp8_e5m2"), "kv_dtype of bfloat16, float16, fp8_e4m3"),
    ("fa3", (9, 0), (128, 128), (B16[0], "fp8_e4m3"), "kv_dtype of bfloat16, float16, fp8_e4m3"),
    *[("auto", gpu, (128, 128), B16, None) for gpu in ANY_GPU],
    ("auto", (9, 0), (192, 128), B16, "head_dim_qk and head_dim_vo of 64, 128, 256, 512"),
    ("auto", (9, 0), (128, 128), FP8, None),
    *[("auto", gpu, (128, 128), FP8, "compute capability 9.x") for gpu in ((8, 0), (10, 0), (12, 0))],
    ("auto", (9, 0), (64, 64), FP8, "of 128 or 256 for FP8"),
    *[("trtllm", gpu, (128, 128), formats, None) for gpu in ((10, 0), (10, 3)) for formats in (B16, FP8)],
    *[("trtllm", gpu, (128, 128), B16, "capability 10.x, and this GPU has") for gpu in ((8, 0), (9, 0), (12, 0))],
    ("trtllm", (10, 0), (256, 256), B16, None),
    *[("trtllm", (10, 0), dims, B16, "head_dim_qk and head_dim_vo of 128, 256") for dims in ((64, 64), (192, 128))],
    ("trtllm", (10, 0), (128, 128), (B16[0], "fp8_e4m3"), "q_dtype and kv_dtype of bfloat16, float16, fp8_e4m3"),
    ("trtllm", (10, 0), (128, 128), ("fp8_e5m2", "fp8_e5m2"), "q_dtype and kv_dtype of bfloat16, float16, fp8_e4m3"),
]


def refusal(backend, capability, flags):
    machine = Machine("cuda:0", "NVIDIA H200", compute_capability=capability)
    unmet = routine_named(NAME).backends[backend].unmet(machine, case_of(NAME, flags).flags)
    return unmet and unmet[1]


@pytest.mark.parametrize(("backend", "capability", "dims", "formats", "says"), LIMITS)
def test_limits(backend, capability, dims, formats, says):
    for name in ("trtllm-gen", "trtllm-native") if backend == "trtllm" else (backend,):
        reason = refusal(name, capability, flags_of(dims, formats))
        assert (reason is None) == (says is None), reason
        assert says is None or says in reason


@pytest.mark.parametrize("backend", ["trtllm-gen", "trtllm-native"])
@pytest.mark.parametrize(("page_size", "possible"), [(1, True), (16, True), (128, True), (3, False), (48, False)])
def test_pages_of_tensorrt_are_powers_of_two(backend, page_size, possible):
    reason = refusal(backend, (10, 0), flags_of(more=f"--page_size {page_size}"))
    assert reason == (None if possible else "it needs page_size a power of two")


@pytest.mark.parametrize("backend", ["fa2", "fa3", "cudnn", "auto"])
def test_other_backends_take_any_page(backend):
    assert refusal(backend, (9, 0), flags_of(more="--page_size 13")) is None


@pytest.mark.usefixtures("_small_workspaces")
def test_the_library_itself_refuses_values_of_another_dimension_for_tensorrt(monkeypatch):
    compiled_prefill.install(monkeypatch, (10, 0))
    launch, _ = launch_of(NAME, "trtllm-native", flags_of((192, 128)))
    with pytest.raises(ValueError, match="Invalid shape of out"):
        launch()


def test_the_librarys_heads_of_fa3_are_ours_and_one_pair_that_it_has_for_ragged_only():
    from flashinfer.utils import is_fa3_prefill_head_dim_supported

    for qk in (32, 64, 80, 128, 192, 256, 512):
        for vo in (64, 128, 192, 256):
            ours = refusal("fa3", (9, 0), flags_of((qk, vo))) is None
            assert ours == (is_fa3_prefill_head_dim_supported(qk, vo) and (qk, vo) != (192, 128))


# ---- Right kernels pass ----

SHAPES = [
    "--num_qo_heads 6 --num_kv_heads 2 --head_dim_qk 80",
    "--num_qo_heads 3 --num_kv_heads 3 --head_dim_qk 24 --head_dim_vo 16",
    "--num_qo_heads 4 --num_kv_heads 1 --head_dim_qk 8 --head_dim_vo 40",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("page_size", [1, 13, 64])
@pytest.mark.parametrize(
    "lengths",
    [
        "--batch_size 4 --s_qo 9 --s_kv 40 --causal --random_actual_seq_len",
        "--batch_size 3 --s_qo 20 --s_kv 20 --causal",
        "--batch_size 3 --s_qo 33 --s_kv 7 --random_actual_seq_len",
        "--batch_size 1 --s_qo 1 --s_kv 1 --causal",
    ],
)
def test_torch_passes(lengths, page_size, shape):
    assert_passes(run(NAME, f"{lengths} {shape} --page_size {page_size}", "torch"))


@pytest.mark.parametrize("causal", ["", "--causal"])
@pytest.mark.parametrize(
    ("q_dtype", "kv_dtype"),
    [(q, kv) for q in DTYPES for kv in DTYPES if kv == q or kv.startswith("fp8")],
)
def test_torch_passes_in_every_format(q_dtype, kv_dtype, causal):
    line = f"{LENGTHS} --page_size 8 {SHAPES[0]} {causal} --q_dtype {q_dtype} --kv_dtype {kv_dtype}"
    assert_passes(run(NAME, line, "torch"))


def test_torch_refuses_what_it_would_have_to_round():
    record = run(NAME, flags_of((8, 8), ("bfloat16", "float16")), "torch")
    assert record.status is Status.UNSUPPORTED
    assert record.reason == "it needs kv_dtype the same as q_dtype, or FP8"


# ---- Wrong kernels are caught ----


@pytest.mark.parametrize("formats", [B16, (B16[0], "fp8_e5m2"), FP8], ids="-".join)
@pytest.mark.parametrize("change", [*broken.PAGED, *broken.CAUSAL], ids=lambda change: change.__name__)
def test_a_broken_kernel_is_caught(change, formats):
    flags = flags_of((16, 16), formats, "--causal" if change in broken.CAUSAL else "")
    assert_caught(run_broken(NAME, broken.broken(NAME, change), flags))


@pytest.mark.parametrize("change", [*broken.FP8_CACHE, *broken.FP8_QUERY], ids=lambda change: change.__name__)
def test_a_wrong_scale_is_caught(change):
    assert_caught(run_broken(NAME, broken.broken(NAME, change), flags_of((16, 16), FP8)))


# ---- The problem ----


@pytest.mark.parametrize(("formats", "q_bytes", "kv_bytes"), [(B16, 2, 2), ((B16[0], "fp8_e4m3"), 2, 1), (FP8, 1, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_work_and_facts(formats, q_bytes, kv_bytes, causal):
    """2 (D + Dv) FLOPs for each pair and head; the documented count has half of the diagonal, the exact one all."""
    _, problem = problem_of(NAME, flags_of((24, 16), formats, "--causal" * causal))
    lengths = list(zip(problem["q_len"].tolist(), problem["kv_len"].tolist(), strict=True))
    queries, keys = (sum(column) for column in zip(*lengths, strict=True))
    assert queries < keys
    pairs = sum(q * kv - causal * q * q / 2 for q, kv in lengths)
    moved = queries * 4 * (24 * q_bytes + 16 * 2) + keys * 2 * (24 + 16) * kv_bytes
    assert problem.work == Work(flops=2 * pairs * 4 * 40, bytes=moved)
    exact = {"exact_flops": 2 * sum(q * kv - q * (q - 1) / 2 for q, kv in lengths) * 4 * 40} if causal else {}
    assert problem.facts == {"avg_actual_seq_len": queries // 4, **exact}


class Undrawn(TensorFactory):
    """Bulk data without memory."""

    def normal(self, name, shape, dtype, scale=1.0):
        return torch.empty(shape, dtype=dtype.torch, device="meta")


def shown(flags):
    case = case_of(NAME, flags)
    problem = case.routine.make(case.flags, Undrawn("cpu", 42, GIBIBYTE, SingleRank()))
    return [("" if line.level == 2 else "[VERBOSE] ") + line.text for line in problem.shown]


DOCUMENTED = "--batch_size 16 --s_qo 1024 --s_kv 1024 --random_actual_seq_len --causal --page_size 16"


def test_lines_are_those_of_the_documents():
    """Their example of 8 heads, with the lines and the names of the present format."""
    found = shown(f"{DOCUMENTED} --num_qo_heads 8 --num_kv_heads 8 --head_dim_qk 128 --head_dim_vo 128")
    lengths = (
        "tensor([103, 436, 861, 271, 107,  72, 701,  21, 615, 122, 467, 215, 331, 459,\n"
        "         88, 373], dtype=torch.int32)"
    )
    assert found == [
        "s_qo == s_kv, making actual_seq_lens_kv the same as actual_seq_lens_q",
        "[VERBOSE] Average actual qo seq len: 327",
        "[VERBOSE] Average actual kv seq len: 327",
        f"actual_seq_lens_q.flatten() = {lengths}",
        f"actual_seq_lens_kv.flatten() = {lengths}",
        "q.shape = torch.Size([5242, 8, 128])",
        "num_pages_per_seq = 64",
        "total_num_pages = 1024",
        "kv_cache.shape = torch.Size([1024, 2, 8, 16, 128])",
        "kv_cache.stride() = (32768, 16384, 128, 1024, 1)",
        "block_tables.shape = torch.Size([16, 64])",
        "qo_indptr.shape = torch.Size([17])",
        "qo_indptr.dtype = torch.int32",
        "kv_indptr.shape = torch.Size([17])",
        "kv_indices.shape = torch.Size([335])",
        "kv_last_page_len.shape = torch.Size([16])",
        "scale = 0.08838834764831843",
    ]


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ("--s_qo 9 --s_kv 30", "s_qo < s_kv, sampling actual_seq_lens_kv"),
        ("--s_qo 31 --s_kv 30", "s_qo > s_kv, sampling actual_seq_lens_kv"),
        ("--s_qo 30 --s_kv 30", "s_qo == s_kv, making actual_seq_lens_kv the same as actual_seq_lens_q"),
    ],
)
def test_where_lengths_come_from_is_shown(lengths, says):
    found = shown(flags_of(more=lengths))
    assert found[0] == says
    _, problem = problem_of(NAME, flags_of(more=lengths))
    for line, name in ((1, "q_len"), (2, "kv_len")):
        assert found[line].endswith(f"seq len: {int(problem[name].sum()) // 4}")


def test_a_pool_of_two_head_dimensions_shows_its_keys():
    """There is no view of it in five dimensions."""
    found = shown(flags_of((192, 128)))
    assert "kv_cache.shape = torch.Size([16, 2, 8, 192])" in found
    assert f"kv_cache.stride() = ({8 * 2 * (192 + 128)}, 192, 384, 1)" in found


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (flags_of().replace("--page_size 8", ""), "--page_size"),
        (flags_of(more="--page_size 0"), "--page_size must be at least 1, not 0"),
        (flags_of(more="--page_size -4"), "--page_size must be at least 1, not -4"),
        (flags_of().replace("--head_dim_qk 128", ""), "--head_dim_qk"),
    ],
)
def test_invalid(flags, says):
    with pytest.raises(InvalidInput, match=says):
        case_of(NAME, flags)
