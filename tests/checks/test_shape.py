from __future__ import annotations

import pytest
import torch

from flashinfer_perf.checks.shape import wrong_shape


def test_equal_shapes_are_fine_whatever_the_formats():
    assert wrong_shape("out", torch.ones(2, 3, dtype=torch.int8), torch.zeros(2, 3)) is None


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), (0,), ()])
def test_another_shape_is_a_failure_that_names_both(shape: tuple[int, ...]):
    finding = wrong_shape("out", torch.ones(shape), torch.zeros(2, 3))
    assert finding is not None
    assert (finding.output, finding.passed) == ("out", False)
    assert finding.detail == f"shape {shape} instead of (2, 3)"
    assert (finding.elements, finding.differing) == (6, 6)
