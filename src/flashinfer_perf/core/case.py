"""A case: one line of flags, understood."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashinfer_perf.core.arguments import Grammar, Typed, values_of
from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import FlagSpec, build, did_you_mean, shown, specs_of
from flashinfer_perf.core.options import Options
from flashinfer_perf.core.routine import Routine

ID_VERSION = 1
"""Of the canonical forms below. Raise it when they change, so that old ids cannot be taken for new ones."""

PROGRAM = "python3 flashinfer_benchmark.py"


@dataclass(frozen=True)
class Case:
    """What to run: a routine with its flags, the backends asked for, and the general options."""

    routine: Routine
    flags: Any
    options: Options
    backends: tuple[str, ...]
    """As typed, by their present names; empty when the routine's default is to be used."""
    ignored: tuple[str, ...]
    """Flags that were typed though the routine does not read them."""
    repro_command: str
    origin: str = ""
    """'FILE:LINE' of a testlist, '' for the command line."""

    @property
    def case_id(self) -> str:
        """Names what is computed: routine, the flags it reads (defaults omitted) and the seed; nothing else."""
        return _digest({"routine": self.routine.name, "flags": self._identity(), "seed": self.options.random_seed})

    @property
    def method_id(self) -> str:
        """Names how it is timed, defaults omitted."""
        return _digest({name: value for name, value in _changed(self.options).items() if name in METHOD_OPTIONS})

    @property
    def summary(self) -> str:
        """The flags that differ from the routine's defaults: 'batch_size=32 hidden_size=4096'."""
        specs = self.routine.specs
        default = {name for name, spec in specs.items() if getattr(self.flags, name) == spec.default}
        return " ".join(f"{name}={value}" for name, value in self.flag_values().items() if name not in default)

    def flag_values(self) -> dict[str, Any]:
        """The flags that the routine reads, with the values that took effect."""
        return {name: shown(getattr(self.flags, name)) for name, spec in self.routine.specs.items() if spec.identity}

    def _identity(self) -> dict[str, Any]:
        specs = self.routine.specs
        values = {name: getattr(self.flags, name) for name, spec in specs.items() if spec.identity}
        return {name: shown(value) for name, value in values.items() if value != specs[name].default}


METHOD_OPTIONS = (
    "no_cuda_graph",
    "use_cuda_events",
    "num_iters",
    "dry_run_iters",
    "cache",
    "target_precision",
    "max_time",
)


@functools.cache
def line_grammar(family_flags: type) -> Grammar:
    """General flags and those of one family."""
    specs = (*specs_of(Options).values(), *specs_of(family_flags).values())
    return Grammar(specs, family_flags.family)  # type: ignore[attr-defined]


def common_grammar(routines: Mapping[str, Routine]) -> Grammar:
    """General flags and those of every family."""
    families = dict.fromkeys(routine.flags for routine in routines.values())
    return Grammar(spec for flags in (Options, *families) for spec in specs_of(flags).values())


def family_grammars(routines: Mapping[str, Routine]) -> tuple[Grammar, ...]:
    """One for each family of these routines."""
    return tuple(line_grammar(flags) for flags in dict.fromkeys(routine.flags for routine in routines.values()))


def general_flags(tokens: Sequence[str], routines: Mapping[str, Routine]) -> tuple[list[Typed], list[str]]:
    """The general flags among tokens that may be meant for any of these routines, and the other tokens."""
    return _general_grammar().parse_known(tokens, family_grammars(routines))


@functools.cache
def _general_grammar() -> Grammar:
    return Grammar(specs_of(Options).values())


def routine_name(tokens: Sequence[str]) -> str | None:
    """What the last --routine of a line says, whichever family its other flags are of; None without one."""
    typed, _ = _routine_grammar().parse_known(tokens)
    return typed[-1].values[0] if typed else None


@functools.cache
def _routine_grammar() -> Grammar:
    return Grammar([specs_of(Options)["routine"]])


def routine_named(name: str | None, routines: Mapping[str, Routine]) -> Routine:
    """Raises InvalidInput when there is none of that name."""
    if name is None:
        raise InvalidInput("--routine is missing; --list shows all routines")
    if name not in routines:
        raise InvalidInput(
            f"unknown routine {name!r}.{did_you_mean(name, routines)} --list shows all with their backends"
        )
    return routines[name]


def make_case(routine: Routine, typed: Sequence[Typed], origin: str = "") -> Case:
    """A case from its typed flags.

    Only the flags that the routine reads are converted and validated; the others are noted as ignored.

    Raises:
        InvalidInput: naming the first flag that is wrong.
    """
    general, own = specs_of(Options), routine.specs
    options = build(Options, {}, values_of([flag for flag in typed if flag.name in general], general))
    flags: Any = build(routine.flags, own, values_of([flag for flag in typed if flag.name in own], own))
    routine.check_rules(flags)
    backends = tuple(dict.fromkeys(routine.find_backend(name).name for name in getattr(flags, "backends", None) or ()))
    return Case(
        routine=routine,
        flags=flags,
        options=options,
        backends=backends,
        ignored=_ignored(typed, routine, on_a_line=bool(origin)),
        repro_command=repro_command(typed),
        origin=origin,
    )


def repro_command(typed: Sequence[Typed]) -> str:
    """A shell command that says the same again: complete and quoted, without the files that a run reads and writes."""
    general = specs_of(Options)
    kept = [flag for flag in typed if flag.name not in general or _is_about_the_case(general[flag.name])]
    return f"{PROGRAM} {shlex.join(_tokens(kept, general))}"


def _tokens(typed: Sequence[Typed], general: Mapping[str, FlagSpec]) -> Iterator[str]:
    repeats = Counter(flag.name for flag in typed)
    for flag in typed:
        if flag.name in general and general[flag.name].counted:
            times = repeats.pop(flag.name, 0)
            yield from [f"-{general[flag.name].short * times}"] if times else []
        else:
            yield from flag.tokens


def _is_about_the_case(spec: FlagSpec) -> bool:
    return not spec.per_process and spec.name != "repro_command"


def _ignored(typed: Sequence[Typed], routine: Routine, on_a_line: bool) -> tuple[str, ...]:
    """Flags of the family that the routine does not read, and on a testlist's line those that are the run's."""
    general = specs_of(Options)
    takes_effect = {name for name, spec in general.items() if not (on_a_line and spec.per_process)} | set(routine.specs)
    return tuple(name for name in dict.fromkeys(flag.name for flag in typed) if name not in takes_effect)


def _changed(options: Options) -> dict[str, Any]:
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps({"version": ID_VERSION, **content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
