from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flashinfer_perf.core.arguments import Grammar, Typed, merge, not_understood, values_of
from flashinfer_perf.core.case import line_grammar
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import Since, backends_flag, flag, specs_of
from flashinfer_perf.routines import all_routines

# The flags of upstream 0.6.2 as its parsers know them. "=" takes a value, "+" several, the rest are switches.
GENERAL = """
    help testlist= output_path= routine= no_cuda_graph use_cupti use_cuda_events refcheck allow_output_mismatch
    random_seed= verbose num_iters= dry_run_iters= case_tag= generate_repro_command repro_command=
"""
FAMILIES = {
    "attention": """
        backends+ page_size= batch_size= s_qo= s_kv= num_qo_heads= num_kv_heads= head_dim_qk= head_dim_vo=
        head_dim_ckv= head_dim_kpe= q_dtype= kv_dtype= causal random_actual_seq_len
    """,
    "moe": """
        num_tokens= hidden_size= num_experts= top_k= input_dtype= intermediate_size= n_group= topk_group=
        routed_scaling_factor= local_expert_offset= local_num_experts= routing_method= use_shuffled_weight
        weight_layout= use_routing_bias use_routing_scales_on_input weight_dtype= activation-type= autotune
        cutlass_variant= quantized_input tp_size= tp_rank= ep_size= ep_rank=
    """,
    "allreduce_comm": "num_tokens= hidden_size= input_dtype= pattern= validate enable_pdl",
    "moe_comm": """
        num_tokens= hidden_size= num_experts= top_k= input_dtype= quant_dtype= real_math intermediate_size=
        max_num_tokens= validate nvtx per_phase_timing
    """,
    "norm": """
        batch_size= hidden_size= num_heads= input_dtype= eps= enable_pdl scale= out_dtype= backends+
        use_global_scale is_sf_swizzled_layout output_both_sf_layouts
    """,
    "quantization": """
        m= k= input_dtype= is_sf_swizzled_layout no_sf_swizzled_layout alignment= enable_pdl backends+ batch_size=
        global_scale= sf_layout= do_shuffle sf_vec_size=
    """,
    "gemm": """
        batch_size= m= n= k= tile_size= group_size= scale_major_mode= input_dtype= mat2_dtype= out_dtype= mma_sm=
        backends+ use_128x4_sf_layout use_nvfp4 autotune
    """,
    "sampling": """
        batch_size= vocab_size= input_dtype= top_k= top_p= min_p= temperature= filter_apply_order=
        num_speculate_tokens= max_len= num_rows= backends+
    """,
    "rope": """
        batch_size= seq_len= num_qo_heads= num_kv_heads= head_dim= rotary_dim= no_rope_dim= input_dtype= quant_dtype=
        rope_scale= rope_theta= interleave page_size= kv_layout= low_freq_factor= high_freq_factor= old_context_len=
        backends+
    """,
}
SHORT = {"-R": "routine", "-v": "verbose", "-n": "num_iters", "-d": "dry_run_iters", "-h": "help"}


def upstream_flags(family: str) -> dict[str, str]:
    """Option to its kind of value: '', '=' or '+'."""
    words = (GENERAL + FAMILIES[family]).split()
    return {f"--{word.rstrip('=+')}": word[len(word.rstrip("=+")) :] for word in words}


def unique_prefixes(options: list[str]) -> dict[str, str]:
    """Every abbreviation that upstream's parser takes, spelled-out options included, with what it stands for."""
    found = {}
    for option in options:
        for length in range(len("--x"), len(option) + 1):
            prefix = option[:length]
            if prefix == option or [other for other in options if other.startswith(prefix)] == [option]:
                found[prefix] = option
    return found


def grammar_of_family(family: str) -> Grammar:
    return line_grammar(next(r.flags for r in all_routines().values() if r.family == family))


def test_every_family_that_exists_is_compared_with_upstream():
    assert {routine.family for routine in all_routines().values()} <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_that_is_unique_upstream_keeps_its_meaning(family):
    grammar, kinds = grammar_of_family(family), upstream_flags(family)
    prefixes = unique_prefixes(list(kinds))
    assert len(prefixes) > 200
    changed = {}
    for prefix, option in prefixes.items():
        values = {"": (), "=": ("7",), "+": ("7", "8")}[kinds[option]]
        understood = grammar.parse([prefix, *values])
        if [(typed.option, typed.values) for typed in understood] != [(option, values)]:
            changed[prefix] = understood
    assert changed == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_upstreams_short_forms_keep_their_meaning(family):
    grammar = grammar_of_family(family)
    for option, name in SHORT.items():
        value = [] if name in ("verbose", "help") else ["7"]
        assert [typed.name for typed in grammar.parse([option, *value])] == [name]


