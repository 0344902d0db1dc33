from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashinfer_perf.run.launch import (
    Copies,
    Launch,
    Phase,
    named_tensors,
    poison,
    storages_in,
    tensors_in,
)


def axpy(x: Any, y: Any, *, scale: float = 1.0, out: Any = None) -> Any:
    return None if out is None else out.copy_(scale * x + y)


class Cache(NamedTuple):
    k: torch.Tensor
    v: torch.Tensor


# ---- binding arguments by name ----


def test_positional_and_keyword_arguments_are_known_by_parameter_name():
    launch = Launch(axpy, args=(1, 2), kwargs={"scale": 3.0})
    assert launch.arguments() == {"x": 1, "y": 2, "scale": 3.0}


def test_keywords_need_no_signature():
    """Library calls are often built-ins or take **kwargs."""
    launch = Launch(torch.add, kwargs={"input": torch.ones(2), "other": torch.ones(2)}, returns=("sum",))
    assert list(launch.arguments()) == ["input", "other"]
    assert launch.outputs(launch())["sum"].tolist() == [2, 2]


def test_surplus_keywords_are_arguments_by_their_own_names():
    def kernel(x: Any, **rest: Any) -> Any:
        return x, rest

    launch = Launch(kernel, args=(1,), kwargs={"alpha": 2}, mutates=("alpha",))
    assert launch.arguments() == {"x": 1, "alpha": 2}
    assert launch() == (1, {"alpha": 2})


def test_positional_only_parameters_are_bound():
    def kernel(x: Any, /, y: Any) -> Any:
        return x + y

    assert Launch(kernel, args=(1, 2), scratch=("x",)).arguments() == {"x": 1, "y": 2}


def test_a_variable_number_of_positional_arguments_has_no_names():
    with pytest.raises(TypeError, match=r"by keyword: it takes \*rest"):
        Launch(lambda x, *rest: None, args=(1, 2, 3))


def test_positional_arguments_of_a_builtin_without_signature_are_refused_with_advice():
    with pytest.raises(TypeError, match=r"pass the arguments of .*matmul.* by keyword"):
        Launch(torch.matmul, args=(torch.ones(1, 1), torch.ones(1, 1)))


def test_too_many_arguments_are_an_error_of_the_launch_not_of_the_call():
    with pytest.raises(TypeError, match="too many positional"):
        Launch(axpy, args=(1, 2, 3))


@pytest.mark.parametrize("field", ["mutates", "scratch"])
def test_a_name_that_is_no_argument_is_refused_with_those_there_are(field: str):
    with pytest.raises(TypeError, match="no argument of the call is named outt; it has x, y"):
        Launch(axpy, args=(1, 2), **{field: ("outt",)})


def test_a_launch_has_either_one_function_or_phases():
    with pytest.raises(TypeError, match="either fn or phases"):
        Launch()
    with pytest.raises(TypeError, match="either fn or phases"):
        Launch(axpy, phases=(Phase("a", axpy),))


def test_phases_take_keywords_only():
    with pytest.raises(TypeError, match="keywords only"):
        Launch(phases=(Phase("a", axpy),), args=(1,))


# ---- phases ----


def test_phases_run_in_order_and_each_gets_the_result_before():
    def first(previous: Any, x: int) -> list[Any]:
        return [previous, x]

    def second(previous: list[Any], x: int) -> list[Any]:
        return [*previous, x + 1]

    launch = Launch(phases=(Phase("send", first), Phase("receive", second)), kwargs={"x": 1})
    assert launch.phase_names == ("send", "receive")
    assert launch() == [None, 1, 2]
    assert len(launch.steps()) == 2


def test_phases_that_are_not_timed_apart_are_one_step():
    phases = (Phase("double", lambda _, x: 2 * x), Phase("add", lambda doubled, x: doubled + x))
    launch = Launch(phases=phases, kwargs={"x": 3}, timed_apart=False)
    assert launch.phase_names == ()
    (step,) = launch.steps()
    assert step(None) == launch() == 9


def test_a_call_with_other_arguments_keeps_the_rest():
    launch = Launch(lambda x, y: (x, y), kwargs={"x": 1, "y": 2}, no_graph="never")
    changed = launch.with_arguments(y=5)
    assert (changed(), launch()) == ((1, 5), (1, 2))
    assert changed.no_graph == "never"


def test_a_launch_of_one_part_has_one_step_and_no_phase_names():
    launch = Launch(axpy, args=(1, 2))
    assert launch.phase_names == ()
    assert len(launch.steps()) == 1


# ---- outputs ----


