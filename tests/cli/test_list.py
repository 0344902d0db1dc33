from __future__ import annotations

import json

import pytest

from flashinfer_perf.routines import all_routines

ROUTINES = all_routines()
NEEDS_GPU = "it needs a CUDA GPU of compute capability"
QUANTISERS = [name for name, routine in ROUTINES.items() if routine.family == "quantization"]
WRITES_NOTHING = (
    "before compute capability 10.0 FlashInfer's quantizers launch and write nothing, and this GPU has 9.0; "
    "use --backends torch"
)


def listed(text: str) -> dict[str, dict[str, str]]:
    """Reasons by routine and backend, '' for a backend that runs."""
    found: dict[str, dict[str, str]] = {}
    routine = ""
    for line in text.splitlines():
        if line.startswith("    "):
            sign, _, rest = line.strip().partition(" ")
            name, _, reason = rest.partition(": ")
            assert (sign == "+") == (not reason), line
            found[routine][name] = reason
        elif line.startswith("  "):
            routine = line.split(":")[0].strip()
            found[routine] = {}
    return found


def test_which_backends_run_on_a_cpu_and_why_the_others_do_not(bench):
    outcome = bench("--list --device cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Routines on the CPU; + runs here, - does not:\n")
    found = listed(outcome.out)
    assert {name: list(backends) for name, backends in found.items()} == {
        name: list(routine.backends) for name, routine in ROUTINES.items()
    }
    assert found["mxfp4_quantize"] == {
        "cuda": f"{NEEDS_GPU} 10.x, 11.x or 12.x, and this run is on 'cpu'",
        "cute-dsl": f"{NEEDS_GPU} 10.0 or newer, and this run is on 'cpu'",
        "triton": f"{NEEDS_GPU} 8.0 or newer, and this run is on 'cpu'",
        "torch": "",
    }


def test_which_backends_run_on_a_gpu(bench, hopper, monkeypatch):
    monkeypatch.setattr("flashinfer_perf.core.requirement.is_installed", lambda module: True)
    outcome = bench("--list")
    assert outcome.out.startswith("Routines on NVIDIA H200 (9.0);")
    found = listed(outcome.out)
    assert found["BatchMLAPagedAttentionWrapper"] == {
        "fa2": "",
        "fa3": "",
        "cutlass": "it needs compute capability 10.x or 11.x, and this GPU has 9.0",
        "trtllm-native": "it needs compute capability 10.x, and this GPU has 9.0",
        "torch": "",
    }
    assert found["apply_rope_with_cos_sin_cache"] == {"cuda": "", "torch": ""}
    assert {name: backends["cuda"] for name, backends in found.items() if name in QUANTISERS} == dict.fromkeys(
        QUANTISERS, WRITES_NOTHING
    )


def test_a_missing_package_names_the_extra_where_the_gpu_would_do(bench, hopper, without_flashinfer):
    found = listed(bench("--list").out)
    assert found["top_k_sampling_from_probs"] == {
        "cuda": "flashinfer is not installed; install it with: pip install 'flashinfer-perf[flashinfer]'",
        "torch": "",
    }
    assert "this GPU has 9.0" in found["mxfp4_quantize"]["cuda"]


def test_on_a_cpu_it_is_the_gpu_that_is_missing(bench, without_flashinfer):
    """Whoever installed a package first would only then learn that it cannot be used."""
    reasons = [reason for backends in listed(bench("--list --device cpu").out).values() for reason in backends.values()]
    assert any(NEEDS_GPU in reason for reason in reasons)
    assert not any("not installed" in reason for reason in reasons)


def test_as_json(bench):
    outcome = bench("--list --device cpu --format json")
    entries = {entry["routine"]: entry for entry in json.loads(outcome.out)}
    assert set(entries) == set(ROUTINES)
    entry = entries["mxfp4_quantize"]
    assert (entry["family"], entry["summary"]) == (
        "quantization",
        "Quantize tensor to MxFP4 format (Blackwell SM10.0+).",
    )
    assert entry["backends"]["torch"] == ""
    assert NEEDS_GPU in entry["backends"]["cuda"]


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there(bench, device, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = bench(f"--list --device {device}")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"[ERROR] --device {device}: torch ")
    assert outcome.err.endswith(" sees no CUDA GPU here; use --device cpu\n")
