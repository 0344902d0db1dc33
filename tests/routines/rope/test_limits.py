"""What the RoPE routines refuse, and with which words; and that the installed library is as the requirements say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.machine import Machine
from tests.routines.harness import case_of, routine_named

APPLY = ["apply_rope", "apply_rope_pos_ids", "apply_llama31_rope", "apply_llama31_rope_pos_ids"]
LLAMA31 = APPLY[2:]
CACHED = "apply_rope_with_cos_sin_cache"
HEADS, MLA = "rope_quantize_fp8", "mla_rope_quantize_fp8"
APPEND = "rope_quantize_fp8_append_paged_kv_cache"
SHAPE = "--batch_size 2 --seq_len 3 --num_qo_heads 2 --num_kv_heads 1"
QUANTISING = [HEADS, MLA, APPEND]
ALL = [*APPLY, CACHED, *QUANTISING]


# ---- Bad input ----


@pytest.mark.parametrize("name", [*APPLY, CACHED, HEADS, APPEND])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--head_dim 64 --rotary_dim 65", r"rotary_dim \(65\) must not be above head_dim \(64\)"),
        ("--head_dim 64 --rotary_dim 33", r"rotary_dim \(33\) must be even"),
        ("--head_dim 63", r"rotary_dim \(63\) must be even, .*; it is head_dim where not given"),
        ("--head_dim 64 --rotary_dim 0", "--rotary_dim must be at least 1, not 0"),
        ("--head_dim 64 --rotary_dim -2", "--rotary_dim must be at least 1"),
        ("--head_dim 0", "--head_dim must be at least 1"),
        ("--rotary_dim 32", "--head_dim"),
    ],
)
def test_impossible_dimensions(name, flags, message):
    with pytest.raises(InvalidInput, match=message):
        case_of(name, f"{SHAPE} {flags}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--head_dim 64 --no_rope_dim 64", r"no_rope_dim \(64\) must be below head_dim \(64\), which includes both"),
        ("--head_dim 64 --no_rope_dim 512", r"no_rope_dim \(512\) must be below head_dim \(64\)"),
        ("--head_dim 576 --no_rope_dim 511", r"head_dim \(576\) minus no_rope_dim \(511\) must be even"),
        ("--head_dim 576 --no_rope_dim -1", "--no_rope_dim must be at least 0"),
    ],
)
def test_impossible_parts_of_mla(flags, message):
    with pytest.raises(InvalidInput, match=message):
        case_of(MLA, f"--batch_size 2 --seq_len 3 --num_qo_heads 2 {flags}")


@pytest.mark.parametrize("name", LLAMA31)
@pytest.mark.parametrize(
    "flags", ["--low_freq_factor 4", "--high_freq_factor 1", "--low_freq_factor 2.5 --high_freq_factor 2.5"]
)
def test_equal_factors_divide_by_zero(name, flags):
    with pytest.raises(InvalidInput, match=r"must be above low_freq_factor .* divides by their difference"):
        case_of(name, f"{SHAPE} --head_dim 64 {flags}")


@pytest.mark.parametrize("name", APPLY[:2])
def test_factors_are_no_matter_of_plain_rope(name):
    case = case_of(name, f"{SHAPE} --head_dim 64 --low_freq_factor 4 --high_freq_factor 4")
    assert {"low_freq_factor", "high_freq_factor"} == set(case.ignored)


@pytest.mark.parametrize("flag", ["page_size", "batch_size", "seq_len", "num_qo_heads", "num_kv_heads"])
def test_nothing_of_a_size(flag):
    with pytest.raises(InvalidInput, match=f"--{flag} must be at least 1, not 0"):
        case_of(APPEND, f"{SHAPE} --head_dim 64 --{flag} 0")


@pytest.mark.parametrize("name", APPLY)
@pytest.mark.parametrize("flag", ["rope_scale", "rope_theta"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_scale_and_theta_are_positive(name, flag, value):
    with pytest.raises(InvalidInput, match=f"--{flag}"):
        case_of(name, f"{SHAPE} --head_dim 64 --{flag} {value}")


@pytest.mark.parametrize("name", QUANTISING)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--quant_scale_q 0", "--quant_scale_q must be above 0"),
        ("--quant_scale_kv -1", "--quant_scale_kv must be above 0"),
        ("--quant_dtype nvfp4", "--quant_dtype: 'nvfp4' is not one of fp8_e4m3, fp8_e5m2"),
        ("--input_dtype float32", "--input_dtype: 'float32' is not one of float16, bfloat16"),
    ],
)
def test_formats_and_scales(name, flags, message):
    with pytest.raises(InvalidInput, match=message):
        case_of(name, f"--batch_size 2 --seq_len 3 --num_qo_heads 2 --num_kv_heads 1 --head_dim 64 {flags}")


def test_a_layout_that_there_is_not():
    with pytest.raises(InvalidInput, match="--kv_layout: 'HDN' is not one of NHD, HND"):
        case_of(APPEND, f"{SHAPE} --head_dim 64 --kv_layout HDN")


@pytest.mark.parametrize("name", [*APPLY, CACHED])
def test_flags_that_a_routine_does_not_read_are_not_validated(name):
    case = case_of(name, f"{SHAPE} --head_dim 64 --page_size 0 --quant_dtype nothing --enable_pdl")
    assert {"page_size", "quant_dtype", "enable_pdl"} == set(case.ignored)


def test_mla_has_one_head_of_keys():
    assert case_of(MLA, f"{SHAPE} --head_dim 64 --rotary_dim 7").ignored == ("num_kv_heads", "rotary_dim")


# ---- What the kernels do not take ----

HEAD_DIMS = "FlashInfer compiles this kernel for head_dim 64, 128, 256 and 512; use --backends torch"
PAIRS = "FlashInfer's kernel would rotate wrong pairs: a thread rotates 8 elements"
CACHED_PAIRS = "FlashInfer's kernel would rotate wrong pairs: for head_dim 64, 128 and 256 rotary_dim must be"
FP8_PAIRS = "FlashInfer's kernel would rotate wrong pairs: a thread rotates 16 elements"
GPU = "it needs compute capability {} or newer, and this GPU has {}"
REFUSED = [
    *((name, "9.0", "--head_dim 96", HEAD_DIMS) for name in APPLY),
    *((name, "9.0", "--head_dim 32", HEAD_DIMS) for name in APPLY),
    *((name, "9.0", "--head_dim 64 --rotary_dim 24", PAIRS) for name in APPLY),
    *((name, "9.0", "--head_dim 512 --rotary_dim 16", PAIRS) for name in APPLY),
    *((name, "9.0", "--head_dim 64 --rotary_dim 12 --interleave", PAIRS) for name in APPLY),
    *((name, "9.0", "--head_dim 512 --rotary_dim 8 --interleave", PAIRS) for name in APPLY),
    *((name, "7.0", "--head_dim 64", GPU.format("7.5", "7.0")) for name in (*APPLY, CACHED)),
    *((name, "8.6", "--head_dim 64", GPU.format("8.9", "8.6")) for name in QUANTISING),
    (CACHED, "9.0", "--head_dim 64 --rotary_dim 24", CACHED_PAIRS),
    (CACHED, "9.0", "--head_dim 96 --rotary_dim 48", CACHED_PAIRS),
    (CACHED, "9.0", "--head_dim 100 --rotary_dim 64", CACHED_PAIRS),
    (CACHED, "9.0", "--head_dim 96 --rotary_dim 8 --interleave", CACHED_PAIRS),
    (HEADS, "9.0", "--head_dim 48", FP8_PAIRS),
    (HEADS, "9.0", "--head_dim 64 --rotary_dim 24 --interleave", FP8_PAIRS),
    (HEADS, "9.0", "--head_dim 64 --no_rope_dim 24", "FlashInfer's kernel writes 16 bytes at a time"),
    (MLA, "9.0", "--head_dim 560 --no_rope_dim 512", FP8_PAIRS),
    (MLA, "9.0", "--head_dim 72 --no_rope_dim 8", "FlashInfer's kernel writes 16 bytes at a time"),
    (APPEND, "9.0", "--head_dim 48", FP8_PAIRS),
    (APPEND, "9.0", "--head_dim 96 --rotary_dim 64", "FlashInfer's kernel moves the rest of a head in parts"),
]
BLOCKS = "FlashInfer's kernel has blocks for each part of each head, of which CUDA takes 65535"
REFUSED += [
    (HEADS, "9.0", "--head_dim 32 --no_rope_dim 4096 --num_qo_heads 510", BLOCKS),
    (MLA, "9.0", "--head_dim 4128 --no_rope_dim 4096 --num_qo_heads 509", BLOCKS),
    (MLA, "9.0", "--head_dim 16416", BLOCKS),
    (APPEND, "9.0", "--head_dim 4096 --rotary_dim 32 --num_qo_heads 510", BLOCKS),
    (CACHED, "9.0", "--head_dim 4128 --rotary_dim 32 --num_qo_heads 510", BLOCKS),
]
TAKEN = [
    (HEADS, "--head_dim 32 --no_rope_dim 4096 --num_qo_heads 507"),
    (MLA, "--head_dim 4128 --no_rope_dim 4096 --num_qo_heads 507"),
    (APPEND, "--head_dim 4096 --rotary_dim 32 --num_qo_heads 509"),
    *((name, flags) for name in (*APPLY, CACHED) for flags in ("--head_dim 64", "--head_dim 512 --rotary_dim 32")),
    *((name, "--head_dim 128 --rotary_dim 8 --interleave") for name in (*APPLY, CACHED)),
    (CACHED, "--head_dim 96"),
    (CACHED, "--head_dim 72 --rotary_dim 32"),
    (CACHED, "--head_dim 80 --rotary_dim 16 --interleave"),
    (HEADS, "--head_dim 96"),
    (HEADS, "--head_dim 48 --interleave"),
    (HEADS, "--head_dim 128 --rotary_dim 64 --no_rope_dim 64"),
    (MLA, "--head_dim 576 --no_rope_dim 512"),
    (MLA, "--head_dim 192 --no_rope_dim 64"),
    (APPEND, "--head_dim 128 --rotary_dim 64"),
    (APPEND, "--head_dim 128"),
]


def unmet(name, backend, found, flags):
    machine = Machine("cuda", "a GPU", tuple(int(part) for part in found.split(".")))
    case = case_of(name, f"{SHAPE} {flags}")
    return routine_named(name).backends[backend].unmet(machine, case.flags)


@pytest.mark.parametrize(("name", "found", "flags", "reason"), REFUSED)
def test_what_flashinfer_does_not_take_is_refused_with_the_reason(name, found, flags, reason):
    refusal = unmet(name, "cuda", found, flags)
    assert refusal is not None
    assert refusal[1].startswith(reason)


@pytest.mark.parametrize(("name", "flags"), TAKEN)
@pytest.mark.parametrize("found", ["9.0", "10.0", "12.0"])
def test_what_flashinfer_takes_is_not_refused(name, flags, found):
    assert unmet(name, "cuda", found, flags) is None


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--head_dim 576 --no_rope_dim 512", "FlashInfer's cuTile kernel rotates neighbours only; give --interleave"),
        ("--head_dim 560 --no_rope_dim 512 --interleave", "cuTile's tiles are powers of two"),
        ("--head_dim 576 --no_rope_dim 512 --interleave", None),
    ],
)
def test_what_cutile_does_not_take(flags, reason, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.routines.gemm.backends.is_installed", lambda module: module == "cuda.tile")
    refusal = unmet(MLA, "cutile", "9.0", flags)
    assert (refusal and refusal[1][: len(reason or "")]) == reason


# ---- Facts of the installed library ----


@pytest.fixture
def kernels():
    flashinfer = pytest.importorskip("flashinfer")
    return Path(flashinfer.__file__).parent / "data" / "include" / "flashinfer"


def test_the_head_dims_that_kernels_are_compiled_for(kernels):
    source = (kernels / "utils.cuh").read_text()
    dispatch = source[source.index("define DISPATCH_HEAD_DIM(") :].split("default:")[0]
    assert re.findall(r"case (\d+):", dispatch) == ["64", "128", "256", "512"]


def test_how_many_elements_a_thread_rotates(kernels):
    source = (kernels / "pos_enc.cuh").read_text()
    assert "constexpr uint32_t vec_size = std::max(16 / sizeof(DType), HEAD_DIM / 32);" in source
    assert "constexpr uint32_t vec_size = 32 / sizeof(DType);" in source


def test_appending_has_no_guard_for_the_tail_of_the_rest(kernels):
    source = (kernels / "pos_enc.cuh").read_text()
    append = source[source.index("RopeQuantizeAppendPagedKVCacheKernel") : source.index("RopeSplitCost")]
    assert "scale_store_partial_chunk" not in append
    assert "scale_store_partial_chunk" in source


def test_fast_functions_and_saturating_casts(kernels):
    """What the angles' error and the quantised outputs' check rely on."""
    assert "__sincosf(embed," in (kernels / "pos_enc.cuh").read_text()
    assert "__powf(rope_rcp_theta," in (kernels / "pos_enc.cuh").read_text()
    assert "__nv_cvt_float2_to_fp8x2(((float2*)src)[i], __NV_SATFINITE" in (kernels / "vec_dtypes.cuh").read_text()
