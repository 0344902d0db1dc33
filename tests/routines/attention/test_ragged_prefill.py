"""BatchPrefillWithRaggedKVCacheWrapper: its calls, its limits, its problem, and kernels that its check must find."""

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
from flashinfer_perf.routines.attention.ragged_prefill import CUTLASS_WORK_ITEMS
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.ranks import SingleRank
from tests import contract as contracts
from tests.contract import Extras, contract, covers
from tests.declarations import explicit_layer
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

NAME = "BatchPrefillWithRaggedKVCacheWrapper"
API = "flashinfer.prefill.BatchPrefillWithRaggedKVCacheWrapper"
LENGTHS = "--batch_size 4 --s_qo 9 --s_kv 30 --random_actual_seq_len"
CASE = f"{LENGTHS} --num_qo_heads 4 --num_kv_heads 2"
SCALES = [LARGEST[operand] / E4M3_MAX for operand in "qkv"]
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
B16, F16 = ("bfloat16", "bfloat16"), ("float16", "float16")
FP8, E5M2 = ("fp8_e4m3", "fp8_e4m3"), ("fp8_e5m2", "fp8_e5m2")


def flags_of(dims=(128, 128), formats=B16, more=""):
    own = f"--head_dim_qk {dims[0]} --head_dim_vo {dims[1]} --q_dtype {formats[0]} --kv_dtype {formats[1]}"
    return f"{CASE} {own} {more}"


@pytest.fixture
def _small_workspaces(monkeypatch):
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 1 << 12)


# ---- The calls of the library ----

CALLS = [
    *[(backend, (192, 128), B16, "") for backend in ("fa2", "fa3", "auto", "cudnn", "cutlass")],
    *[(backend, (128, 128), F16, "") for backend in ("fa2", "fa3", "auto", "cudnn", "cutlass")],
    ("fa2", (128, 128), ("bfloat16", "fp8_e4m3"), "kv"),
    ("fa2", (256, 256), ("float16", "fp8_e5m2"), "kv"),
    ("auto", (128, 128), ("bfloat16", "fp8_e5m2"), "kv"),
    ("fa3", (128, 128), FP8, "args"),
    ("auto", (128, 128), FP8, "args"),
    ("cudnn", (128, 128), FP8, "tensors"),
    ("cutlass", (192, 128), FP8, "qkv"),
]
WITHOUT_PDL = ("cudnn", "cutlass")


def declare_scales(monkeypatch, of_any_type):
    """The library's typing overloads have no scales; its run does. It says that they are floats, and hands them to
    cuDNN's function, which takes tensors and would else make some in every call.
    """
    import flashinfer.prefill

    monkeypatch.setattr(contracts, "_overloads", lambda function: [])
    if of_any_type:
        run = explicit_layer(flashinfer.prefill.BatchPrefillWithRaggedKVCacheWrapper.run)
        for operand in "qkv":
            monkeypatch.setitem(run.__annotations__, f"{operand}_scale", torch.Tensor)


def output(**call):
    return call["out"]


