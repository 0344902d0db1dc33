"""What a timer times: a launch, and what has to be put right before each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashinfer_perf.run.launch import Launch, poison, storages_in, tensors_in
from flashinfer_perf.run.ranks import Ranks
from flashinfer_perf.timing.cache import CachePolicy

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Target:
    """A launch with its surroundings.

    Attributes:
        launch: on copies of its own of what it mutates.
        restores: (copy, original) of every input that the call changes.
        cache: brings the cache into the state that the numbers are for.
        ranks: the processes that make the call together.
        line_up: enqueues what ends on the devices of all ranks at once; None where there is nothing to line up.
    """

    launch: Launch
    restores: Sequence[tuple[torch.Tensor, torch.Tensor]]
    cache: CachePolicy
    ranks: Ranks
    line_up: Callable[[], Any] | None = None

    def make_ready(self) -> None:
        """Everything that belongs before a call and outside its time."""
        for copy, original in self.restores:
            copy.copy_(original)
        self.cache.prepare()
        self.ranks.barrier()

    def start_together(self) -> None:
        """Enqueues what ends on all ranks' devices at once, before the start mark of a call or of one of its phases."""
        if self.line_up is not None:
            self.line_up()

    def everywhere(self, happened: bool) -> bool:
        """Whether it happened on every rank: all must take a sample again, or none."""
        return all(self.ranks.all_gather(happened))

    def poison_outputs(self) -> None:
        """Overwrites the outputs that are no inputs, so that a call that writes nothing is found out."""
        poison_outputs(self.launch, self.restores)

    def outputs_of(self, returned: Any) -> dict[str, torch.Tensor]:
        """Outputs of a call, by name."""
        return dict(self.launch.outputs(returned))


def poison_outputs(launch: Launch, restores: Sequence[tuple[torch.Tensor, torch.Tensor]], returned: Any = None) -> None:
    """Overwrites what a launch writes, but for restored inputs, and what an earlier call ``returned`` outside of it.

    The last thing that a clock does on opening: what its warm-up left must not pass for the output of a timed call.
    """
    restored, arguments = storages_in([copy for copy, _ in restores]), storages_in(launch.arguments())
    written = [tensor for tensor in launch.written() if not storages_in(tensor) & restored]
    fresh = [tensor for tensor in tensors_in(returned) if not storages_in(tensor) & arguments]
    for tensor in written + fresh:
        poison(tensor)
