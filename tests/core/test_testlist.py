from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.core.case import Case
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.testlist import InvalidLine, UnreadableTestlist, parse_testlist, read_testlist
from flashinfer_perf.routines import all_routines

ROUTINES = all_routines()
QUANTISE = "--routine mxfp4_quantize --m 16 --k 32"
NORM = "--routine fused_add_rmsnorm_quant --batch_size 4 --hidden_size 64"
SAMPLE = "--routine top_k_sampling_from_probs --batch_size 4 --vocab_size 100"


def items(text: str, beside: str = "") -> list[Case | InvalidLine]:
    return parse_testlist(text, "list.txt", beside.split(), ROUTINES)


def cases(text: str, beside: str = "") -> list[Case]:
    found = items(text, beside)
    assert [item for item in found if not isinstance(item, Case)] == []
    return found


def invalid(text: str, beside: str = "") -> InvalidLine:
    (item,) = items(text, beside)
    assert isinstance(item, InvalidLine)
    return item


# Lines


def test_each_line_is_a_case_with_its_place():
    first, second = cases(f"# list\n{QUANTISE}  # one\n\n{NORM}\n")
    assert (first.routine.name, first.flags.m, first.origin) == ("mxfp4_quantize", 16, "list.txt:2")
    assert (second.routine.name, second.flags.hidden_size, second.origin) == (
        "fused_add_rmsnorm_quant",
        64,
        "list.txt:4",
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_a_list_without_lines_holds_no_case(text):
    assert items(text) == []


def test_a_bad_line_is_reported_with_its_place_and_spoils_no_other():
    before, bad, unquoted, after = items(f"{QUANTISE}\n{QUANTISE} --bogus 1\n--case_tag 'oops\n{NORM}")
    assert isinstance(before, Case)
    assert isinstance(after, Case)
    assert bad.origin == "list.txt:2"
    assert bad.text == f"{QUANTISE} --bogus 1"
    assert bad.routine == "mxfp4_quantize"
    assert bad.reason.startswith("unknown flag --bogus")
    assert (unquoted.origin, unquoted.reason) == ("list.txt:3", "no closing '")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--m 16", "--routine is missing; --list shows all routines"),
        ("--routine mxfp4_quantise --m 16", "unknown routine 'mxfp4_quantise'. Did you mean 'mxfp4_quantize'?"),
        ("--routine mxfp4_quantize --k 32", "missing required flag --m"),
        (f"{QUANTISE} --m zero", "--m takes a whole number, not 'zero'"),
        (f"{QUANTISE} --m 0", "--m must be at least 1, not 0"),
        (f"{QUANTISE} --m=0", "--m must be at least 1, not 0"),
        (f"{QUANTISE} --k 33", "mxfp4_quantize: k (33) must be divisible by the block size, 32"),
        (f"{QUANTISE} --input_dtype fp8", "--input_dtype: 'fp8' is not one of bfloat16, float16"),
        (
            f"{QUANTISE} --backends tensorrt",
            "--backends of mxfp4_quantize: 'tensorrt' is not one of cuda, cute-dsl, triton, torch",
        ),
        (f"{QUANTISE} --vocab_size 3", "--vocab_size is a flag of sampling routines, not of quantization ones"),
        (f"{QUANTISE} stray", "stray word 'stray'"),
        (f"{QUANTISE} --n", "ambiguous flag --n: it could be --no_cuda_graph, --no_sf_swizzled_layout, --num_iters"),
        (f"{QUANTISE} -n", "-n: expected one argument"),
        ("--routine", "--routine: expected one argument"),
        (f"{QUANTISE} -n {{1,}}", "empty value in the sweep {1,}"),
    ],
)
def test_the_reason_of_a_bad_line(line, reason):
    assert reason in invalid(line).reason


@pytest.mark.parametrize("flag", ["-h", "--help", "--testlist other.txt", "--testlist=other.txt", "--list", "--plan"])
def test_what_is_no_case_is_refused_on_a_line(flag):
    item = invalid(f"{QUANTISE} {flag}")
    assert item.reason == f"{flag.replace('=', ' ').split()[0]} belongs on the command line, not in a testlist"


def test_flags_of_the_run_are_ignored_on_a_line_and_said_to_be():
    (case,) = cases(f"{QUANTISE} --output_path a.csv --jsonl b --format json --append")
    assert case.ignored == ("output_path", "jsonl", "format", "append")
    assert "a.csv" not in case.repro_command


def test_continued_lines_and_windows_line_ends_are_read():
    (case, other) = cases("\ufeff--routine mxfp4_quantize \\\r\n  --m 16 \\\r\n  --k 32\r\n" + NORM + "\r\n")
    assert (case.flags.k, case.origin, other.origin) == (32, "list.txt:1", "list.txt:4")


# Sweeps


def test_a_sweep_is_a_case_for_each_combination_of_one_place():
    found = cases("--routine mxfp4_quantize --m {1,16,64} --k {32,64} --case_tag '{a,b}'")
    assert [(case.flags.m, case.flags.k) for case in found] == [(m, k) for m in (1, 16, 64) for k in (32, 64)]
    assert {case.origin for case in found} == {"list.txt:1"}
    assert {case.options.case_tag for case in found} == {"{a,b}"}
    assert len({case.case_id for case in found}) == 6


def test_a_bad_value_in_a_sweep_spoils_its_own_cases_only():
    found = items("--routine mxfp4_quantize --m {1,0,2} --k 32")
    assert [isinstance(item, Case) for item in found] == [True, False, True]