@covers(NAME, "fa2", "fa3", "auto", "cudnn", "cutlass")
@pytest.mark.usefixtures("_small_workspaces")
@pytest.mark.parametrize("more", ["", "--causal --enable_pdl"])
@pytest.mark.parametrize(("backend", "dims", "formats", "scales"), CALLS)
def test_the_wrapper_is_called_as_it_declares(monkeypatch, backend, dims, formats, scales, more):
    if scales not in ("", "args"):
        declare_scales(monkeypatch, of_any_type=scales == "tensors")
    gives = Extras(output, 3) if scales == "args" else output
    with contract(API, plan=None, run=gives, _backend="fa7") as wrapper:
        launch, problem = launch_of(NAME, backend, flags_of(dims, formats, more))
        returned = launch()
    instance, q_dtype = wrapper.instance, DTYPES[formats[0]]
    made, plan, call = dict(instance.made_with), dict(instance.plan.call), dict(instance.run.call)
    assert made.pop("float_workspace_buffer").dtype is torch.uint8
    assert made == {"kv_layout": "NHD", "backend": backend}

    tensors = {"qo_indptr": "qo_indptr", "kv_indptr": "kv_indptr"}
    if backend == "cudnn":
        tensors |= {"seq_lens": "kv_len", "seq_lens_q": "q_len"}
        assert (plan.pop("max_token_per_sequence"), plan.pop("max_sequence_kv")) == (9, 30)
    assert all(plan.pop(argument) is problem[tensor] for argument, tensor in tensors.items())
    out_dtype = q_dtype if q_dtype.itemsize == 2 else torch.bfloat16
    assert plan == {
        "num_qo_heads": 4,
        "num_kv_heads": 2,
        "head_dim_qk": dims[0],
        "head_dim_vo": dims[1],
        "causal": bool(more),
        "sm_scale": 1 / math.sqrt(dims[0]),
        "q_data_type": q_dtype,
        "kv_data_type": DTYPES[formats[1]],
        "o_data_type": out_dtype,
    }

    out = call.pop("out")
    assert (out.shape, out.dtype) == ((len(problem["q"]), 4, dims[1]), out_dtype)
    assert [call.pop(name) is problem[name] for name in ("q", "k", "v")] == [True] * 3
    if backend not in WITHOUT_PDL:
        assert call.pop("enable_pdl") is bool(more)
    assert_scales(call, scales)
    assert call == {}
    assert launch.outputs(returned) == {"out": out}
    assert launch.facts["plan_ms"] >= 0
    assert launch.resolved_backend == ("fa7" if backend == "auto" else "")


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
@pytest.mark.parametrize(("dims", "formats"), [((192, 128), B16), ((128, 128), F16), ((192, 128), FP8)])
def test_tensorrt_is_called_as_the_library_declares(dims, formats, more):
    with contract("flashinfer.prefill.trtllm_ragged_attention_deepseek", returns=output) as kernel:
        launch, problem = launch_of(NAME, "trtllm-native", flags_of(dims, formats, more))
        returned = launch()
    call, scales = dict(kernel.call), SCALES if formats is FP8 else [1, 1, 1]
    tensors = {"query": "q", "key": "k", "value": "v", "seq_lens": "kv_len"}
    tensors |= {"cum_seq_lens_q": "qo_indptr", "cum_seq_lens_kv": "kv_indptr"}
    assert all(call.pop(argument) is problem[tensor] for argument, tensor in tensors.items())
    workspace = call.pop("workspace_buffer")
    assert (workspace.dtype, int(workspace.count_nonzero())) == (torch.uint8, 0)
    out = call.pop("out")
    dtype = torch.float16 if formats is F16 else torch.bfloat16
    assert (out.shape, out.dtype) == ((len(problem["q"]), 4, dims[1]), dtype)
    assert call == {
        "max_q_len": 9,
        "max_kv_len": 30,
        "bmm1_scale": pytest.approx(scales[0] * scales[1] / math.sqrt(dims[0]), rel=1e-12),
        "bmm2_scale": scales[2],
        "o_sf_scale": 1.0,
        "batch_size": 4,
        "window_left": -1,
        "enable_pdl": bool(more),
        "is_causal": bool(more),
        "return_lse": False,
    }
    assert launch.outputs(returned) == {"out": out}
    assert launch.scratch == ("workspace_buffer",)


@pytest.mark.parametrize("formats", [B16, ("float16", "fp8_e5m2"), FP8])
def test_operands_lie_sequence_by_sequence(formats):
    case, problem = problem_of(NAME, flags_of((64, 48), formats))
    queries, keys = int(problem["q_len"].sum()), int(problem["kv_len"].sum())
    shapes = {"q": (queries, 4, 64), "k": (keys, 2, 64), "v": (keys, 2, 48)}
    for name, shape in shapes.items():
        dtype = case.q_dtype if name == "q" else case.kv_dtype
        assert (problem[name].shape, problem[name].dtype) == (shape, dtype.torch)
        assert problem[name].is_contiguous()
    for name, lengths in (("qo_indptr", "q_len"), ("kv_indptr", "kv_len")):
        assert problem[name].tolist() == [0, *problem[lengths].cumsum(0).tolist()]
        assert problem[name].dtype is problem[lengths].dtype is torch.int32
    assert not torch.equal(problem["k"][..., :48].float(), problem["v"].float())


# ---- Limits ----