def test_outputs_are_what_was_returned_and_what_was_written():
    out = torch.zeros(2)
    launch = Launch(
        lambda x, out: (x + 1, x + 2), kwargs={"x": 1, "out": out}, mutates=("out",), returns=("values", "indices")
    )
    outputs = launch.outputs((torch.ones(1), torch.zeros(1)))
    assert list(outputs) == ["values", "indices", "out"]
    assert outputs["out"] is out


def test_a_list_is_as_good_as_a_tuple_and_a_single_tensor_as_either():
    one = torch.ones(1)
    assert Launch(axpy, returns=("a",)).outputs(one) == {"a": one}
    assert list(Launch(axpy, returns=("a", "b")).outputs([one, one])) == ["a", "b"]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (torch.ones(1), "returned Tensor, not out, lse"),
        ((torch.ones(1), None), "returned Tensor, NoneType, not out, lse"),
        ((torch.ones(1),) * 3, "returned Tensor, Tensor, Tensor, not out, lse"),
        (None, "returned NoneType, not out, lse"),
        ((), "returned nothing, not out, lse"),
    ],
)
def test_another_number_of_returned_things_than_declared_is_an_error(returned: Any, said: str):
    with pytest.raises(TypeError, match=said):
        Launch(axpy, returns=("out", "lse")).outputs(returned)


def test_what_a_call_returns_undeclared_is_no_output():
    out = torch.ones(1)
    assert list(Launch(axpy, kwargs={"x": 1, "y": 1, "out": out}, mutates=("out",)).outputs(out)) == ["out"]


def test_written_tuples_and_dictionaries_are_outputs_by_place_and_key():
    k, v, scale = torch.zeros(1), torch.ones(1), torch.ones(1)
    launch = Launch(axpy, kwargs={"cache": (k, v), "scales": {"k": scale}}, mutates=("cache", "scales"))
    outputs = launch.outputs(None)
    assert list(outputs) == ["cache.0", "cache.1", "scales.k"]
    assert outputs["cache.1"] is v
    assert list(launch.written()) == [k, v, scale]


def test_named_tensors_leaves_out_what_is_no_tensor():
    assert list(dict(named_tensors("a", [1, None, torch.ones(1), {"b": [torch.ones(1)]}]))) == ["a.2", "a.3.b.0"]


def test_data_is_every_tensor_but_scratch():
    a, b, c, workspace = (torch.full((1,), float(i)) for i in range(4))
    kwargs = {"q": (a, {"k": [b]}), "n": 3, "out": c, "workspace": workspace}
    launch = Launch(axpy, kwargs=kwargs, scratch=("workspace",))
    assert [int(tensor) for tensor in launch.data()] == [0, 1, 2]


# ---- copies ----


