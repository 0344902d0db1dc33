"""What both prefills share: calls of cuDNN, scales, what the library chooses, and its own Python up to the kernels."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch

from flashinfer_perf import lazy
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import DoesNotFit, InvalidInput
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Status
from flashinfer_perf.routines.attention import backends
from flashinfer_perf.routines.attention.flags import AttentionFlags
from flashinfer_perf.routines.attention.operands import E4M3_MAX, LARGEST, Scales, scales_of
from flashinfer_perf.routines.attention.prefill_calls import cudnn_plan_options, run_of, tensor_scales
from flashinfer_perf.run.engine import run_case
from flashinfer_perf.run.ranks import SingleRank
from tests.contract import contract, covers
from tests.fakes import texts_in
from tests.routines.attention import compiled_prefill
from tests.routines.harness import (
    assert_passes,
    case_of,
    launch_of,
    problem_of,
    records_of,
    routine_named,
    run,
    unconditional,
)

PAGED, RAGGED = "BatchPrefillWithPagedKVCacheWrapper", "BatchPrefillWithRaggedKVCacheWrapper"
LENGTHS = "--batch_size 4 --s_qo 9 --s_kv 30 --random_actual_seq_len"
HEADS = "--num_qo_heads 4 --num_kv_heads 2"
SAME = ["bfloat16 bfloat16", "float16 float16"]
MIXED = ["bfloat16 fp8_e4m3", "float16 fp8_e5m2"]
ALL_FP8 = ["fp8_e4m3 fp8_e4m3"]
SCALES = [LARGEST[operand] / E4M3_MAX for operand in "qkv"]

both = pytest.mark.parametrize("name", [PAGED, RAGGED])


def flags_of(name, dims="128 128", formats=SAME[0], more=""):
    """A small case with head dimensions and formats of query and key, or of query and cache."""
    (dim_qk, dim_vo), (q, kv) = dims.split(), formats.split()
    own = f"--head_dim_qk {dim_qk} --head_dim_vo {dim_vo} --q_dtype {q} --kv_dtype {kv}"
    return f"{LENGTHS} {HEADS} {own} {'--page_size 8' if name == PAGED else ''} {more}"


@pytest.fixture(autouse=True)
def _small_workspaces(monkeypatch):
    """128 MiB of zeros cost more than all else."""
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 1 << 12)


# ---- FlashInfer's own Python, up to its kernels ----

COMPILED = [
    (PAGED, "fa2", ["128 128", "64 64", "192 128", "512 512"], SAME),
    (PAGED, "fa2", ["128 128", "256 256"], MIXED),
    (PAGED, "fa3", ["128 128", "64 64"], SAME),
    (PAGED, "fa3", ["128 128"], ALL_FP8),
    (PAGED, "auto", ["128 128"], SAME + MIXED + ALL_FP8),
    (PAGED, "cudnn", ["128 128", "192 128"], SAME + ALL_FP8),
    (PAGED, "cudnn-native", ["128 128", "192 128"], SAME + ALL_FP8),
    (PAGED, "trtllm-gen", ["128 128"], SAME + ALL_FP8),
    (PAGED, "trtllm-native", ["128 128"], SAME + ALL_FP8),
    (RAGGED, "fa2", ["128 128", "192 128"], SAME),
    (RAGGED, "fa2", ["128 128"], MIXED),
    (RAGGED, "fa3", ["128 128", "192 128"], SAME),
    (RAGGED, "fa3", ["128 128"], ALL_FP8),
    (RAGGED, "auto", ["128 128"], SAME + MIXED + ALL_FP8),
    (RAGGED, "auto", ["192 128"], SAME),
    (RAGGED, "cudnn", ["128 128", "192 128"], SAME + ALL_FP8),
    (RAGGED, "cudnn-native", ["128 128", "192 128"], SAME + ALL_FP8),
    (RAGGED, "cutlass", ["128 128", "192 128"], SAME + ALL_FP8),
    (RAGGED, "trtllm-native", ["128 128", "192 128"], SAME + ALL_FP8),
]
BLACKWELL = ("trtllm-gen", "trtllm-native", "cutlass")
WITHOUT_PDL = ("cudnn", "cudnn-native", "cutlass")
CASES = [
    (name, backend, dims, formats)
    for name, backend, all_dims, all_formats in COMPILED
    for dims, formats in itertools.product(all_dims, all_formats)
]


def assert_works(name, backend, flags):
    with warnings.catch_warnings(), unconditional(name, backend):
        warnings.simplefilter("error")
        record = run(name, flags, backend)
    assert_passes(record)
    return record


@pytest.mark.parametrize(("name", "backend", "dims", "formats"), CASES)
def test_flashinfers_own_code_accepts_the_plan_and_the_run(monkeypatch, name, backend, dims, formats):
    """Right outputs come of what reaches its kernels, and the requirements admit the case on the GPU that it is for."""
    capability = (10, 0) if backend in BLACKWELL or (backend.startswith("cudnn") and formats in ALL_FP8) else (9, 0)
    flags = flags_of(name, dims, formats, "--causal")
    compiled_prefill.install(monkeypatch, capability)
    assert refusal(name, backend, capability, flags) is None
    assert_works(name, backend, flags)


@pytest.mark.parametrize(("name", "backend"), dict.fromkeys((name, backend) for name, backend, *_ in COMPILED))
@pytest.mark.parametrize(
    "more",
    [
        "",
        "--enable_pdl",
        "--no-random_actual_seq_len",
        "--s_qo 30 --causal",
        "--s_qo 40",
        "--batch_size 1 --s_qo 1 --s_kv 1 --causal",
        "--num_qo_heads 2 --causal",
        "--num_kv_heads 1",
    ],
)
def test_every_mask_length_and_group_gets_through(monkeypatch, name, backend, more):
    made = compiled_prefill.install(monkeypatch, (9, 0))
    assert_works(name, backend, flags_of(name, more=more))
    assert set(made.pdl) == (set() if backend in WITHOUT_PDL else {"enable_pdl" in more})


@pytest.mark.parametrize("backend", ["fa2", "auto", "trtllm-gen", "trtllm-native", "cudnn", "cudnn-native"])
@pytest.mark.parametrize("page_size", [1, 32, 64])
def test_pages_of_every_size_get_through(monkeypatch, backend, page_size):
    compiled_prefill.install(monkeypatch)
    assert_works(PAGED, backend, flags_of(PAGED, more=f"--page_size {page_size} --causal"))


def test_the_module_for_two_strides_is_compiled_before_the_first_call(monkeypatch):
    """Keys and values of different head dimensions lie at different distances."""
    made = compiled_prefill.install(monkeypatch)
    for dims, expected in (("128 128", [("fa2", True)]), ("192 128", [("fa2", True), ("fa2", False)])):
        made.modules.clear()
        launch, _ = launch_of(PAGED, "fa2", flags_of(PAGED, dims))
        assert made.modules == expected
        launch()
        assert made.modules == expected


@pytest.mark.parametrize(
    ("name", "capability", "dims", "formats", "resolved"),
    [
        (PAGED, (9, 0), "128 128", SAME[0], "fa3"),
        (PAGED, (9, 0), "512 512", SAME[0], "fa2"),
        (PAGED, (9, 0), "128 128", MIXED[0], "fa2"),
        (PAGED, (9, 0), "128 128", ALL_FP8[0], "fa3"),
        (PAGED, (8, 0), "128 128", SAME[0], "fa2"),
        (RAGGED, (9, 0), "192 128", SAME[0], "fa3"),
        (RAGGED, (9, 0), "512 512", SAME[0], "fa2"),
        (RAGGED, (9, 0), "128 128", MIXED[0], "fa2"),
        (RAGGED, (10, 0), "128 128", SAME[0], "cutlass"),
        (RAGGED, (10, 0), "64 64", SAME[0], "fa2"),
        (RAGGED, (10, 0), "128 128", MIXED[0], "fa2"),
    ],
)
def test_what_the_library_chose_is_said(monkeypatch, name, capability, dims, formats, resolved):
    """And is something that can run this, by the requirements of the backend of that name."""
    made = compiled_prefill.install(monkeypatch, capability)
    flags = flags_of(name, dims, formats)
    assert assert_works(name, "auto", flags).resolved_backend == resolved == made.modules[0][0]
    assert refusal(name, resolved, capability, flags) is None


@both
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0), (12, 0)])
def test_auto_is_refused_where_the_library_would_choose_what_cannot_run(monkeypatch, name, capability):
    """Its function chooses FlashAttention-2 or 3; one that would be refused under its own name must not be tried."""
    from flashinfer.utils import determine_attention_backend

    compiled_prefill.install(monkeypatch, capability)
    dims = ["64 64", "80 80", "128 128", "192 128", "256 256", "512 512"]
    formats = [*SAME, *MIXED, *ALL_FP8, "fp8_e5m2 fp8_e5m2", "bfloat16 float16", "fp8_e4m3 bfloat16"]
    admitted = 0
    for dim, dtypes in itertools.product(dims, formats):
        flags = case_of(name, flags_of(name, dim, dtypes)).flags
        q, kv = flags.q_dtype.torch, flags.kv_dtype.torch
        sizes = {"head_dim_qk": flags.head_dim_qk, "head_dim_vo": flags.head_dim_vo}
        chosen = determine_attention_backend(torch.device("cpu"), 0, False, False, q, kv, **sizes)
        if refusal(name, "auto", capability, flags) is None:
            assert refusal(name, chosen, capability, flags) is None, (dim, dtypes, chosen)
            admitted += 1
    assert admitted > 10


@both
@pytest.mark.parametrize("capability", [(8, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize(
    ("backend", "says"),
    [("fa2", "it needs q_dtype and kv_dtype of bfloat16, float16, bfloat16 with fp8"), ("auto", "for FP8 queries it ")],
)
def test_fp8_queries_are_refused_where_the_library_refuses_them(monkeypatch, name, backend, says, capability):
    import flashinfer.prefill

    real = flashinfer.prefill._gen_batch_prefill_primary_module
    compiled_prefill.install(monkeypatch, capability)
    monkeypatch.setattr(flashinfer.prefill, "_gen_batch_prefill_primary_module", real)
    flags = flags_of(name, formats=ALL_FP8[0])
    with pytest.raises(AssertionError, match="fp8 tensor core is not supported in fa2 backend"):
        launch_of(name, backend, flags)
    assert says in refusal(name, backend, capability, flags)


def refusal(name, backend, capability, flags):
    """Why the backend would not run on a GPU of this compute capability; None if it would."""
    values = case_of(name, flags).flags if isinstance(flags, str) else flags
    machine = Machine("cuda:0", "a GPU", compute_capability=capability)
    unmet = routine_named(name).backends[backend].unmet(machine, values)
    return unmet and unmet[1]


# ---- cuDNN ----


@covers(PAGED, "cudnn-native")
@covers(RAGGED, "cudnn-native")
@both
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("formats", [*SAME, *ALL_FP8])
def test_cudnn_is_called_as_the_library_declares(name, formats, causal):
    api = "flashinfer.prefill.cudnn_batch_prefill_with_kv_cache"
    with contract(api, returns=lambda **call: (call["out"], None)) as kernel:
        launch, problem = launch_of(name, "cudnn-native", flags_of(name, "192 128", formats, "--causal" * causal))
        outputs = launch.outputs(launch())
    call = dict(kernel.call)
    q_tokens, kv_tokens = problem["qo_indptr"].long(), torch.cat((torch.zeros(1), problem["kv_len"].cumsum(0)))
    offsets = {"q": q_tokens * (4 * 192), "o": q_tokens * (4 * 128)}
    names = {"q": "q", "k_cache": "k_cache", "v_cache": "v_cache", "block_tables": "block_tables"}
    if name == RAGGED:
        offsets |= {"k": kv_tokens.long() * (2 * 192), "v": kv_tokens.long() * (2 * 128)}
        names = {"q": "q", "k_cache": "k", "v_cache": "v"}
    for operand, expected in offsets.items():
        given = call.pop(f"batch_offsets_{operand}")
        assert torch.equal(given, expected)
        assert given.dtype is torch.int64
    assert all(call.pop(argument) is problem[tensor] for argument, tensor in names.items())
    assert call.pop("workspace_buffer").dtype is torch.uint8
    for operand in "q", "kv":
        lengths = call.pop(f"actual_seq_lens_{operand}")
        assert lengths.shape == (4, 1, 1, 1)
        assert torch.equal(lengths.flatten(), problem[f"{operand}_len"])
    found = [call.pop(f"{operand}_scale") for operand in "qkv"] if formats in ALL_FP8 else []
    assert_fp32_scalars(found, SCALES if formats in ALL_FP8 else [])
    out = call.pop("out")
    dtype = torch.float16 if formats == SAME[1] else torch.bfloat16
    assert (out.shape, out.dtype) == ((len(problem["q"]), 4, 128), dtype)
    assert outputs["out"] is out
    assert launch.scratch == ("workspace_buffer",)
    assert call == {
        "scale": 1 / math.sqrt(192),
        "max_token_per_sequence": 9,
        "max_sequence_kv": 30,
        "causal": causal,
        "return_lse": False,
        "batch_offsets_units": "elements",
        "is_cuda_graph_compatible": True,
        "o_data_type": dtype,
    }


@both
@pytest.mark.parametrize("backend", ["cudnn", "cudnn-native"])
@pytest.mark.parametrize(
    ("capability", "dims", "formats", "says"),
    [
        *[(major, "128 128", SAME[0], None) for major in ((8, 0), (8, 6), (9, 0), (10, 0), (12, 0))],
        ((7, 5), "128 128", SAME[0], "8.0 or newer, and this GPU has 7.5"),
        *[((9, 0), dims, SAME[1], None) for dims in ("64 64", "192 128", "256 256")],
        *[((9, 0), dims, SAME[1], "of 64, 128, 256, 192 with 128") for dims in ("80 80", "512 512", "128 192")],
        *[(old, "128 128", ALL_FP8[0], "q_dtype and kv_dtype of bfloat16, float16") for old in ((8, 9), (9, 0))],
        ((10, 0), "128 128", ALL_FP8[0], None),
        ((12, 0), "128 128", ALL_FP8[0], None),
        ((10, 0), "128 128", "fp8_e5m2 fp8_e5m2", "q_dtype and kv_dtype of bfloat16, float16, fp8_e4m3"),
        ((10, 0), "128 128", MIXED[0], "q_dtype and kv_dtype of bfloat16, float16, fp8_e4m3"),
        ((9, 0), "128 128", "bfloat16 float16", "q_dtype and kv_dtype of bfloat16, float16"),
    ],
)
def test_limits_of_cudnn(name, backend, capability, dims, formats, says):
    reason = refusal(name, backend, capability, flags_of(name, dims, formats))
    assert (reason is None) == (says is None), reason
    assert says is None or says in reason


def test_plan_options_of_cudnn_are_lengths_and_maxima():
    """In the order of the queries' and keys' lengths, which differ."""
    case, problem = problem_of(RAGGED, flags_of(RAGGED))
    options = cudnn_plan_options(case, problem)
    assert options.pop("seq_lens") is problem["kv_len"]
    assert options.pop("seq_lens_q") is problem["q_len"]
    assert options == {"max_token_per_sequence": 9, "max_sequence_kv": 30}


# ---- Scales ----


def assert_fp32_scalars(found, expected):
    assert [tensor.tolist() for tensor in found] == [[torch.tensor(value).item()] for value in expected]
    assert all((tensor.shape, tensor.dtype) == ((1,), torch.float32) for tensor in found)


def operands(q, kv):
    shape = {"num_qo_heads": 1, "num_kv_heads": 1, "head_dim_qk": 128}
    return AttentionFlags(batch_size=1, s_kv=1, q_dtype=DType(q), kv_dtype=DType(kv), **shape)


@pytest.mark.parametrize(
    ("formats", "names"),
    [*[(same, "") for same in SAME], *[(mixed, "kv") for mixed in MIXED], *[(fp8, "qkv") for fp8 in ALL_FP8]],
)
def test_scales_are_passed_for_fp8_alone(formats, names):
    case = operands(*formats.split())
    found = tensor_scales(case, {"q": torch.empty(1)})
    assert list(found) == [f"{name}_scale" for name in names]
    assert_fp32_scalars(found.values(), [getattr(scales_of(case), name) for name in names])
    for backend in ("fa2", "trtllm-gen", *(("fa3", "auto") if formats not in ALL_FP8 else ())):
        call, keywords = run_of(case, print, backend, ("q", "k", "v"))
        assert call is print
        assert keywords == {f"{name}_scale": getattr(scales_of(case), name) for name in names}


@pytest.mark.parametrize("backend", ["fa3", "auto"])
def test_scales_of_fp8_queries_stand_behind_the_operands(backend):
    calls = []
    call, keywords = run_of(operands(*ALL_FP8[0].split()), lambda *a, **k: calls.append((a, k)), backend, ("a", "b"))
    call(out=5, b=2, a=1)
    assert calls == [((1, 2, *SCALES), {"out": 5})]
    assert keywords == {}
    assert scales_of(operands(*ALL_FP8[0].split())) == Scales(*SCALES)


# ---- Names, and bad input ----


@both
def test_the_former_name_of_a_backend(name):
    events = list(run_case(case_of(name, flags_of(name, more="--backends trtllm-gen-native torch")), SingleRank()))
    said = texts_in(events, "WARNING")
    assert said[0] == (
        "Backend name 'trtllm-gen-native' has been renamed to 'trtllm-native' and will be removed in a future release."
    )
    assert case_of(name, flags_of(name, more="--backends trtllm-gen-native")).backends == ("trtllm-native",)


@both
@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--backends trtllm", r"'trtllm' is not one of fa2, fa3, .*Did you mean"),
        ("--s_qo 31 --causal", r"s_qo > s_kv \(31 > 30\) is not supported with --causal"),
        ("--num_qo_heads 5", r"num_kv_heads \(2\) must divide num_qo_heads \(5\)"),
        ("--num_qo_heads 1", r"num_kv_heads \(2\) must divide num_qo_heads \(1\)"),
        ("--q_dtype float32", "--q_dtype: 'float32' is not one of bfloat16, float16, fp8_e4m3, fp8_e5m2"),
        ("--kv_dtype nvfp4", "--kv_dtype: 'nvfp4' is not one of bfloat16"),
        ("--head_dim_qk 0", "--head_dim_qk must be at least 1, not 0"),
        ("--head_dim_vo -1", "--head_dim_vo must be at least 1, not -1"),
        ("--batch_size 0", "--batch_size must be at least 1, not 0"),
        ("--s_kv 1.5", "--s_kv takes a whole number, not '1.5'"),
    ],
)
def test_invalid(name, more, says):
    with pytest.raises(InvalidInput, match=says):
        case_of(name, flags_of(name, more=more))


@both
@pytest.mark.parametrize("flag", ["batch_size", "s_kv", "num_qo_heads", "num_kv_heads", "head_dim_qk"])
def test_missing(name, flag):
    words = flags_of(name).split()
    at = words.index(f"--{flag}")
    with pytest.raises(InvalidInput, match=f"--{flag}"):
        case_of(name, " ".join(words[:at] + words[at + 2 :]))


@both
def test_queries_longer_than_keys_are_fine_without_a_mask(name):
    assert_passes(run(name, flags_of(name, "8 8", more="--s_qo 31"), "torch"))


@both
def test_a_value_is_as_wide_as_a_key_unless_said(name):
    case, problem = problem_of(name, flags_of(name).replace("--head_dim_vo 128", ""))
    assert case.head_dim_vo == 128 == problem.truth()["out"].shape[-1]


LONG, WIDE = "--batch_size 1 --s_qo 1048576 --s_kv 1048576", "--num_qo_heads 1048576 --num_kv_heads 1048576"

MANY = "--num_qo_heads 524288 --num_kv_heads 524288"


@pytest.mark.parametrize(
    ("name", "more", "tensor", "bulk_bytes"),
    [
        (PAGED, LONG, "kv_cache", 2**20 * 2 * 2 * 128 * 2),
        (PAGED, WIDE, "kv_cache", 4 * 32 * 2**20 * 2 * 128 * 2),
        (PAGED, "--batch_size 1099511627776", "sequence_lengths", 2**43),
        (RAGGED, LONG, "q", 2**20 * 4 * 128 * 2),
        (RAGGED, WIDE, "q", 4 * 9 * 2**20 * 128 * 2),
        (RAGGED, f"{MANY} --s_qo 1", "k", 4 * (1 + 30) * 2**19 * 128 * 2),
        (RAGGED, "--batch_size 1099511627776", "sequence_lengths", 2**43),
    ],
)
def test_what_cannot_fit_is_refused_before_it_is_allocated(monkeypatch, name, more, tensor, bulk_bytes):
    """What was drawn before it counts, too, and so do lengths and page tables, which are little."""
    drawn = []
    monkeypatch.setattr(lazy.torch, "randn", lambda shape, **how: drawn.append(shape) or torch.empty(0))
    with pytest.raises(DoesNotFit) as refused:
        problem_of(name, flags_of(name, more=f"--no-random_actual_seq_len {more}"))
    needed, available = refused.value.needed_bytes, int(0.9 * 2**30)
    assert bulk_bytes <= needed < 1.01 * bulk_bytes
    for text in (f"({needed} bytes", f"({available} bytes", repr(tensor)):
        assert text in str(refused.value)
    assert len(drawn) == (tensor == "k")


@both
def test_a_case_that_cannot_fit_is_a_record(name):
    (record,) = records_of(case_of(name, flags_of(name, more="--batch_size 1099511627776 --backends torch")))
    assert record.status is Status.OUT_OF_MEMORY
    assert "sequence_lengths" in record.reason


def test_the_workspace_is_zeroed_and_as_large_as_the_library_recommends(monkeypatch):
    monkeypatch.undo()
    assert backends.WORKSPACE_BYTES == 128 << 20
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 1 << 20)
    found = backends.workspace(torch.device("cpu"))
    assert (found.nbytes, found.dtype, int(found.count_nonzero())) == (1 << 20, torch.uint8, 0)
