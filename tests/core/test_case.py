from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flashinfer_perf.core.case import (
    METHOD_OPTIONS,
    PROGRAM,
    Case,
    common_grammar,
    general_flags,
    line_grammar,
    make_case,
    routine_name,
    routine_named,
)
from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import Since, backends_flag, flag, specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import Routine, Rule, declared_temporarily, narrowed, routine
from flashinfer_perf.routines import all_routines

ROUTINES = all_routines()
NORM = "--routine fused_add_rmsnorm_quant --batch_size 32 --hidden_size 4096"
MLA = (
    "--routine BatchMLAPagedAttentionWrapper --page_size 32 --batch_size 16 --s_kv 1024 --num_qo_heads 128 "
    "--num_kv_heads 128 --head_dim_ckv 512 --head_dim_kpe 64"
)


def case_of(line: str | list[str], origin: str = "") -> Case:
    tokens = shlex.split(line) if isinstance(line, str) else line
    declared = routine_named(routine_name(tokens), ROUTINES)
    return make_case(declared, line_grammar(declared.flags).parse(tokens), origin)


def digest(content: dict[str, Any]) -> str:
    """The canonical form as documented, written down a second time: compact JSON with sorted keys, hashed."""
    canonical = json.dumps({"version": 1, **content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ToyFlags:
    family: ClassVar[str] = "toys"

    rows: int = flag(minimum=1, help="Rows.")
    heads: int | None = flag(None, minimum=1, help="Heads.")
    scale: float = flag(1.0, above=0, help="Scale.")
    dtype: DType = flag(DType.BFLOAT16, choices=(DType.BFLOAT16, DType.FLOAT16), help="Format.")
    layout: str = flag("flat", help="Layout.")
    causal: bool = flag(False, help="Mask.")
    swizzled: bool = flag(True, negations=("--no_swizzle",), help="Swizzled.")
    unread: int = flag(1, minimum=1, help="Of other routines.")
    backends: tuple[str, ...] = backends_flag()


READ = ("rows", "heads", "scale", "dtype", "layout", "causal", "swizzled")


def declare_toy(flags: type = ToyFlags, uses: tuple[str | narrowed, ...] = READ, **details: Any) -> Routine:
    with declared_temporarily():

        @routine("toy", flags=flags, uses=uses, **details)
        def toy(case, make): ...

    toy.backend("cuda")(print)
    toy.backend("torch")(print)
    return toy


TOY = declare_toy()


def toy_case(line: str | list[str], of: Routine = TOY, origin: str = "") -> Case:
    tokens = shlex.split(line) if isinstance(line, str) else line
    return make_case(of, line_grammar(of.flags).parse(["--routine", "toy", *tokens]), origin)


# Identity


GOLDEN = [  # line, case_id, method_id: they stand in people's result files, so they change with ID_VERSION only
    (NORM, "c37d41d6ad068d05", "2430f1a2ad2982d0"),
    (
        f"{NORM} --input_dtype float16 --out_dtype fp8_e5m2 --eps 1e-5 --enable_pdl --scale 0.5 --random_seed 7 "
        "-n 100 -d 10 --no_cuda_graph --cache warm",
        "60652150450bf0ce",
        "d9a856b899bfa401",
    ),
    (f"{MLA} --random_actual_seq_len --use_cuda_events", "a5aa73ccaab86eab", "f5f1ecf33a4c3417"),
    (
        "--routine top_k_sampling_from_probs --batch_size 4 --vocab_size 128256 --top_k 40 --target_precision 1%",
        "a742f9153f3162cb",
        "fab3009f6674144c",
    ),
    ("--routine mxfp4_quantize --m 1024 --k 8192 --max_time 2s", "44d09a840e775c41", "4e36901d0cda1df3"),
    (
        "--routine moe_a2a_dispatch_combine --num_tokens 64 --hidden_size 128 --num_experts 8 --top_k 2",
        "f059fa5880e68899",
        "2430f1a2ad2982d0",
    ),
]


@pytest.mark.parametrize(("line", "case_id", "method_id"), GOLDEN)
def test_ids_are_the_same_for_ever(line, case_id, method_id):
    case = case_of(line)
    assert (case.case_id, case.method_id) == (case_id, method_id)


def test_a_case_id_is_the_hash_of_routine_changed_flags_and_seed():
    case = case_of(f"{NORM} --scale 0.5 --input_dtype float16 --random_seed 7 --backends torch -vv")
    flags = {"batch_size": 32, "hidden_size": 4096, "scale": 0.5, "input_dtype": "float16"}
    assert case.case_id == digest({"routine": "fused_add_rmsnorm_quant", "flags": flags, "seed": 7})


def test_a_method_id_is_the_hash_of_the_changed_timing_options():
    case = case_of(f"{NORM} -n 100 --cache warm --target_precision 1% --refcheck --device cpu")
    assert case.method_id == digest({"num_iters": 100, "cache": "warm", "target_precision": 0.01})
    assert case_of(NORM).method_id == digest({})


def test_a_new_flag_at_its_default_changes_no_id():
    @dataclass(frozen=True)
    class MoreFlags(ToyFlags):
        new: int = flag(3, help="Added later.", since=Since.OURS)

    newer = declare_toy(MoreFlags, (*READ, "new"))
    before = toy_case("--rows 4 --scale 0.5")
    assert toy_case("--rows 4 --scale 0.5", of=newer).case_id == before.case_id
    assert toy_case("--rows 4 --scale 0.5 --new 3", of=newer).case_id == before.case_id
    assert toy_case("--rows 4 --scale 0.5 --new 4", of=newer).case_id != before.case_id


def test_defaults_typed_out_give_the_same_ids():
    short = toy_case("--rows 4")
    long = toy_case(
        "--rows 4 --scale 1 --dtype bfloat16 --layout flat --no-causal --swizzled --random_seed 42 --num_iters 30 "
        "--dry_run_iters 5 --no-no_cuda_graph"
    )
    assert short.case_id == long.case_id
    assert short.method_id == long.method_id


def test_a_default_is_that_of_the_routine_not_of_the_family():
    own = declare_toy(uses=("rows", narrowed("scale", default=2.0)))
    assert toy_case("--rows 4", of=own).flags.scale == 2.0
    assert toy_case("--rows 4 --scale 2", of=own).case_id == toy_case("--rows 4", of=own).case_id
    assert toy_case("--rows 4 --scale 1", of=own).case_id != toy_case("--rows 4", of=own).case_id


@pytest.mark.parametrize(
    "more",
    [
        "--backends torch",
        "--device cpu",
        "--output_path out.csv",
        "--jsonl out.jsonl",
        "--append",
        "--format json",
        "-vv",
        "--case_tag anything",
        "--refcheck",
        "--allow_output_mismatch",
        "--generate_repro_command",
        "--use_cupti",
        "--unread 5",
    ],
)
def test_what_is_not_computed_and_not_timed_changes_no_id(more):
    before, after = toy_case("--rows 4"), toy_case(f"--rows 4 {more}")
    assert after.case_id == before.case_id
    assert after.method_id == before.method_id


TIMING = [
    "--no_cuda_graph",
    "--use_cuda_events",
    "-n 31",
    "-d 6",
    "--cache cold",
    "--target_precision 1%",
    "--max_time 5",
]


@pytest.mark.parametrize("more", TIMING)
def test_how_it_is_timed_changes_the_method_id_only(more):
    before, after = toy_case("--rows 4"), toy_case(f"--rows 4 {more}")
    assert after.case_id == before.case_id
    assert after.method_id != before.method_id


def test_every_timing_option_is_tried_above():
    assert len(TIMING) == len(METHOD_OPTIONS)


@pytest.mark.parametrize(
    "more",
    [
        "--rows 5",
        "--heads 1",
        "--scale 2",
        "--dtype float16",
        "--layout tiled",
        "--causal",
        "--no-swizzled",
        "--random_seed 43",
    ],
)
def test_what_is_computed_changes_the_case_id_only(more):
    before, after = toy_case("--rows 4"), toy_case(f"--rows 4 {more}")
    assert after.case_id != before.case_id
    assert after.method_id == before.method_id


def test_the_order_of_flags_changes_no_id():
    assert toy_case("--rows 4 --causal").case_id == toy_case("--causal --rows 4").case_id


def test_two_routines_with_the_same_flags_have_different_ids():
    with declared_temporarily():
        other = routine("other_toy", flags=ToyFlags, uses=READ)(print)
    assert toy_case("--rows 4", of=other).case_id != toy_case("--rows 4").case_id


def test_flag_values_are_shown_as_they_took_effect():
    values = toy_case("--rows 4 --dtype float16 --backends torch --unread 3").flag_values()
    assert values == {
        "rows": 4,
        "heads": None,
        "scale": 1.0,
        "dtype": "float16",
        "layout": "flat",
        "causal": False,
        "swizzled": True,
    }
    assert list(values) == list(READ)


# What is validated and what is ignored


def test_only_flags_that_the_routine_reads_are_validated():
    case = toy_case("--rows 4 --unread 'not a number'")
    assert case.ignored == ("unread",)
    assert case.flags.unread == 1
    with pytest.raises(InvalidInput, match="--heads takes a whole number"):
        toy_case("--rows 4 --heads many")


def test_ignored_flags_are_named_once_each_in_the_order_typed():
    few = declare_toy(uses=("rows",))
    case = toy_case("--scale 2 --rows 4 --heads 3 --scale 3 --no-causal", of=few)
    assert case.ignored == ("scale", "heads", "causal")


def test_a_required_flag_that_the_routine_does_not_read_may_be_missing():
    blind = declare_toy(uses=("scale",))
    assert toy_case("", of=blind).flags.rows is None
    with pytest.raises(InvalidInput, match=r"^missing required flag --rows$"):
        toy_case("")


def test_flags_of_the_run_take_effect_on_a_command_line_and_are_ignored_on_a_testlists():
    line = "--rows 4 --output_path a.csv --append --format json"
    assert toy_case(line).ignored == ()
    assert toy_case(line, origin="list.txt:3").ignored == ("output_path", "append", "format")


def test_general_options_are_validated_for_every_routine():
    with pytest.raises(InvalidInput, match="--num_iters must be at least 1, not 0"):
        toy_case("--rows 4 -n 0")
    with pytest.raises(InvalidInput, match="--max_time: 'soon' is not a time"):
        toy_case("--rows 4 --max_time soon")
    with pytest.raises(InvalidInput, match="--device: 'gpu' is not a device"):
        toy_case("--rows 4 --device gpu")


def test_a_broken_rule_of_the_routine_is_told():
    strict = declare_toy(rules=(Rule(lambda case: case.rows % 2 == 0, "rows ({rows}) must be even"),))
    with pytest.raises(InvalidInput, match=r"^toy: rows \(3\) must be even$"):
        toy_case("--rows 3", of=strict)


def test_backends_are_kept_in_the_order_typed_without_repeats():
    assert toy_case("--rows 4 --backends torch cuda torch").backends == ("torch", "cuda")
    assert toy_case("--rows 4").backends == ()


def test_an_unknown_backend_is_refused():
    with pytest.raises(
        InvalidInput, match=r"--backends of toy: 'torhc' is not one of cuda, torch\. Did you mean 'torch'"
    ):
        toy_case("--rows 4 --backends cuda torhc")


def test_the_origin_is_kept():
    assert toy_case("--rows 4", origin="list.txt:3").origin == "list.txt:3"


# Finding the routine


def test_a_routine_is_found_by_name_or_told_which_is_meant():
    assert routine_named("mxfp4_quantize", ROUTINES) is ROUTINES["mxfp4_quantize"]
    with pytest.raises(InvalidInput, match=r"unknown routine 'mxfp4_quantise'\. Did you mean 'mxfp4_quantize'"):
        routine_named("mxfp4_quantise", ROUTINES)
    with pytest.raises(InvalidInput, match=r"^--routine is missing; --list shows"):
        routine_named(None, ROUTINES)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--m 4 --routine mxfp4_quantize --k 3", "mxfp4_quantize"),
        ("-R mxfp4_quantize", "mxfp4_quantize"),
        ("--routine=a --backends x y --routine b", "b"),
        ("--m 4", None),
        ("-n --no --bogus -vv --routine=a", "a"),
        ("--ro a", "a"),
        ("--m=4 --p=16 --f=joint --routine a", "a"),
    ],
)
def test_the_last_routine_of_a_line_counts_whatever_family_its_flags_are_of(line, name):
    assert routine_name(line.split()) == name


