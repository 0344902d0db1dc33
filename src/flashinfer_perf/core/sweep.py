"""Sweeps: ``--batch_size {1,16,64} --k {4096,7168}`` is six cases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.lexer import Word

MAX_CASES = 100_000
"""More from one line is a slip of the pen: at 10 ms each they would run for a quarter of an hour."""


def expand(words: Sequence[Word]) -> list[tuple[str, ...]]:
    """The cross product over all unquoted words in braces, the last one varying fastest.

    Raises:
        InvalidInput: for an empty value, or more than MAX_CASES cases.
    """
    axes = [_values(word) for word in words]
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > MAX_CASES:
        raise InvalidInput(f"this sweep has {count} cases; {MAX_CASES} at most")
    return list(itertools.product(*axes))


def _values(word: Word) -> tuple[str, ...]:
    if word.quoted or not (word.text.startswith("{") and word.text.endswith("}")):
        return (word.text,)
    values = tuple(value.strip() for value in word.text[1:-1].split(","))
    if not all(values):
        raise InvalidInput(f"empty value in the sweep {word.text}")
    return values
