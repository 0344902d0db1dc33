"""Latent attention: what each backend refuses, with which words, and that the installed library refuses the same."""

from __future__ import annotations

import pytest

from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.record import Status
from flashinfer_perf.routines.attention import backends
from tests.routines.attention import compiled_latent
from tests.routines.harness import case_of, problem_of, routine_named, run, unconditional

NAME = "BatchMLAPagedAttentionWrapper"
DEEPSEEK = "--batch_size 2 --s_kv 100 --page_size 32 --num_qo_heads 128 --head_dim_ckv 512 --head_dim_kpe 64"
DEEPSEEK += " --random_actual_seq_len"
FP16 = "--q_dtype float16 --kv_dtype float16"
FP8_CACHE = "--kv_dtype fp8_e4m3"
ALL_FP8 = "--q_dtype fp8_e4m3 --kv_dtype fp8_e4m3"


@pytest.fixture(autouse=True)
def _small_workspaces(monkeypatch):
    """128 MiB of zeros cost more than all else."""
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 1 << 12)


FA_FORMATS = "it needs q_dtype and kv_dtype of bfloat16, float16, bfloat16 with fp8_e4m3"
SAME_FORMATS = "it needs q_dtype and kv_dtype of bfloat16, float16"
DEEPSEEK_DIMS = "it needs head_dim_ckv of 512 and head_dim_kpe of 64"
GPU = "it needs compute capability {}, and this GPU has {}"
MIXED_16 = "--q_dtype bfloat16 --kv_dtype float16"
DENSE = f"{DEEPSEEK} --s_kv 128"
REFUSED = [
    ("fa2", (7, 5), "", GPU.format("8.0 or newer", "7.5")),
    ("fa2", (9, 0), ALL_FP8, FA_FORMATS),
    ("fa2", (9, 0), "--q_dtype float16 --kv_dtype fp8_e4m3", FA_FORMATS),
    ("fa2", (9, 0), MIXED_16, FA_FORMATS),
    ("fa2", (10, 0), FP8_CACHE, SAME_FORMATS),
    ("fa2", (8, 0), FP8_CACHE, SAME_FORMATS),
    ("fa2", (9, 0), f"{FP8_CACHE} --head_dim_ckv 256", f"{DEEPSEEK_DIMS} for an FP8 cache"),
    ("fa3", (8, 9), "", GPU.format("9.x", "8.9")),
    ("fa3", (10, 0), "", GPU.format("9.x", "10.0")),
    ("fa3", (9, 0), ALL_FP8, FA_FORMATS),
    ("fa3", (9, 0), f"{FP8_CACHE} --head_dim_ckv 256", f"{DEEPSEEK_DIMS} for an FP8 cache"),
    ("cutlass", (9, 0), "", GPU.format("10.x or 11.x", "9.0")),
    ("cutlass", (10, 0), FP8_CACHE, SAME_FORMATS),
    ("cutlass", (10, 0), "--head_dim_ckv 256", DEEPSEEK_DIMS),
    ("cutlass", (10, 0), "--head_dim_kpe 128", DEEPSEEK_DIMS),
    ("cutlass", (10, 0), "--num_qo_heads 64", "it needs num_qo_heads of 128"),
    ("cutlass", (10, 0), "--page_size 48", "it needs page_size a divisor of 128"),
    ("cutlass", (10, 0), "--page_size 256", "it needs page_size a divisor of 128"),
]
OF_TRTLLM = [
    ((10, 0), FP16, "it needs q_dtype and kv_dtype of bfloat16, fp8_e4m3"),
    ((10, 0), FP8_CACHE, "it needs q_dtype and kv_dtype of bfloat16, fp8_e4m3"),
    ((10, 0), "--head_dim_kpe 128", DEEPSEEK_DIMS),
    ((10, 0), "--page_size 16", "it needs page_size of 32 or 64"),
    ((10, 0), "--num_qo_heads 96", "it needs num_qo_heads up to 64 or from 128 on"),
    ((12, 0), "", "it needs compute capability 10.x, and this GPU has 12.0"),
    ((10, 0), "--s_kv 129", "it needs pages of every sequence that fill multiples of 128 tokens"),
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
    assert reason("trtllm-native", capability, f"{DENSE} {more}") == says


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (11, 0)])
def test_the_library_has_no_trtllm_native_elsewhere(monkeypatch, capability):
    assert "compute capability" in reason("trtllm-native", capability, DENSE)
    compiled_latent.install(monkeypatch, capability)
    case, problem = problem_of(NAME, DENSE)
    with pytest.raises(ValueError, match="XQA MLA requires SM120a"):
        routine_named(NAME).backends["trtllm-native"].prepare(case, problem)()


def test_up_to_its_limits_it_runs():
    assert reason("trtllm-native", (10, 0), f"{DENSE} --num_qo_heads 64") is None
    assert reason("trtllm-native", (10, 3), f"{DENSE} {ALL_FP8} --page_size 64") is None
    assert reason("cutlass", (11, 0), f"{DEEPSEEK} --page_size 1") is None
    assert reason("fa2", (9, 0), f"{DEEPSEEK} {FP8_CACHE}") is None
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
        record = run(NAME, f"{DEEPSEEK} --head_dim_kpe 128", name)
    assert record.status is Status.UNSUPPORTED
    assert "shared-memory bytes" in record.reason
