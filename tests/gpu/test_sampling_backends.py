"""The sampling family on a GPU: every backend that runs there, by its laws, and what only FlashInfer's kernels do."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flashinfer_perf.device.machine import find_machine, free_bytes
from flashinfer_perf.routines import all_routines
from flashinfer_perf.run.factory import TensorFactory
from flashinfer_perf.run.judge import judge
from flashinfer_perf.run.ranks import SingleRank
from tests.gpu.harness import assert_all_right, case_of, kernels_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SAMPLING = [routine.name for routine in all_routines().values() if routine.family == "sampling"]
TRANSFORMS = ["top_k_page_table_transform", "top_k_ragged_transform"]
OF_VOCABULARIES = [name for name in SAMPLING if name not in TRANSFORMS]
FILTER_BOTH = ["top_k_top_p_sampling_from_probs", "top_k_top_p_sampling_from_logits"]
DISTRIBUTIONS = ["normal", "peaked", "uniform", "ties"]
VOCABULARIES = [
    "--batch_size 1 --vocab_size 128256",
    "--batch_size 33 --vocab_size 32000",
    "--batch_size 1024 --vocab_size 111",
]


def variants() -> list[tuple[str, str]]:
    every = [(n, f"{shape} --input_distribution {d}") for n in OF_VOCABULARIES for shape in VOCABULARIES
             for d in DISTRIBUTIONS]  # fmt: skip
    both = [(n, f"{shape} --filter_apply_order joint") for n in FILTER_BOTH for shape in VOCABULARIES]
    of_16_bits = [
        (name, f"{shape} --input_dtype {dtype}")
        for name in OF_VOCABULARIES
        if "input_dtype" in all_routines()[name].specs
        for shape in VOCABULARIES
        for dtype in ("float16", "bfloat16")
    ]
    rows_of_several_pieces = [
        ("softmax", f"--batch_size 200 --vocab_size {size} --input_dtype {dtype}")
        for size in (50257, 128256)
        for dtype in ("float32", "bfloat16")
    ]
    scores = [
        (name, f"--batch_size 33 --max_len {length} --top_k {k} --input_dtype {dtype} --input_distribution {d}")
        for name in TRANSFORMS
        for length, k in ((4096, 50), (131072, 2048), (100, 100), (40, 64))
        for dtype in ("float32", "bfloat16")
        for d in ("normal", "ties")
    ]
    return every + both + of_16_bits + rows_of_several_pieces + scores


@pytest.mark.parametrize(("name", "flags"), variants())
def test_every_backend_that_runs_here_is_right(name, flags):
    assert_all_right(name, flags)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_flashinfers_transforms_heed_lengths(name):
    """A benchmark's rows are full, as upstream's; a serving engine's are not."""
    flags = case_of(name, "--batch_size 6 --max_len 5000 --top_k 100").flags
    make = TensorFactory("cuda", 42, free_bytes(find_machine("cuda")), SingleRank())
    problem = all_routines()[name].make(flags, make)
    lengths = torch.tensor([1, 99, 100, 101, 4999, 5000], dtype=torch.int32, device="cuda")
    shorter = dataclasses.replace(problem, tensors={**problem.tensors, "lengths": lengths})
    launch = all_routines()[name].backends["cuda"].prepare(flags, shorter)
    findings = judge(shorter, launch.outputs(launch()), shorter.truth())
    assert all(finding.passed for finding in findings), findings


@pytest.mark.parametrize("name", [name for name in SAMPLING if "sampling" in name])
def test_no_sampler_starts_pytorchs_random_numbers(name):
    """FlashInfer's draw by themselves: what is timed is its kernels."""
    kernels, _ = kernels_of(name, "--batch_size 32 --vocab_size 32000", "cuda")
    assert kernels
    assert not any("distribution" in kernel.lower() or "philox" in kernel.lower() for kernel in kernels), kernels