@dataclass(frozen=True)
class ToyFlags:
    family: ClassVar[str] = "toys"

    rows: int = flag(short="r", help="Rows.")
    row_stride: int = flag(1, help="Stride.")
    layout: str = flag("flat", help="Layout.")
    loud: int = flag(0, short="l", counted=True, help="Louder.")
    swizzled: bool = flag(True, negations=("--no_swizzle",), help="Swizzled.")
    backends: tuple[str, ...] = backends_flag()
    layers: int = flag(1, since=Since.OURS, help="A newer flag.")
    newest: int = flag(1, since=Since.OURS, help="A newer flag.")
    coat_kind: int = flag(1, aliases=("--coat-kind",), help="A flag of two spellings.")


@dataclass(frozen=True)
class OtherFlags:
    family: ClassVar[str] = "others"

    m: int = flag(help="A size.")
    newt: int = flag(1, help="Older than ours.")
    round: int = flag(1, help="As old as rows.")


SPECS = specs_of(ToyFlags)
TOYS = Grammar(SPECS.values(), "toys")
OTHERS = Grammar(specs_of(OtherFlags).values(), "others")


def said(*tokens: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(typed.option, typed.values) for typed in TOYS.parse(tokens)]


def refusal(*tokens: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        TOYS.parse(tokens)
    return str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["--rows", "3"], [("--rows", ("3",))]),
        (["--rows=3"], [("--rows", ("3",))]),
        (["--row_s=3"], [("--row_stride", ("3",))]),
        (["-r", "3"], [("-r", ("3",))]),
        (["-r3"], [("-r", ("3",))]),
        (["-ll"], [("-l", ()), ("-l", ())]),
        (["-l", "--loud"], [("-l", ()), ("--loud", ())]),
        (["-lr3"], [("-l", ()), ("-r", ("3",))]),
        (["--backends", "cuda", "torch", "-l"], [("--backends", ("cuda", "torch")), ("-l", ())]),
        (["--layout="], [("--layout", ("",))]),
        (["--layout", ""], [("--layout", ("",))]),
        (["--layout=a=b"], [("--layout", ("a=b",))]),
        (["--layout", "a b"], [("--layout", ("a b",))]),
        (["--rows", "1", "--rows", "2"], [("--rows", ("1",)), ("--rows", ("2",))]),
        ([], []),
    ],
)
def test_all_ways_to_type_a_flag(tokens, expected):
    assert said(*tokens) == expected


@pytest.mark.parametrize("number", ["-1", "-0.5", "-.5", "-12"])
def test_a_negative_number_is_a_value(number):
    assert said("--rows", number) == said(f"--rows={number}") == [("--rows", (number,))]


@pytest.mark.parametrize("text", ["-x", "--rows", "-1e-3", "- a"])
def test_a_value_that_looks_like_a_flag_needs_an_equals_sign(text):
    assert said(f"--layout={text}") == [("--layout", (text,))]


@pytest.mark.parametrize("option", ["--no-swizzled", "--no_swizzle", "--no-sw"])
def test_a_switch_is_turned_off_by_its_no_form(option):
    assert values_of(TOYS.parse([option]), SPECS) == {"swizzled": False}
    assert values_of(TOYS.parse([option, "--swizzled"]), SPECS) == {"swizzled": True}
    assert values_of(TOYS.parse(["--swizzled", option]), SPECS) == {"swizzled": False}


def test_an_ambiguous_prefix_is_refused_with_the_candidates():
    assert refusal("--ro", "3") == "ambiguous flag --ro: it could be --row_stride, --rows"


def test_a_newer_flag_makes_no_older_abbreviation_ambiguous():
    assert said("--lay", "flat") == [("--layout", ("flat",))]
    assert said("--layer", "3") == [("--layers", ("3",))]


def test_two_spellings_of_a_flag_make_no_abbreviation_ambiguous():
    """The alias is what an older program knows."""
    assert said("--coat", "3") == [("--coat-kind", ("3",))]
    assert said("--coat_k", "3") == [("--coat_kind", ("3",))]


def test_a_no_form_makes_no_abbreviation_ambiguous():
    assert said("--no") == [("--no_swizzle", ())]
    assert said("--no-") == [("--no-swizzled", ())]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--row_strode", "3"], "unknown flag --row_strode. Did you mean '--row_stride'?"),
        (["--xyzzy=3"], "unknown flag --xyzzy; see --help"),
        (["-x"], "unknown flag -x"),
        (["word"], "stray word 'word': no flag before it takes it"),
        (["--rows", "3", "4"], "stray word '4': no flag before it takes it"),
        (["--swizzled", "yes"], "stray word 'yes': no flag before it takes it"),
        (["--rows"], "--rows"),
        (["--rows", "--layout", "flat"], "--rows"),
        (["--backends"], "--backends: expected at least one argument"),
        (["--swizzled=yes"], "--swizzled"),
        (["--loud=2"], "--loud"),
    ],
)
def test_what_cannot_be_understood_is_named(tokens, message):
    assert message in refusal(*tokens)


