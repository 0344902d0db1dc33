from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import (
    REQUIRED,
    Since,
    backends_flag,
    build,
    convert,
    did_you_mean,
    flag,
    not_a_choice,
    shown,
    specs_of,
)


def parse_even(text: str) -> int:
    if int(text) % 2:
        raise ValueError(f"{text!r} is odd; give an even number")
    return int(text)


@dataclass(frozen=True)
class ToyFlags:
    rows: int = flag(minimum=1, help="Rows.", short="r")
    cols: int = flag(help="Columns.")
    heads: int | None = flag(None, minimum=1, help="Heads.")
    eps: float = flag(1e-6, minimum=0, help="Epsilon.")
    scale: float = flag(1.0, above=0, help="Scale.")
    shift: float = flag(0.0, help="Shift.")
    dtype: DType = flag(DType.BFLOAT16, choices=(DType.BFLOAT16, DType.FLOAT16), help="Format.")
    any_dtype: DType | None = flag(None, help="Format.")
    layout: str = flag("128x4", choices=("128x4", "8x4", "linear"), help="Layout.", metavar="L")
    pairs: int = flag(2, parse=parse_even, help="Pairs.")
    swizzle: bool = flag(True, negations=("--no_swizzle",), help="Swizzle.", aliases=("--swizzled",))
    loud: int = flag(0, short="l", counted=True, help="Louder.", identity=False, since=Since.OURS)
    backends: tuple[str, ...] = backends_flag()
    sizes: tuple[int, ...] = flag((1, 2), minimum=1, help="Sizes.", per_process=True)


SPECS = specs_of(ToyFlags)


def refusal(name: str, *texts: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        convert(SPECS[name], texts)
    return str(caught.value)


def test_specs_follow_the_fields_in_order():
    assert list(SPECS)[:4] == ["rows", "cols", "heads", "eps"]
    assert [name for name, spec in SPECS.items() if spec.required] == ["rows", "cols"]
    assert SPECS["rows"].default is REQUIRED
    assert repr(REQUIRED) == "required"


def test_a_spec_carries_all_that_was_declared():
    loud, layout = SPECS["loud"], SPECS["layout"]
    assert (loud.counted, loud.identity, loud.since, loud.short) == (True, False, Since.OURS, "l")
    assert (layout.help, layout.metavar, layout.default) == ("Layout.", "L", "128x4")
    assert layout.choices == ("128x4", "8x4", "linear")
    assert layout.identity
    assert SPECS["sizes"].per_process


@pytest.mark.parametrize(
    ("name", "kind", "many"),
    [
        ("rows", int, False),
        ("heads", int, False),
        ("scale", float, False),
        ("any_dtype", DType, False),
        ("swizzle", bool, False),
        ("backends", str, True),
        ("sizes", int, True),
    ],
)
def test_the_type_is_that_of_one_value(name, kind, many):
    assert SPECS[name].type is kind
    assert SPECS[name].many is many


def test_spellings_are_the_long_one_then_aliases_then_the_short_one():
    assert SPECS["rows"].options == ("--rows", "-r")
    assert SPECS["rows"].off_options == ()
    assert SPECS["swizzle"].options == ("--swizzle", "--swizzled")
    assert SPECS["swizzle"].off_options == ("--no-swizzle", "--no_swizzle")


def test_backends_are_no_part_of_a_cases_identity():
    assert not SPECS["backends"].identity
    assert SPECS["backends"].default == ()


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        ("rows", ["12"], 12),
        ("shift", ["-1.5e3"], -1500.0),
        ("eps", ["0"], 0.0),
        ("rows", ["1"], 1),
        ("dtype", ["float16"], DType.FLOAT16),
        ("any_dtype", ["nvfp4"], DType.NVFP4),
        ("layout", ["8x4"], "8x4"),
        ("pairs", ["4"], 4),
        ("backends", ["cuda", "torch"], ("cuda", "torch")),
        ("sizes", ["3"], (3,)),
    ],
)
def test_texts_become_values_of_the_declared_type(name, texts, value):
    converted = convert(SPECS[name], texts)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize("text", ["1.5", "1e3", "", "ten", "0x10", "1,2"])
def test_no_whole_number(text):
    assert refusal("rows", text) == f"--rows takes a whole number, not {text!r}"


@pytest.mark.parametrize("text", ["one", "", "1,5", "1.0.0"])
def test_no_number(text):
    assert refusal("scale", text) == f"--scale takes a number, not {text!r}"


