"""A problem: named tensors on a device, the truth about them, and how much work a kernel has with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flashinfer_perf.core.record import Finding
from flashinfer_perf.core.work import Work
from flashinfer_perf.run.events import Message, Severity

if TYPE_CHECKING:
    import torch

    from flashinfer_perf.run.launch import Launch
    from flashinfer_perf.run.ranks import Ranks

Outputs = Mapping[str, "torch.Tensor"]


class Check(Protocol):
    """Judges one named output. NaN never passes."""

    def judge(self, name: str, actual: Outputs, expected: Mapping[str, Any]) -> Finding:
        """Compares an output with the truth."""
        ...

    def agree(self, name: str, actual: Outputs, other: Outputs) -> Finding | None:
        """Compares an output with another backend's; None where two right answers need not be equal."""
        ...

    def probe(self, name: str, launch: Launch, expected: Mapping[str, Any]) -> Finding | None:
        """Judges what one output alone cannot show, by further calls; None where nothing is left to judge."""
        ...


REMARK: Any = object()


def no_remarks(backend: str, outputs: Outputs) -> Sequence[str]:
    """What most routines have to say about outputs beside the check."""
    return ()


@dataclass(frozen=True)
class Shown:
    """A line for the curious: ``[VVERBOSE] label = value``, or at level 1 ``[VERBOSE] label: value``; a remark is a
    label without a value. The documents print some of those for -v as ``[INFO]``, and at level 0 always.
    """

    label: str
    value: Any = REMARK
    level: int = 2
    as_info: bool = False

    @property
    def text(self) -> str:
        if self.value is REMARK:
            return self.label
        return f"{self.label}: {self.value}" if self.level == 1 else f"{self.label} = {self.value!r}"


def messages(lines: Iterable[Shown], verbosity: int) -> Iterator[Message]:
    """Lines for the sinks, which print [INFO] whatever the verbosity."""
    for line in lines:
        if not line.as_info:
            yield Message(Severity.VERBOSE if line.level == 1 else Severity.VVERBOSE, line.text)
        elif verbosity >= line.level:
            yield Message(Severity.INFO, line.text)


@dataclass(frozen=True)
class Problem:
    """What a routine makes of a case.

    Attributes:
        tensors: by name; backends read them and must not change them, except through ``Launch.mutates``.
        reference: called with the tensors as keywords; gives the truth of each output in fp32 or fp64, by name.
        work: FLOPs and bytes by the documented formula.
        checks: one for each output; the reference, the checks and a launch's outputs share their names.
        shown: lines for -v and -vv, in order.
        closing: lines below the results, where there are any.
        remarks: of a backend's name and the outputs of its first call: lines for -vv with --refcheck.
        facts: values for the columns that the routine declares.
        phase_work: the work of the phases of a launch that has several, by their names.
        validated: a flag of the routine's own asks for what --refcheck does.
    """

    tensors: Mapping[str, torch.Tensor]
    reference: Callable[..., Mapping[str, Any]]
    work: Work
    checks: Mapping[str, Check]
    ranks: Ranks
    shown: Sequence[Shown] = ()
    closing: Sequence[Shown] = ()
    remarks: Callable[[str, Outputs], Iterable[str]] = no_remarks
    facts: Mapping[str, Any] = field(default_factory=dict)
    phase_work: Mapping[str, Work] = field(default_factory=dict)
    validated: bool = False

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def truth(self) -> Mapping[str, Any]:
        """The reference's outputs, computed with full-precision products."""
        from flashinfer_perf.run.reference_mode import full_precision

        with full_precision():
            return self.reference(**self.tensors)