@pytest.mark.parametrize(
    ("token", "name"), [("--output", "output_path"), ("--out", "output_path"), ("--dry_run", "dry_run_iters")]
)
def test_upstreams_abbreviations_of_general_flags_work_before_the_family_is_known(token, name):
    (typed,), rest = general_flags([token, "7"], ROUTINES)
    assert (typed.name, rest) == (name, [])


@pytest.mark.parametrize("token", ["--m", "--m=0", "--p", "--page=16", "--f", "--max_l", "--k"])
def test_a_familys_flag_is_no_abbreviation_of_a_newer_general_one(token):
    assert general_flags([token, "7"], ROUTINES) == ([], [token, "7"])


def test_the_common_grammar_knows_every_spelling_of_every_family():
    line = "--page_size 1 --no_sf_swizzled_layout --num_heads 2 --top_p 1 --nvtx --backends a b -n 3"
    typed = common_grammar(ROUTINES).parse(shlex.split(line))
    names = "page_size is_sf_swizzled_layout num_heads top_p nvtx backends num_iters"
    assert [flag.name for flag in typed] == shlex.split(names)


# The command that repeats a case


def repeated(case: Case) -> Case:
    """What a shell makes of the case's repro command."""
    words = shlex.split(case.repro_command)
    assert words[: len(PROGRAM.split())] == PROGRAM.split()
    return make_case(case.routine, line_grammar(case.routine.flags).parse(words[len(PROGRAM.split()) :]))