ANY_GPU = ((8, 0), (9, 0), (10, 0), (12, 0))
E4M3_CACHE = ("bfloat16", "fp8_e4m3")
DIMS = "head_dim_qk and head_dim_vo of"
LIMITS = [
    *[("fa2", gpu, (192, 128), B16, None) for gpu in ANY_GPU],
    ("fa2", (7, 5), (128, 128), B16, "compute capability 8.0 or newer, and this GPU has 7.5"),
    *[("fa2", (9, 0), (dim, dim), B16, None) for dim in (64, 128, 256, 512)],
    *[("fa2", (9, 0), dims, B16, f"{DIMS} 64, 128, 256, 512, 192") for dims in ((80, 80), (192, 192), (128, 192))],
    *[("fa2", (9, 0), dims, E4M3_CACHE, "128 or 256 for FP8") for dims in ((64, 64), (192, 128), (512, 512))],
    *[("fa2", (9, 0), (dim, dim), E4M3_CACHE, None) for dim in (128, 256)],
    *[("fa2", (9, 0), (128, 128), fp8, "it needs q_dtype and kv_dtype of bfloat16, float16") for fp8 in (FP8, E5M2)],
    *[("fa3", (9, 0), dims, B16, None) for dims in ((64, 64), (128, 128), (256, 256), (192, 128))],
    *[("fa3", gpu, (128, 128), B16, "compute capability 9.x, and this GPU has") for gpu in ((8, 0), (10, 0), (12, 0))],
    *[("fa3", (9, 0), dims, B16, f"{DIMS} 64, 128, 256, 192 with 128") for dims in ((512, 512), (80, 80))],
    *[("fa3", (9, 0), (dim, dim), FP8, None) for dim in (128, 256)],
    *[("fa3", (9, 0), dims, FP8, "128 or 256 for FP8") for dims in ((64, 64), (192, 128))],
    *[("fa3", (9, 0), (128, 128), odd, "kv_dtype of bfloat16, float16, fp8_e4m3") for odd in (E5M2, E4M3_CACHE)],
    *[("auto", gpu, (192, 128), B16, None) for gpu in ANY_GPU],
    ("auto", (9, 0), (128, 128), FP8, None),
    *[("auto", gpu, (128, 128), FP8, "compute capability 9.x") for gpu in ((8, 0), (10, 0), (12, 0))],
    ("auto", (9, 0), (192, 128), FP8, "128 or 256 for FP8"),
    ("auto", (9, 0), (128, 128), ("float16", "bfloat16"), "it needs q_dtype and kv_dtype of"),
    *[("cutlass", (10, 0), dims, B16, None) for dims in ((64, 64), (128, 128), (192, 128))],
    *[("cutlass", gpu, (128, 128), FP8, None) for gpu in ((10, 0), (10, 3), (11, 0))],
    *[("cutlass", gpu, (128, 128), B16, "10.x or 11.x, and this GPU has") for gpu in ((8, 0), (9, 0), (12, 0))],
    *[("cutlass", (10, 0), dims, B16, f"{DIMS} 64, 128, 192 with 128") for dims in ((256, 256), (192, 192))],
    *[("cutlass", (10, 0), (128, 128), odd, "kv_dtype of bfloat16, float16, fp8_e4m3") for odd in (E5M2, E4M3_CACHE)],
    *[("trtllm-native", (10, 0), dims, B16, None) for dims in ((128, 128), (256, 256), (192, 128))],
    *[("trtllm-native", gpu, (128, 128), FP8, None) for gpu in ((10, 0), (10, 3))],
    *[("trtllm-native", gpu, (128, 128), B16, "capability 10.x, and this GPU") for gpu in ((8, 0), (9, 0), (12, 0))],
    *[("trtllm-native", (10, 0), dims, B16, f"{DIMS} 128, 256, 192 with 128") for dims in ((64, 64), (192, 192))],
    *[("trtllm-native", (10, 0), (128, 128), odd, "kv_dtype of bfloat16, float16, fp8") for odd in (E5M2, E4M3_CACHE)],
]


def refusal(backend, capability, flags):
    machine = Machine("cuda:0", "NVIDIA H200", compute_capability=capability)
    unmet = routine_named(NAME).backends[backend].unmet(machine, case_of(NAME, flags).flags)
    return unmet and unmet[1]


@pytest.mark.parametrize(("backend", "capability", "dims", "formats", "says"), LIMITS)
def test_limits(backend, capability, dims, formats, says):
    reason = refusal(backend, capability, flags_of(dims, formats))
    assert (reason is None) == (says is None), reason
    assert says is None or says in reason