def test_the_first_thing_not_understood_is_named():
    assert "--first" in refusal("--rows", "3", "--first", "1", "--second", "2")


def test_a_flag_of_another_family_is_said_to_be_one():
    with pytest.raises(InvalidInput, match=r"^--m is a flag of others routines, not of toys ones"):
        TOYS.parse(["--rows", "3", "--m", "4"], [OTHERS])
    with pytest.raises(InvalidInput, match=r"^unknown flag --mm"):
        TOYS.parse(["--rows", "3", "--mm", "4"], [OTHERS])


@pytest.mark.parametrize(
    ("tokens", "understood"),
    [
        (["--new", "4"], False),
        (["--newe", "4"], True),
        (["--m", "4"], False),
        (["--lay", "flat"], True),
        (["--row_", "4"], True),
    ],
)
def test_what_may_be_meant_for_another_family_is_left_alone(tokens, understood):
    typed, rest = TOYS.parse_known(tokens, [OTHERS])
    assert bool(typed) == understood
    assert rest == ([] if understood else tokens)


def test_an_exact_flag_of_another_family_is_no_abbreviation():
    @dataclass(frozen=True)
    class MaxFlags:
        max_time: int = flag(1, help="Ours.", since=Since.OURS)

    general = Grammar(specs_of(MaxFlags).values())
    assert [typed.name for typed in general.parse(["--m", "4"])] == ["max_time"]
    assert general.parse_known(["--m=4"], [OTHERS]) == ([], ["--m=4"])


def test_parse_known_gives_back_the_rest_in_order():
    typed, rest = TOYS.parse_known(["--what", "1", "--rows", "3", "stray", "-l"])
    assert [flag.option for flag in typed] == ["--rows", "-l"]
    assert rest == ["--what", "1", "stray"]


def test_every_spelling_is_listed():
    assert {"--rows", "-r", "--no-swizzled", "--no_swizzle", "--backends"} <= set(TOYS.options)


def test_a_double_dash_is_no_value_or_a_value_but_never_a_crash():
    for tokens in (["--layout=--"], ["--backends=--"], ["-r--"], ["--", "x"], ["--rows", "--", "3"]):
        try:
            typed = TOYS.parse(tokens)
        except InvalidInput:
            continue
        assert all(flag.values for flag in typed)


def test_not_understood_guesses_among_all_spellings():
    assert not_understood("--bach_size=4", ["--batch_size"]) == "unknown flag --bach_size. Did you mean '--batch_size'?"


def test_values_are_the_last_typed_and_counts_are_summed():
    typed = TOYS.parse(["--rows", "1", "-ll", "--backends", "a", "b", "--rows", "2", "--loud", "--backends", "c"])
    assert values_of(typed, SPECS) == {"rows": 2, "loud": 3, "backends": ("c",)}


def test_merge_puts_a_lines_flags_in_place_of_the_defaults():
    defaults = TOYS.parse(["-lll", "--rows", "1", "--swizzled", "--layout", "flat"])
    line = TOYS.parse(["--no-swizzled", "-l", "--rows", "2"])
    merged = merge(defaults, line)
    assert values_of(merged, SPECS) == {"layout": "flat", "swizzled": False, "loud": 1, "rows": 2}
    assert merged == [Typed("layout", "--layout", ("flat",)), *line]


AWKWARD = st.text("ab-=1.e \"'{},#\\é\n", max_size=8) | st.sampled_from(["-1", "-1e-3", "-inf", "-1_0", "- a", "-٣"])


@given(AWKWARD)
def test_a_flag_typed_again_from_its_tokens_is_the_same_flag(text):
    assume(text != "--")
    (typed,) = TOYS.parse([f"--layout={text}"])
    assert typed.values == (text,)
    assert TOYS.parse(typed.tokens) == [typed]
    short = Typed("rows", "-r", (text,))
    assert TOYS.parse(short.tokens) == [short]


@given(st.lists(AWKWARD, min_size=1, max_size=3))
def test_a_flag_of_several_values_is_typed_again_the_same(texts):
    try:
        typed = TOYS.parse(["--backends", *texts])
    except InvalidInput:
        assume(False)
    assert [flag for again in typed for flag in TOYS.parse(again.tokens)] == typed


@pytest.mark.parametrize("tokens", [["-ll"], ["--no-swizzled"], ["--no_swizzle"], ["-r3"], ["--backends", "a", "b"]])
def test_every_kind_of_flag_is_typed_again_the_same(tokens):
    typed = TOYS.parse(tokens)
    assert TOYS.parse([token for flag in typed for token in flag.tokens]) == typed
