from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from flashinfer_perf.checks.statistics import cosine, describe, relative_l2, unravel, worst_row_l2

numbers = st.floats(-1e3, 1e3, allow_nan=False).map(lambda value: round(value, 3))
vectors = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30)


def tensors(pairs: list[tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))


@given(pairs=vectors)
def test_relative_l2_is_numpys(pairs: list[tuple[float, float]]):
    actual, expected = tensors(pairs)
    size = np.linalg.norm(expected.numpy())
    assume(size > 0)
    assert relative_l2(actual, expected) == pytest.approx(np.linalg.norm((actual - expected).numpy()) / size)


@given(pairs=vectors)
def test_cosine_is_numpys(pairs: list[tuple[float, float]]):
    actual, expected = tensors(pairs)
    product = np.linalg.norm(actual.numpy()) * np.linalg.norm(expected.numpy())
    assume(product > 0)
    assert cosine(actual, expected) == pytest.approx(float(actual.numpy() @ expected.numpy()) / product, abs=1e-12)


def test_matrices_are_compared_element_by_element():
    actual = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = actual + 0.25
    assert relative_l2(actual, expected) == pytest.approx(relative_l2(actual.flatten(), expected.flatten()))
    assert relative_l2(actual.transpose(0, 2), expected.transpose(0, 2)) == pytest.approx(relative_l2(actual, expected))


def test_zero_tensors_are_equal_to_each_other_and_to_nothing_else():
    zero, one = torch.zeros(3), torch.ones(3)
    assert (relative_l2(zero, zero), cosine(zero, zero)) == (0, 1)
    assert (relative_l2(one, zero), cosine(one, zero)) == (math.inf, 0)
    assert (relative_l2(zero, one), cosine(zero, one)) == (1, 0)


def test_nan_gives_nan_which_is_below_no_bound():
    nan, one = torch.tensor([1.0, math.nan]), torch.ones(2)
    assert not relative_l2(nan, one) <= math.inf
    assert math.isnan(cosine(nan, one))


# ---- rows ----


@given(rows=st.lists(st.tuples(vectors.map(lambda pairs: pairs[:1]), numbers), min_size=1, max_size=6))
def test_the_worst_row_is_numpys(rows: list[tuple[list[tuple[float, float]], float]]):
    actual = torch.tensor([[pairs[0][0], third] for pairs, third in rows], dtype=torch.float64)
    expected = torch.tensor([[pairs[0][1], 1.0] for pairs, _ in rows], dtype=torch.float64)
    ratios = np.linalg.norm((actual - expected).numpy(), axis=1) / np.linalg.norm(expected.numpy(), axis=1)
    assert worst_row_l2(actual, expected) == pytest.approx(ratios.max())


def test_a_row_is_what_lies_along_the_last_dimension():
    expected = torch.ones(2, 3, 4)
    actual = expected.clone()
    actual[1, 2, 3] = 2
    assert worst_row_l2(actual, expected) == 0.5  # of four ones; not of twelve, nor of two
    assert worst_row_l2(actual[1, 2], expected[1, 2]) == 0.5


def test_rows_of_zeros_are_equal_to_themselves_and_to_nothing_else():
    zero, one = torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert worst_row_l2(zero, zero) == 0
    assert worst_row_l2(one, one) == 0
    assert worst_row_l2(one, zero) == math.inf
    assert worst_row_l2(zero, one) == 1


@pytest.mark.parametrize("row", [0, 1])
def test_nan_in_any_row_gives_nan(row: int):
    actual = torch.ones(2, 3)
    actual[row, 1] = math.nan
    assert math.isnan(worst_row_l2(actual, torch.ones(2, 3)))
    assert math.isnan(worst_row_l2(actual, torch.zeros(2, 3)))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (0,)])
def test_without_rows_nothing_is_wrong(shape: tuple[int, ...]):
    assert worst_row_l2(torch.empty(shape), torch.empty(shape)) == 0


def test_describe_is_numpys_with_the_population_deviation():
    tensor = torch.tensor([[1.0, -2.0], [4.0, 0.5]])
    numbers = describe(tensor, (1, 0))
    array = tensor.numpy()
    assert (numbers.minimum, numbers.maximum, numbers.worst) == (-2, 4, 4)
    assert numbers.mean == pytest.approx(array.mean())
    assert numbers.std == pytest.approx(array.std(ddof=0))


@given(shape=st.lists(st.integers(1, 5), max_size=4), position=st.integers(0, 10**6))
def test_unravel_is_numpys(shape: list[int], position: int):
    position %= math.prod(shape)
    assert unravel(position, torch.Size(shape)) == tuple(int(i) for i in np.unravel_index(position, shape))