@pytest.mark.parametrize("name", ["eps", "scale", "shift"])
@pytest.mark.parametrize("text", ["nan", "-nan", "NaN", "inf", "-inf", "Infinity", "1e999"])
def test_a_number_must_be_finite_whatever_its_limits(name, text):
    assert refusal(name, text) == f"--{name} takes a finite number, not {text!r}"


def test_a_sweep_that_was_not_expanded_is_explained():
    assert refusal("rows", "{1,2}").endswith("not '{1,2}'; sweeps in braces belong in a testlist, unquoted")


@pytest.mark.parametrize("text", ["0", "-1"])
def test_a_minimum_is_allowed_itself_and_nothing_below(text):
    assert refusal("rows", text) == f"--rows must be at least 1, not {text}"


def test_above_is_not_allowed_itself():
    assert refusal("scale", "0") == "--scale must be above 0, not 0"
    assert refusal("scale", "-0.5") == "--scale must be above 0, not -0.5"
    assert convert(SPECS["scale"], ["5e-324"]) > 0


def test_limits_hold_for_each_of_several_values():
    assert refusal("sizes", "3", "0") == "--sizes must be at least 1, not 0"


def test_a_choice_that_is_none_is_told_with_all_and_the_closest():
    assert refusal("layout", "8x8") == "--layout: '8x8' is not one of 128x4, 8x4, linear. Did you mean '8x4'?"
    assert refusal("layout", "zzz") == "--layout: 'zzz' is not one of 128x4, 8x4, linear"
    assert refusal("layout", "") == "--layout: '' is not one of 128x4, 8x4, linear"


def test_a_guess_is_the_closest_or_one_that_contains_the_text():
    names = ["mxfp4_quantize", "softmax"]
    assert did_you_mean("sotfmax", names) == " Did you mean 'softmax'?"
    assert did_you_mean("fp4", names) == " Did you mean 'mxfp4_quantize'?"
    assert did_you_mean("zzz", names) == ""


def test_a_dtype_that_is_none_is_told_with_those_allowed():
    assert refusal("dtype", "bf16") == "--dtype: 'bf16' is not one of bfloat16, float16. Did you mean 'bfloat16'?"
    assert refusal("any_dtype", "int7").startswith("--any_dtype: 'int7' is not one of float64, float32,")


def test_a_dtype_that_exists_but_is_not_allowed_is_told_alike():
    assert refusal("dtype", "float32").startswith("--dtype: 'float32' is not one of bfloat16, float16")


def test_a_parser_of_ones_own_tells_its_reason_with_the_flag():
    assert refusal("pairs", "3") == "--pairs: '3' is odd; give an even number"


def test_not_a_choice_takes_any_iterable():
    assert not_a_choice("--x", "b", iter(["a"])) == "--x: 'b' is not one of a"


def test_build_takes_typed_values_then_the_routines_defaults_then_none():
    from dataclasses import replace

    own = {name: SPECS[name] for name in ("rows", "eps")} | {"heads": replace(SPECS["heads"], default=4)}
    flags = build(ToyFlags, own, {"rows": 7})
    assert (flags.rows, flags.heads, flags.eps) == (7, 4, 1e-6)
    assert flags.cols is None, "not read by the routine, so not required"
    assert flags.swizzle is True


def test_build_names_all_required_flags_that_are_missing():
    with pytest.raises(InvalidInput, match=r"^missing required flags --rows, --cols$"):
        build(ToyFlags, SPECS, {})
    with pytest.raises(InvalidInput, match=r"^missing required flag --cols$"):
        build(ToyFlags, SPECS, {"rows": 1})


def test_a_required_flag_may_be_typed_as_zero():
    assert build(ToyFlags, SPECS, {"rows": 0, "cols": 0}).rows == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(DType.NVFP4, "nvfp4"), ((DType.NVFP4, 2), ["nvfp4", 2]), (None, None), (1.5, 1.5), ("a", "a"), ((), [])],
)
def test_values_are_shown_by_name_and_tuples_as_lists(value, text):
    assert shown(value) == text
    assert type(shown(value)) is type(text)


def test_finite_is_not_asked_of_whole_numbers_of_any_size():
    assert convert(SPECS["cols"], ["9" * 400]) == int("9" * 400)
    assert math.isfinite(convert(SPECS["shift"], ["1e308"]))