def pool_views() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A pool of pages that holds K and V side by side, as (pages, 2, page size, dimension), and its two views."""
    pool = torch.arange(2 * 2 * 3 * 4, dtype=torch.float32).view(2, 2, 3, 4)
    return pool, pool[:, 0], pool[:, 1]


def test_views_of_one_pool_stay_views_of_one_copy():
    pool, k, v = pool_views()
    copies = Copies()
    new_k, new_v = copies.of((k, v))
    new_pool = copies.of(pool)
    assert new_k.untyped_storage().data_ptr() == new_v.untyped_storage().data_ptr() == new_pool.data_ptr()
    assert new_k.untyped_storage().data_ptr() != pool.data_ptr()
    for new, old in ((new_k, k), (new_v, v), (new_pool, pool)):
        assert (new.shape, new.stride(), new.storage_offset()) == (old.shape, old.stride(), old.storage_offset())
        assert torch.equal(new, old)
    new_k.fill_(-1)
    assert torch.equal(new_pool[:, 0], new_k)
    assert torch.equal(new_v, v)
    assert pool.min() == 0


def test_the_same_tensor_twice_stays_one_place_in_memory():
    x = torch.ones(3)
    a, b = Copies().of([x, x])
    a.fill_(5)
    assert b.tolist() == [5, 5, 5]
    assert x.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[1:, ::2],
        lambda x: x[0].expand(7, -1),
        lambda x: x.as_strided((3, 3), (1, 1), 2),
        lambda x: x.view(torch.uint8),
        lambda x: x[:0],
        lambda x: x[1, 2],
    ],
    ids=["transposed", "sliced", "expanded", "overlapping", "bytes", "empty", "scalar"],
)
def test_strides_offsets_and_shapes_survive(view: Any):
    original = view(torch.randn(4, 6))
    copy = Copies().of(original)
    assert (copy.shape, copy.stride(), copy.storage_offset()) == (
        original.shape,
        original.stride(),
        original.storage_offset(),
    )
    assert torch.equal(copy, original)
    assert not storages_in(copy) & storages_in(original)


@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.int32, torch.bfloat16, torch.float16, torch.bool],
)
def test_every_format_is_copied_bit_for_bit(dtype: torch.dtype):
    raw = (torch.arange(256, dtype=torch.int16) % (2 if dtype is torch.bool else 256)).to(torch.uint8)
    original = raw.view(dtype)
    copy = Copies().of(original)
    assert copy.dtype is dtype
    assert torch.equal(copy.view(torch.uint8), raw)


def test_nesting_keeps_its_types():
    value = {
        "pair": (torch.ones(1), 2),
        "list": [torch.zeros(1)],
        "cache": Cache(torch.ones(1), torch.zeros(1)),
        "s": "x",
    }
    copy = Copies().of(value)
    assert isinstance(copy["pair"], tuple)
    assert isinstance(copy["list"], list)
    assert isinstance(copy["cache"], Cache)
    assert (copy["pair"][1], copy["s"]) == (2, "x")
    assert not storages_in(copy) & storages_in(value)
    assert [t.item() for t in tensors_in(copy)] == [1, 0, 1, 0]


def test_pairs_name_each_copy_with_its_original():
    _, k, v = pool_views()
    copies = Copies()
    new = copies.of((k, v, k))
    assert [(id(copy), id(original)) for copy, original in copies.pairs] == [
        (id(copy), id(original)) for copy, original in zip(new, (k, v, k), strict=True)
    ]


def test_on_copies_copies_the_named_arguments_only():
    x, y, out = torch.ones(2), torch.ones(2), torch.zeros(2)
    launch = Launch(axpy, args=(x, y), kwargs={"out": out, "scale": 2.0}, mutates=("out",))
    private = launch.on_copies(Copies(), ("y", "out"))
    arguments = private.arguments()
    assert arguments["x"] is x
    assert arguments["scale"] == 2.0
    assert not storages_in([arguments["y"], arguments["out"]]) & storages_in([y, out])
    private()
    assert out.tolist() == [0, 0]
    assert private.outputs(None)["out"].tolist() == [3, 3]


def test_on_copies_takes_all_but_scratch_by_default():
    kwargs = {"x": torch.ones(1), "plan": (torch.ones(1), torch.ones(1)), "nested": [{"k": torch.ones(1)}]}
    private = Launch(axpy, kwargs=kwargs, scratch=("plan",)).on_copies(Copies())
    assert private.arguments()["plan"] is kwargs["plan"]
    assert not storages_in([private.arguments()["x"], private.arguments()["nested"]]) & storages_in(kwargs)


def test_on_copies_of_phases_gives_every_phase_the_same_copies():
    out = torch.zeros(1)
    phases = (Phase("a", lambda _, out: out.add_(1)), Phase("b", lambda _, out: out.add_(1)))
    private = Launch(phases=phases, kwargs={"out": out}, mutates=("out",)).on_copies(Copies())
    private()
    assert out.item() == 0
    assert private.outputs(None)["out"].item() == 2


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    start=st.integers(0, 3),
    step=st.integers(1, 3),
)
def test_any_view_is_copied_as_it_is(shape: list[int], order: Any, start: int, step: int):
    base = torch.arange(100 + 4**4).as_strided(shape, torch.empty(shape).stride(), 5)
    dims = list(range(len(shape)))
    order.shuffle(dims)
    view = base.permute(dims)[start % base.permute(dims).shape[0] :: step]
    copy = Copies().of(view)
    assert torch.equal(copy, view)
    assert (copy.stride(), copy.storage_offset()) == (view.stride(), view.storage_offset())


# ---- poison ----


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_poison_is_nan_in_every_floating_format(dtype: torch.dtype):
    tensor = torch.zeros(3, 5).to(dtype)
    poison(tensor)
    assert bool(tensor.float().isnan().all())


def test_poison_reaches_what_a_view_does_not_show():
    whole = torch.zeros(4, 4)
    poison(whole[1:3, ::2])
    assert bool(whole.isnan().all())


def test_storages_are_told_apart_by_memory_not_by_object():
    x = torch.ones(4)
    assert storages_in(x[:1]) == storages_in((x[2:], {"a": x}))
    assert storages_in(torch.empty(0)) == set()


def test_a_call_with_another_seed_keeps_everything_else():
    launch = Launch(lambda x, seed: (x, seed), kwargs={"x": 3, "seed": 1})
    assert launch.with_seed(7) == (3, 7)
    assert launch() == (3, 1)
    with pytest.raises(TypeError, match="the call takes no seed by keyword; it takes x"):
        Launch(lambda x: x, kwargs={"x": 3}).with_seed(7)