def assert_repeats(case: Case) -> None:
    again = repeated(case)
    assert (again.case_id, again.method_id) == (case.case_id, case.method_id)
    assert again.flags == case.flags
    assert again.options == case.options
    assert again.backends == case.backends
    assert again.ignored == case.ignored
    assert again.repro_command == case.repro_command


def test_a_repro_command_spells_everything_out():
    case = case_of("-R mxfp4_quantize --m=16 --k 32 -vv -n5 --refch --backends cuda torch --case_t 'a b' --no-app")
    assert case.repro_command == (
        "python3 flashinfer_benchmark.py -R mxfp4_quantize --m 16 --k 32 -vv -n 5 --refcheck --backends cuda torch "
        "--case_tag 'a b'"
    )


def test_a_repro_command_leaves_out_the_files_and_the_modes_of_a_run():
    line = "--rows 4 --output_path a.csv --jsonl b.jsonl --append --format json --plan --repro_command x"
    assert toy_case(line).repro_command == f"{PROGRAM} --routine toy --rows 4"


def test_a_repro_command_keeps_flags_that_are_ignored():
    assert "--unread 7" in toy_case("--rows 4 --unread 7").repro_command


@pytest.mark.parametrize(("line", "_case_id", "_method_id"), GOLDEN)
def test_a_repro_command_repeats_the_case_of(line, _case_id, _method_id):
    assert_repeats(case_of(line))


