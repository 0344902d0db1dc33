"""What those clocks share whose every call is on the target's own buffers, not on rotated copies of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashinfer_perf.timing.target import Target

if TYPE_CHECKING:
    from flashinfer_perf.run.problem import Outputs


class UnrotatedTimer:
    """Base of a clock: the open target, and what its last call returned, which the clock puts into ``_returned``.

    ``CudaGraphTimer`` is none: its last call was on one of several sets, and its rotation is what keeps calls cold.
    """

    def __init__(self) -> None:
        self._target: Target | None = None
        self._returned: Any = None

    @property
    def target(self) -> Target:
        """What is timed, between ``open`` and ``close``."""
        assert self._target is not None, "open() first"
        return self._target

    def open(self, target: Target) -> None:
        """The first thing that a clock does on opening."""
        self._target = target

    def last_outputs(self) -> Outputs:
        return self.target.launch.outputs(self._returned)

    @property
    def cache_description(self) -> str:
        return self.target.cache.description

    def close(self) -> None:
        """Lets go of the target and of the last call's outputs."""
        self._target = self._returned = None