def test_a_sweep_may_go_over_families():
    found = cases(
        "--routine {fused_add_rmsnorm_quant,top_k_sampling_from_probs} --batch_size 4", "--hidden 8 --vocab 99"
    )
    assert [case.routine.name for case in found] == ["fused_add_rmsnorm_quant", "top_k_sampling_from_probs"]


def test_a_sweep_of_too_many_cases_is_one_bad_line():
    axis = "{" + ",".join(map(str, range(1, 1000))) + "}"
    bad, good = items(f"--routine mxfp4_quantize --m {axis} --k {axis}\n{QUANTISE}")
    assert "this sweep has 998001 cases" in bad.reason
    assert isinstance(good, Case)


# Beside the list


def test_flags_beside_the_list_are_defaults_that_a_line_overrides():
    first, second = cases(f"{QUANTISE}\n{QUANTISE} -n 7 --no-refcheck -v --input_dtype bfloat16", "-n 9 --refcheck -vv")
    assert (first.options.num_iters, first.options.refcheck, first.options.verbose) == (9, True, 2)
    assert (second.options.num_iters, second.options.refcheck, second.options.verbose) == (7, False, 1)


def test_a_lines_backends_replace_those_beside_the_list():
    first, second = cases(f"{QUANTISE}\n{QUANTISE} --backends torch", "--backends cuda torch")
    assert (first.backends, second.backends) == (("cuda", "torch"), ("torch",))


def test_a_routine_beside_the_list_stands_for_lines_without_one():
    first, second = cases(f"--m 16 --k 32\n{NORM}", "--routine mxfp4_quantize")
    assert (first.routine.name, second.routine.name) == ("mxfp4_quantize", "fused_add_rmsnorm_quant")


def test_the_repro_command_holds_what_stood_beside_the_list_too():
    (case,) = cases(f"{QUANTISE} -v", "--refcheck -vvv --testlist list.txt --output_path a.csv --plan")
    assert case.ignored == ()
    assert case.repro_command == f"python3 flashinfer_benchmark.py --refcheck {QUANTISE} -v"


def test_flags_of_another_family_beside_the_list_are_no_error():
    quantise, norm = cases(f"{QUANTISE}\n{NORM}", "--k 64 --num_heads 64 --scale 2 --no_sf_swizzled_layout")
    assert quantise.flags.k == 32
    assert quantise.ignored == ("is_sf_swizzled_layout",)
    assert norm.flags.scale == 2.0
    assert norm.ignored == ("num_heads",)
    assert not quantise.options.refcheck


def test_a_negative_form_of_one_family_does_not_switch_another_familys_flag():
    (norm,) = cases(NORM, "--no_sf_swizzled_layout")
    assert norm.ignored == ()
    assert "sf_swizzled" not in norm.repro_command


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ("--bogus 1", "unknown flag --bogus"),
        ("--bach_size 4", "unknown flag --bach_size. Did you mean '--batch_size'?"),
        ("-x", "unknown flag -x"),
        ("other.txt", "stray word 'other.txt'"),
        ("--m 4 other.txt --vocab_size 4", "stray word 'other.txt'"),
        ("--k 4 4", "stray word '4'"),
        ("-n", "-n: expected one argument"),
        ("--top 4", "ambiguous flag --top: it could be --top_k, --top_p"),
    ],
)
def test_what_no_family_understands_beside_the_list_is_refused(beside, message):
    with pytest.raises(InvalidInput) as caught:
        items(QUANTISE, beside)
    assert message in str(caught.value)


def test_a_familys_flag_beside_the_list_is_no_abbreviation_of_a_newer_general_one():
    quantise, sample = cases(f"--routine mxfp4_quantize --k 32\n{SAMPLE}", "--m 4 --f joint")
    assert quantise.flags.m == 4
    assert quantise.options.max_time is None
    assert quantise.options.format == sample.options.format == "text"
    assert sample.ignored == ("filter_apply_order",)


def test_wrong_values_beside_the_list_spoil_the_lines_that_read_them():
    norm, quantise = items(f"{NORM}\n{QUANTISE}", "--eps tiny")
    assert norm.reason == "--eps takes a number, not 'tiny'"
    assert isinstance(quantise, Case)


LINES = st.sampled_from([QUANTISE, NORM, f"{QUANTISE} --bogus", "'", "--m {1,}", "# comment", "", "--routine x", "-h"])


@given(st.lists(LINES, max_size=6))
def test_every_line_leaves_one_item_under_its_own_number(lines):
    found = items("\n".join(lines))
    expected = {
        f"list.txt:{n}": line in (QUANTISE, NORM) for n, line in enumerate(lines, 1) if line not in ("", "# comment")
    }
    assert {item.origin: isinstance(item, Case) for item in found} == expected
    assert len(found) == len(expected)


# The file


def test_a_file_is_read_as_utf_8(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("--case_tag 'é 中'\r\n".encode())
    assert read_testlist(str(path)) == "--case_tag 'é 中'\r\n"


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(QUANTISE.encode())))
    assert read_testlist("-") == QUANTISE


def test_a_file_that_is_not_utf_8_is_refused_with_the_line(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"--m 1\n\n--case_tag caf\xe9\n--m 2\n")
    with pytest.raises(UnreadableTestlist, match=r"list\.txt is not UTF-8: byte 0xe9 in line 3; save it as UTF-8$"):
        read_testlist(str(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UnreadableTestlist, match=r"^cannot read testlist .*missing\.txt: No such file or directory$"):
        read_testlist(str(tmp_path / "missing.txt"))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UnreadableTestlist, match="Is a directory"):
        read_testlist(str(tmp_path))