def test_verbosity_is_repeated_as_often_as_typed():
    case = toy_case("-v --rows 4 --verbose -v")
    assert case.options.verbose == 3
    assert "-vvv" in case.repro_command
    assert_repeats(case)


TAGS = (
    st.text(max_size=12) | st.text("ab -=\"'`$\\{},#*!é中\n\t", max_size=12) | st.sampled_from(["-1", "-1e-3", "--m"])
)


@given(TAGS)
def test_a_repro_command_quotes_any_tag(tag):
    assume(tag != "--")
    case = toy_case(["--rows", "4", f"--case_tag={tag}"])
    assert case.options.case_tag == tag
    assert_repeats(case)


GENERAL_FLAGS = st.lists(
    st.sampled_from(
        shlex.split(
            "-v -vv --refcheck --no-refcheck --use_cupti --no_cuda_graph --no-no_cuda_graph -n5 --num_iters=7 -d0 "
            "--device=cpu --cache=cold --target_precision=0.5% --max_time=1.5m --random_seed=0 "
            "--generate_repro_command --allow_output_mismatch --use_cuda_events"
        )
    )
)
TOY_FLAGS = st.fixed_dictionaries(
    {"rows": st.integers(1, 10**12).map(str)},
    optional={
        "heads": st.integers(1, 99).map(str),
        "scale": st.floats(min_value=0, exclude_min=True, allow_infinity=False).map(repr),
        "dtype": st.sampled_from(["bfloat16", "float16"]),
        "layout": TAGS.filter(lambda text: text != "--"),
        "unread": TAGS.filter(lambda text: text != "--"),
    },
).map(lambda flags: [f"--{name}={value}" for name, value in flags.items()])
TOY_SWITCHES = st.lists(st.sampled_from(["--causal", "--no-causal", "--no_swizzle", "--no-swizzled", "--swizzled"]))
BACKENDS = st.lists(st.sampled_from(["cuda", "torch"]), max_size=3).map(
    lambda names: ["--backends", *names] * bool(names)
)


@given(GENERAL_FLAGS, TOY_FLAGS, TOY_SWITCHES, BACKENDS, st.randoms(use_true_random=False))
def test_a_repro_command_repeats_any_case(general, own, switches, backends, random):
    parts = [[token] for token in (*general, *own, *switches)] + [backends]
    random.shuffle(parts)
    assert_repeats(toy_case([token for part in parts for token in part]))


@given(TOY_FLAGS, TOY_FLAGS)
def test_two_cases_have_one_id_exactly_when_they_compute_the_same(first, second):
    one, other = toy_case(first), toy_case(second)
    read = [replace(case.flags, unread=1) for case in (one, other)]
    assert (one.case_id == other.case_id) == (read[0] == read[1])


def test_every_option_is_known_to_every_line():
    for declared in ROUTINES.values():
        assert {option for spec in specs_of(Options).values() for option in spec.options} <= set(
            line_grammar(declared.flags).options
        )