@pytest.mark.parametrize("qk", [32, 64, 80, 128, 192, 256, 512])
@pytest.mark.parametrize("vo", [64, 128, 192, 256])
def test_the_librarys_heads_of_fa3_are_ours(qk, vo):
    from flashinfer.utils import is_fa3_prefill_head_dim_supported

    ours = refusal("fa3", (9, 0), flags_of((qk, vo))) is None
    assert ours == is_fa3_prefill_head_dim_supported(qk, vo)


@pytest.mark.usefixtures("_small_workspaces")
@pytest.mark.parametrize("dims", [(128, 128), (192, 128), (256, 256), (64, 64), (128, 64), (192, 192), (512, 512)])
def test_the_librarys_heads_of_tensorrt_are_ours(monkeypatch, dims):
    """Its own assertion comes before its kernel is loaded."""
    compiled_prefill.install(monkeypatch, (10, 0))
    launch, _ = launch_of(NAME, "trtllm-native", flags_of(dims))
    if refusal("trtllm-native", (10, 0), flags_of(dims)) is None:
        launch()
    else:
        with pytest.raises(AssertionError, match="Unsupported head dimensions"):
            launch()


@pytest.mark.usefixtures("_small_workspaces")
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0), (11, 0), (12, 0)])
def test_the_librarys_gpus_of_cutlass_are_ours(monkeypatch, capability):
    import flashinfer.prefill

    real = flashinfer.prefill.get_fmha_module.__wrapped__
    compiled_prefill.install(monkeypatch, capability)
    stand_in = flashinfer.prefill.get_fmha_module
    spec = compiled_prefill.Spec(stand_in())
    monkeypatch.setattr(flashinfer.prefill, "gen_fmha_cutlass_sm100a_module", lambda *arguments: spec)
    monkeypatch.setattr(flashinfer.prefill, "get_fmha_module", real)
    if refusal("cutlass", capability, flags_of()) is None:
        launch_of(NAME, "cutlass", flags_of())
    else:
        with pytest.raises(ValueError, match="CUTLASS FMHA requires SM100a"):
            launch_of(NAME, "cutlass", flags_of())


ITEMS = [(256, 512, 1), (256, 513, 1), (1, 512, 256), (1, 512, 257), (512, 1, 512), (1024, 1, 129), (9, 300, 128)]


@pytest.mark.parametrize(("batch_size", "heads", "s_qo"), ITEMS)
def test_cutlass_is_refused_what_would_overrun_the_librarys_buffers(batch_size, heads, s_qo):
    """By the library's own count of sequences that are all the longest; nothing in it checks an explicit cutlass."""
    from flashinfer import prefill

    assert prefill._CUTLASS_PLAN_WORK_CAPACITY == CUTLASS_WORK_ITEMS
    qo_indptr = torch.arange(batch_size + 1, dtype=torch.int32) * s_qo
    overruns = prefill._cutlass_plan_work_items(qo_indptr, heads) > CUTLASS_WORK_ITEMS
    sizes = f"--batch_size {batch_size} --num_qo_heads {heads} --num_kv_heads 1 --s_qo {s_qo} --s_kv {s_qo}"
    reason = refusal("cutlass", (10, 0), flags_of(more=sizes))
    expected = "it needs batch_size * ceil(s_qo / 256) * num_qo_heads up to 131072"
    assert reason == (expected if overruns else None)


# ---- Right kernels pass ----

SHAPES = [
    "--num_qo_heads 6 --num_kv_heads 2 --head_dim_qk 80",
    "--num_qo_heads 3 --num_kv_heads 3 --head_dim_qk 24 --head_dim_vo 16",
    "--num_qo_heads 4 --num_kv_heads 1 --head_dim_qk 8 --head_dim_vo 40",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "lengths",
    [
        "--batch_size 4 --s_qo 9 --s_kv 40 --causal --random_actual_seq_len",
        "--batch_size 3 --s_qo 20 --s_kv 20 --causal",
        "--batch_size 5 --s_qo 20 --s_kv 20 --random_actual_seq_len",
        "--batch_size 3 --s_qo 33 --s_kv 7 --random_actual_seq_len",
        "--batch_size 1 --s_qo 1 --s_kv 1 --causal",
    ],
)
def test_torch_passes(lengths, shape):
    assert_passes(run(NAME, f"{lengths} {shape}", "torch"))


