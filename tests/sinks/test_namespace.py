from __future__ import annotations

import ast
from typing import Any

import pytest

from flashinfer_perf.core.case import Case, line_grammar, make_case
from flashinfer_perf.core.flags import build, specs_of
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import declared_temporarily, routine
from flashinfer_perf.routines import all_routines
from flashinfer_perf.routines.quantization.flags import QuantizationFlags
from flashinfer_perf.sinks.namespace import namespace_line
from tests.fakes import CPU, Fake

GPU = Machine("cuda:0", "NVIDIA B300 SXM6 AC", (10, 3))

MXFP8 = (
    "Namespace(routine='mxfp8_quantize', no_cuda_graph=False, use_cupti=False, use_cuda_events=False, refcheck=True, "
    "allow_output_mismatch=False, random_seed=42, verbose=2, output_path=None, num_iters=30, dry_run_iters=5, "
    "case_tag='mxfp8_quantize', generate_repro_command=True, repro_command='', m=2048, k=8192, "
    "input_dtype='bfloat16', is_sf_swizzled_layout=True, no_sf_swizzled_layout=False, alignment=32, enable_pdl=False, "
    "backends=['cuda'], batch_size=None, global_scale=1.0, sf_layout='128x4', do_shuffle=False, sf_vec_size=16)"
)
"""A line of the documents, word by word."""
RAGGED = (
    "Namespace(backends=['fa2', 'fa3', 'cutlass', 'cudnn'], page_size=0, batch_size=16, s_qo=1024, s_kv=1024, "
    "num_qo_heads=128, num_kv_heads=128, head_dim_qk=192, head_dim_vo=128, head_dim_ckv=None, head_dim_kpe=None, "
    "q_dtype='bfloat16', kv_dtype='bfloat16', causal=True, random_actual_seq_len=True)"
)
"""What another line of the documents has behind the general options, which are those of an older version."""


def attributes(line: str) -> dict[str, Any]:
    """Names and values of a Namespace, in order."""
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def case_of(name: str, flags: str) -> Case:
    known = all_routines()[name]
    return make_case(known, line_grammar(known.flags).parse(f"--routine {name} {flags}".split()))


def shown(case: Case, machine: Machine = CPU, backends: tuple[str, ...] = ("cuda",), **run: Any) -> dict[str, Any]:
    options = build(Options, {}, run) if run else None
    line = namespace_line(case, machine, backends, options)
    assert line.startswith("args = Namespace(")
    return attributes(line.removeprefix("args = "))


QUANTIZE = "--m 2048 --k 8192 --refcheck -vv --generate_repro_command --case_tag mxfp8_quantize"


def test_the_documents_attributes_come_first_in_their_order_with_their_values():
    case = case_of("mxfp4_quantize", QUANTIZE)
    documented, ours = attributes(MXFP8), shown(case)
    assert list(ours)[: len(documented)] == list(documented)
    changed = {"routine": "mxfp4_quantize", "repro_command": case.repro_command}  # the documents show stale ones
    assert {name: ours[name] for name in documented} == documented | changed


def test_an_older_line_of_the_documents_has_the_same_order():
    ours = list(shown(case_of("BatchMLAPagedAttentionWrapper", MLA), backends=("fa2",)))
    start = ours.index("backends")
    assert ours[start : start + 15] == list(attributes(RAGGED))


MLA = "--page_size 16 --batch_size 2 --s_kv 64 --num_qo_heads 4 --num_kv_heads 1 --head_dim_ckv 32 --head_dim_kpe 8"


def test_then_come_the_options_that_the_documents_do_not_know():
    ours = shown(case_of("mxfp4_quantize", QUANTIZE))
    added = list(ours)[len(attributes(MXFP8)) :]
    assert {"testlist", "device", "cache", "target_precision", "max_time", "format", "append", "jsonl"} <= set(added)
    assert not {"help", "list", "plan"} & set(ours)


@pytest.mark.parametrize(
    ("flags", "swizzled"), [("", True), ("--no_sf_swizzled_layout", False), ("--no-is_sf_swizzled_layout", False)]
)
def test_a_switch_and_its_negation_contradict_each_other(flags: str, swizzled: bool):
    with declared_temporarily():
        uses = ("m", "k", "is_sf_swizzled_layout")
        quantise = routine("quantise", flags=QuantizationFlags, uses=uses)(lambda case, make: None)
        typed = f"--routine quantise --m 2 --k 2 {flags}".split()
        ours = shown(make_case(quantise, line_grammar(QuantizationFlags).parse(typed)))
    assert (ours["is_sf_swizzled_layout"], ours["no_sf_swizzled_layout"]) == (swizzled, not swizzled)


def test_backends_are_the_ones_that_run():
    assert shown(case_of("mxfp4_quantize", QUANTIZE), backends=("torch",))["backends"] == ["torch"]


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        (CPU, "", {"device": "cpu", "cache": "warm", "use_cupti": False}),
        (CPU, "--cache cold", {"cache": "cold"}),
        (GPU, "", {"device": "cuda:0", "cache": "cold", "use_cupti": True}),
        (GPU, "--use_cuda_events", {"use_cupti": False, "use_cuda_events": True}),
        (GPU, "--cache warm", {"cache": "warm"}),
        (CPU, "--repro_command mine", {"repro_command": "mine"}),
    ],
)
def test_values_are_what_takes_effect(fake: Fake, machine: Machine, flags: str, expected: dict[str, Any]):
    typed = f"--routine fake {flags}"
    case = make_case(fake.routine, line_grammar(fake.routine.flags).parse(typed.split()))
    ours = shown(case, machine)
    assert {name: ours[name] for name in expected} == expected


def test_in_a_testlist_the_files_are_the_runs(fake: Fake):
    """A case of a testlist does not know them: upstream shows None there, whatever is written."""
    case = fake.case(origin="list.txt:1")
    ours = shown(case, output_path="o.csv", testlist="list.txt", format="table", num_iters=99)
    assert (ours["output_path"], ours["testlist"], ours["format"]) == ("o.csv", "list.txt", "table")
    assert ours["num_iters"] == 3  # which is the case's own


def test_every_option_and_flag_is_there_once(fake: Fake):
    ours = shown(fake.case())
    left_out = {"help", "version", "list", "plan"}
    assert set(ours) == (set(specs_of(Options)) | set(specs_of(fake.routine.flags))) - left_out
