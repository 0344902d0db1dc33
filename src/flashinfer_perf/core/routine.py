"""Routines and their backends, as declared by decorated functions.

    @routine("rmsnorm", flags=NormFlags, uses=("batch_size", "hidden_size", ...))
    def rmsnorm(case: NormFlags, make: TensorFactory) -> Problem: ...

    @rmsnorm.backend("cuda", requires=[...], documented="7.5 8.0")
    def flashinfer_cuda(case: NormFlags, problem: Problem) -> Launch: ...

The declaration is all there is: parser, help, validation, CSV columns, lists and the README are derived from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import FlagSpec, not_a_choice, specs_of
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.core.requirement import Requirement


@dataclass(frozen=True)
class Fact:
    """A result column of a routine: a number or text that its problem, launch or timer fills."""

    name: str
    help: str


GENERAL_FACTS = (
    Fact("prepare_ms", "time to prepare the call: planning, packing, compiling"),
    Fact("first_call_ms", "time of the first call, which may compile or load"),
)
"""Facts that the engine itself finds out about every backend."""


@dataclass(frozen=True)
class Rule:
    """What a routine demands of its flags, whichever backend runs; ``text`` says it, with ``{flag}`` in braces."""

    met: Callable[[Any], bool]
    text: str


@dataclass(frozen=True)
class narrowed:  # noqa: N801  (reads like the flag name that it stands for)
    """A flag that a routine reads, with a default or limits of its own."""

    name: str
    changes: Mapping[str, Any]

    def __init__(self, name: str, **changes: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "changes", changes)


@dataclass(frozen=True)
class Backend:
    """One way to compute a routine."""

    name: str
    prepare: Callable[..., Any]
    requires: tuple[Requirement, ...]
    documented: tuple[str, ...]
    """Compute capabilities for which the seed's matrix lists it: the documented minimum."""
    ignores: tuple[str, ...]
    """Flags of the routine that have no effect on this backend."""
    state: Callable[[], AbstractContextManager[Any]]
    """What it needs set in the process (a library's module global): entered around prepare, check and timing."""

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.prepare) or "").partition("\n")[0]

    def unmet(self, machine: Machine, flags: Any = None) -> tuple[Requirement, str] | None:
        """The first requirement that is not met, with the reason."""
        for requirement in self.requires:
            if reason := requirement.unmet(machine, flags):
                return requirement, reason
        return None


@dataclass
class Routine:
    """A kernel's mathematics: flags, inputs, reference, work and checks; backends are added by decoration."""

    name: str
    flags: type
    make: Callable[..., Any]
    specs: Mapping[str, FlagSpec]
    """The flags that it reads, with its own defaults and limits."""
    facts: tuple[Fact, ...]
    rules: tuple[Rule, ...]
    label: str
    """What ``[INFO] Running …`` calls it."""
    renamed: Mapping[str, str]
    """Former names of backends and their present ones."""
    several_ranks: bool = False
    """It exchanges data between processes; a launcher starts them."""
    backends: dict[str, Backend] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return self.flags.family  # type: ignore[attr-defined, no-any-return]

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    def backend(
        self,
        name: str,
        *,
        requires: Sequence[Requirement] = (),
        documented: str = "",
        ignores: Sequence[str] = (),
        state: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declares a backend. The order of declaration is the order of preference; the first one is the default."""

        def declare(prepare: Callable[..., Any]) -> Callable[..., Any]:
            if name in self.backends:
                raise ValueError(f"routine {self.name!r} has a backend {name!r} already")
            self.backends[name] = Backend(
                name, prepare, tuple(requires), tuple(documented.split()), tuple(ignores), state
            )
            return prepare

        return declare

    def find_backend(self, name: str) -> Backend:
        """By its name, or by a former one. Raises InvalidInput naming the ones there are."""
        name = self.renamed.get(name, name)
        if name not in self.backends:
            raise InvalidInput(not_a_choice(f"--backends of {self.name}", name, self.backends))
        return self.backends[name]

    def check_rules(self, flags: Any) -> None:
        """Raises InvalidInput for the first rule that the flags break."""
        for rule in self.rules:
            if not rule.met(flags):
                raise InvalidInput(f"{self.name}: {rule.text.format_map(_values(flags))}")


_ROUTINES: dict[str, Routine] = {}


def routine(
    name: str,
    *,
    flags: type,
    uses: Iterable[str | narrowed],
    facts: Sequence[Fact] = (),
    rules: Sequence[Rule] = (),
    label: str = "",
    renamed: Mapping[str, str] = MappingProxyType({}),
    several_ranks: bool = False,
) -> Callable[[Callable[..., Any]], Routine]:
    """Declares a routine: the function below makes its problem from ``(case, make)``."""

    def declare(make: Callable[..., Any]) -> Routine:
        if name in _ROUTINES:
            raise ValueError(f"there is a routine {name!r} already, in {_ROUTINES[name].make.__module__}")
        specs = dict(_use(flags, use) for use in (*uses, "backends"))
        declared = Routine(
            name, flags, make, specs, tuple(facts), tuple(rules), label or _label(name), renamed, several_ranks
        )
        _ROUTINES[name] = declared
        return declared

    return declare


def declared_routines() -> Mapping[str, Routine]:
    """All that were declared so far, by name, family by family."""
    ordered = sorted(_ROUTINES.values(), key=lambda declared: declared.family)
    return {declared.name: declared for declared in ordered}


@contextlib.contextmanager
def declared_temporarily() -> Iterator[None]:
    """Routines and backends declared inside are forgotten at the end; for tests."""
    forget = _rollback()
    try:
        yield
    finally:
        forget()


@contextlib.contextmanager
def declared_whole() -> Iterator[None]:
    """Routines and backends declared inside are forgotten if it fails: half a plug-in is none."""
    forget = _rollback()
    try:
        yield
    except BaseException:
        forget()
        raise


def _rollback() -> Callable[[], None]:
    """Forgets what will have been declared since now."""
    before = {name: dict(declared.backends) for name, declared in _ROUTINES.items()}

    def forget() -> None:
        for name in list(_ROUTINES):
            if name in before:
                _ROUTINES[name].backends = before[name]
            else:
                del _ROUTINES[name]

    return forget


def _use(flags: type, use: str | narrowed) -> tuple[str, FlagSpec]:
    use = narrowed(use) if isinstance(use, str) else use
    return use.name, dataclasses.replace(specs_of(flags)[use.name], **use.changes)


def _label(name: str) -> str:
    """'bmm_fp8' -> 'testBmmFp8'."""
    return "test" + "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _values(flags: Any) -> dict[str, Any]:
    """As messages show them: a flag that has no value was not given."""
    values = {f.name: getattr(flags, f.name) for f in dataclasses.fields(flags)}
    return {name: "not given" if value is None else value for name, value in values.items()}