@pytest.mark.parametrize("causal", ["", "--causal"])
@pytest.mark.parametrize(
    ("q_dtype", "kv_dtype"),
    [(q, kv) for q in DTYPES for kv in DTYPES if kv == q or kv.startswith("fp8")],
)
def test_torch_passes_in_every_format(q_dtype, kv_dtype, causal):
    line = f"{LENGTHS} {SHAPES[0]} {causal} --q_dtype {q_dtype} --kv_dtype {kv_dtype}"
    assert_passes(run(NAME, line, "torch"))


def test_torch_refuses_what_it_would_have_to_round():
    record = run(NAME, flags_of((8, 8), ("bfloat16", "float16")), "torch")
    assert record.status is Status.UNSUPPORTED
    assert record.reason == "it needs kv_dtype the same as q_dtype, or FP8"


# ---- Wrong kernels are caught ----


@pytest.mark.parametrize("formats", [B16, ("bfloat16", "fp8_e5m2"), FP8], ids="-".join)
@pytest.mark.parametrize("change", [*broken.RAGGED, *broken.CAUSAL], ids=lambda change: change.__name__)
def test_a_broken_kernel_is_caught(change, formats):
    flags = flags_of((16, 16), formats, "--causal" if change in broken.CAUSAL else "")
    assert_caught(run_broken(NAME, broken.broken(NAME, change), flags))


@pytest.mark.parametrize("change", [*broken.FP8_CACHE, *broken.FP8_QUERY], ids=lambda change: change.__name__)
def test_a_wrong_scale_is_caught(change):
    assert_caught(run_broken(NAME, broken.broken(NAME, change), flags_of((16, 16), FP8)))


# ---- The problem ----


@pytest.mark.parametrize(("formats", "q_bytes", "kv_bytes"), [(B16, 2, 2), (E4M3_CACHE, 2, 1), (FP8, 1, 1)])
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


DEEPSEEK = "--num_qo_heads 128 --num_kv_heads 128 --head_dim_qk 192 --head_dim_vo 128"


def test_lines_are_those_of_the_documents():
    """Their example of DeepSeek-R1."""
    found = shown(f"--batch_size 16 --s_qo 1024 --s_kv 1024 --random_actual_seq_len --causal {DEEPSEEK}")
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
        "q.shape = torch.Size([5242, 128, 192])",
        "k.shape = torch.Size([5242, 128, 192])",
        "v.shape = torch.Size([5242, 128, 128])",
        "qo_indptr.shape = torch.Size([17])",
        "kv_indptr.shape = torch.Size([17])",
        "scale = 0.07216878364870323",
    ]


def test_lines_of_full_lengths_are_those_of_the_documents():
    found = shown(f"--batch_size 16 --s_qo 1024 --s_kv 1024 --causal {DEEPSEEK}")
    lengths = (
        "tensor([1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024,\n"
        "        1024, 1024, 1024, 1024], dtype=torch.int32)"
    )
    assert found[3] == f"actual_seq_lens_q.flatten() = {lengths}"
    assert found[5:8] == [
        "q.shape = torch.Size([16384, 128, 192])",
        "k.shape = torch.Size([16384, 128, 192])",
        "v.shape = torch.Size([16384, 128, 128])",
    ]


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ("--s_qo 9 --s_kv 30", "s_qo < s_kv, sampling actual_seq_lens_kv"),
        ("--s_qo 31 --s_kv 30", "s_qo > s_kv, sampling actual_seq_lens_kv"),
    ],
)
def test_where_lengths_come_from_is_shown(lengths, says):
    found = shown(flags_of(more=lengths))
    assert found[0] == says
    _, problem = problem_of(NAME, flags_of(more=lengths))
    for line, name in ((1, "q_len"), (2, "kv_len")):
        assert found[line].endswith(f"seq len: {int(problem[name].sum()) // 4}")


def test_the_head_dimension_must_be_said():
    with pytest.raises(InvalidInput, match="--head_dim_qk"):
        case_of(NAME, flags_of().replace("--head_dim_qk 128", ""))


def test_there_are_no_pages():
    """The flag is of the family; here it is ignored, and is no part of the case."""
    case = case_of(NAME, flags_of(more="--page_size 8"))
    assert case.ignored == ("page_size",)
    assert case.case_id == case_of(NAME, flags_of()).case_id
