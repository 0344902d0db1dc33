"""Several names in a sentence."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], conjunction: str) -> str:
    """'9.0, 10.0 or 12.0'; empty without names."""
    parts = (", ".join(names[:-1]), *names[-1:])
    return f" {conjunction} ".join(part for part in parts if part)
