"""The contract helper itself: it has to refuse what the library would refuse, or a contract test shows nothing."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import typing

import pytest
import torch

from flashinfer_perf import lazy
from tests.contract import Contract, Extras, Gives, contract
from tests.declarations import ContractViolation, conforms, explicit_layer

flashinfer = pytest.importorskip("flashinfer")


def forgiving(function):
    """A decorator as libraries have them: its own signature accepts anything."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@forgiving
@forgiving
def scaled(
    x: torch.Tensor,
    mode: typing.Literal["up", "down"],
    scale: float | torch.Tensor = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    return x


class Planner:
    """A class with a wrapped constructor and overloads, as FlashInfer's wrappers are."""

    @forgiving
    def __init__(self, size: int) -> None: ...

    @typing.overload
    def plan(self, *, by_name: str) -> None: ...

    @typing.overload
    def plan(self, *, by_number: int, quick: typing.Literal[True]) -> None: ...

    @forgiving
    def plan(self, *, by_name: str | None = None, by_number: int | None = None, quick: bool = False) -> None: ...


class Wrapper:
    """A class as FlashInfer's decoding wrapper is: keywords go to a private method, positions to a custom kernel."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    @property
    def resolved_backend(self) -> str: ...

    @forgiving
    def plan(self, size: int, *deprecated, **kwargs) -> None: ...

    def _plan_impl(self, size: int, *, quick: bool = False) -> None: ...

    @forgiving
    def run(self, x: torch.Tensor, *args, scale: float | None = None, out: torch.Tensor) -> torch.Tensor: ...

    @forgiving
    def anything(self, *args, **kwargs): ...


def anything(*args, **kwargs): ...


def test_a_declared_call_is_admitted_and_recorded():
    stand_in = Contract(scaled, Gives((2, 3), torch.float16))
    x = torch.ones(2)
    result = stand_in(x, mode="up", scale=torch.ones(1))
    assert result.shape == (2, 3)
    assert result.dtype is torch.float16
    assert set(stand_in.call) == {"x", "mode", "scale"}
    assert stand_in.call["x"] is x


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((torch.ones(1),), {"mode": "up", "scales": 1.0}, "unexpected keyword argument 'scales'"),
        ((), {"mode": "up"}, "missing a required argument: 'x'"),
        ((torch.ones(1),), {}, "missing a required argument: 'mode'"),
        ((torch.ones(1), "sideways"), {}, "mode must be"),
        ((torch.ones(1), None), {}, "mode must be"),
        (([1.0], "up"), {}, "x must be"),
        ((None, "up"), {}, "x must be"),
        ((torch.ones(1), "up", True), {}, "scale must be"),
        ((torch.ones(1), "up", "1.0"), {}, "scale must be"),
        ((torch.ones(1), "up", 1.0, 0), {}, "out must be"),
        ((torch.ones(1), "up", 1.0, None, None), {}, "too many positional arguments"),
    ],
)
def test_an_undeclared_call_is_refused(args, kwargs, says):
    stand_in = Contract(scaled, Gives((1,), torch.float32))
    with pytest.raises(ContractViolation, match=says):
        stand_in(*args, **kwargs)
    assert not stand_in.calls


def test_a_result_that_the_library_does_not_promise_is_refused():
    with pytest.raises(ContractViolation, match="stand-in gave None"):
        Contract(scaled)(torch.ones(1), "up")


def test_a_signature_that_accepts_anything_is_no_contract():
    with pytest.raises(TypeError, match="would check nothing"):
        explicit_layer(anything)


def test_the_innermost_layer_counts():
    @functools.wraps(scaled)
    def narrower(x, mode): ...

    assert list(inspect.signature(explicit_layer(narrower)).parameters) == ["x", "mode", "scale", "out"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads is new in Python 3.11")
@pytest.mark.parametrize("kwargs", [{}, {"by_number": 1}, {"by_number": 1, "quick": False}])
def test_a_call_has_to_fit_an_overload(kwargs):
    with pytest.raises(ContractViolation, match="fits no overload"):
        Contract(Planner.plan, method=True)(**kwargs)


@pytest.mark.parametrize("kwargs", [{"by_name": "a"}, {"by_number": 1, "quick": True}])
def test_a_call_that_fits_one_overload_is_admitted(kwargs):
    stand_in = Contract(Planner.plan, method=True)
    assert stand_in(**kwargs) is None
    assert stand_in.call == kwargs


def test_a_class_and_its_methods_are_replaced():
    here = f"{__name__}.Planner"
    original = sys.modules[__name__].Planner
    with contract(here, plan=None) as stand_in:
        sys.modules[__name__].Planner(size=3).plan(by_name="a")
        with pytest.raises(ContractViolation, match="unexpected keyword argument 'sizes'"):
            sys.modules[__name__].Planner(size=3, sizes=3)
        with pytest.raises(AttributeError, match="run"):
            _ = stand_in.instance.run
    assert stand_in.instance.made_with == {"size": 3}
    assert stand_in.instance.plan.call == {"by_name": "a"}
    assert sys.modules[__name__].Planner is original


@contextlib.contextmanager
def wrapper(**members):
    with contract(f"{__name__}.Wrapper", **members):
        yield sys.modules[__name__].Wrapper("fa2")


def test_keywords_are_those_of_the_private_implementation():
    with wrapper(plan=None) as made:
        made.plan(size=3, quick=True)
        assert made.plan.call == {"size": 3, "quick": True}
        for wrong in ({"quik": True}, {"quick": 1}):
            with pytest.raises(ContractViolation):
                made.plan(size=3, **wrong)
        with pytest.raises(ContractViolation, match="too many positional"):
            made.plan(3, True)


def test_a_method_without_an_explicit_implementation_is_no_contract():
    with pytest.raises(TypeError, match="would check nothing"), wrapper(anything=None):
        pass


ONE = torch.ones(1)


def test_extra_positions_are_refused():
    with wrapper(run=Gives((1,), torch.float32)) as made:
        made.run(ONE, scale=2.0, out=ONE)
        assert set(made.run.call) == {"x", "scale", "out"}
        with pytest.raises(ContractViolation, match=r"0 arguments for \*args are due"):
            made.run(ONE, 2.0, out=ONE)
        with pytest.raises(ContractViolation, match="scale must be"):
            made.run(ONE, scale="2", out=ONE)


def test_extra_positions_are_admitted_where_the_test_says_so():
    with wrapper(run=Extras(lambda **arguments: arguments["out"], 2)) as made:
        assert made.run(ONE, 2.0, 3.0, out=ONE) is ONE
        assert made.run.call["args"] == (2.0, 3.0)
        for extras in ((), (2.0,), (2.0, 3.0, 4.0)):
            with pytest.raises(ContractViolation, match=r"2 arguments for \*args are due"):
                made.run(ONE, *extras, out=ONE)


def test_properties_and_attributes_are_plain_values():
    with wrapper(resolved_backend="fa3", _backend="auto") as made:
        assert (made.resolved_backend, made._backend) == ("fa3", "auto")


@pytest.mark.parametrize(
    ("member", "error"),
    [
        ({"resolved_backend": 3}, ContractViolation),
        ({"resolved_backends": "fa3"}, AttributeError),
        ({"_backends": "fa3"}, AttributeError),
    ],
)
def test_members_that_the_class_does_not_have_are_refused(member, error):
    with pytest.raises(error), wrapper(**member):
        pass


def test_the_decoding_wrapper_of_flashinfer_is_a_contract():
    with contract("flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper", plan=None, resolved_backend="fa2") as made:
        flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper(ONE)
        indptr, heads = (ONE,) * 3, (1, 1, 64)
        made.instance.plan(*indptr, *heads, page_size=1, q_len_per_req=2)
        with pytest.raises(ContractViolation, match="unexpected keyword argument 'q_len_per_request'"):
            made.instance.plan(*indptr, *heads, page_size=1, q_len_per_request=2)


def test_the_lazy_module_does_not_keep_the_stand_in():
    before = lazy.flashinfer.mxfp4_quantize
    with contract("flashinfer.mxfp4_quantize") as stand_in:
        assert lazy.flashinfer.mxfp4_quantize is stand_in
        assert flashinfer.mxfp4_quantize is stand_in
    assert lazy.flashinfer.mxfp4_quantize is flashinfer.mxfp4_quantize is before


def test_decorators_of_flashinfer_are_seen_through():
    """mm_fp4 is public as ``wrapper(*args, **kwargs)``; its decorator adds skip_check and knows the backends."""
    operand, scale = torch.zeros(1, 1, dtype=torch.uint8), torch.zeros(1)
    stand_in = Contract(flashinfer.mm_fp4, Gives((1, 1), torch.bfloat16))
    stand_in(operand, operand, scale, scale, backend="cutlass", skip_check=True)
    for wrong in ({"backend": "cutlas"}, {"skip_checks": True}, {"skip_check": 1}, {"out_dtype": "bfloat16"}):
        with pytest.raises(ContractViolation):
            stand_in(operand, operand, scale, scale, **wrong)


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, typing.Literal[1, 2], True),
        (True, typing.Literal[1, 2], False),
        (None, typing.Optional[int], True),  # noqa: UP045  (libraries spell it so)
        (1.0, int | None, False),
        (True, int, False),
        (2, float, True),
        (torch.float16, torch.dtype, True),
        ("float16", torch.dtype, False),
        ((1, "a"), tuple[int, str], True),
        ((1, 2), tuple[int, str], False),
        ((1, 2, 3), tuple[int, ...], True),
        ([1, "a"], list[int], False),
        (len, typing.Callable[[list], int], True),
        (3, typing.Any, True),
        (object(), object, True),
    ],
)
def test_values_and_annotations(value, hint, fits):
    assert conforms(value, hint) is fits
