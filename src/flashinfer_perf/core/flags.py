"""Flags as typed fields of frozen dataclasses.

A family of routines is described by one dataclass. Parser, ``--help``, CSV columns, validation, README tables and the
repro command are derived from its fields; nothing about a flag is written down a second time.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flashinfer_perf.core.dtypes import DType
from flashinfer_perf.core.errors import InvalidInput


class Since(enum.IntEnum):
    """Whose flag it is. Abbreviations of an older program's flags keep their meaning when we add more."""

    UPSTREAM_0_6_2 = 0
    UPSTREAM_0_6_18 = 1
    OURS = 2


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class FlagSpec:
    """All that is known of one flag."""

    name: str
    type: type
    help: str
    default: Any = REQUIRED
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    above: float | None = None
    short: str = ""
    aliases: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()
    many: bool = False
    counted: bool = False
    identity: bool = True
    per_process: bool = False
    since: Since = Since.UPSTREAM_0_6_2
    parse: Any = None
    metavar: str = ""
    unheeded: str = ""

    @property
    def option(self) -> str:
        """The long option: ``--head_dim_qk``."""
        return f"--{self.name}"

    @property
    def options(self) -> tuple[str, ...]:
        """Every spelling that sets it."""
        short = (f"-{self.short}",) if self.short else ()
        return (self.option, *self.aliases, *short)

    @property
    def off_options(self) -> tuple[str, ...]:
        """Every spelling that switches a boolean off."""
        return (f"--no-{self.name}", *self.negations) if self.type is bool else ()

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


def flag(
    default: Any = REQUIRED,
    *,
    help: str,
    choices: Sequence[Any] = (),
    minimum: float | None = None,
    above: float | None = None,
    short: str = "",
    aliases: Sequence[str] = (),
    negations: Sequence[str] = (),
    counted: bool = False,
    identity: bool = True,
    per_process: bool = False,
    since: Since = Since.UPSTREAM_0_6_2,
    parse: Any = None,
    metavar: str = "",
    unheeded: str = "",
) -> Any:
    """Declares a field of a flags dataclass. ``minimum`` is inclusive, ``above`` exclusive.

    ``parse`` turns the typed text into the value where the annotated type's own constructor cannot; ``identity=False``
    keeps the flag out of the case id; ``per_process`` flags count on the command line only, not on a testlist's line;
    ``unheeded`` is what an [INFO] line says of a backend that ignores the flag, where a warning would be too much.
    """
    details = dict(
        help=help,
        choices=tuple(choices),
        minimum=minimum,
        above=above,
        short=short,
        aliases=tuple(aliases),
        negations=tuple(negations),
        counted=counted,
        identity=identity,
        per_process=per_process,
        since=since,
        parse=parse,
        metavar=metavar,
        unheeded=unheeded,
    )
    return field(default=default, kw_only=True, metadata={"flag": details})


def backends_flag(since: Since = Since.UPSTREAM_0_6_2) -> Any:
    """The field ``backends`` that every family has, at the place where upstream's Namespace line shows it."""
    text = "Backends to run, one after the other. Default: the first of the routine's that can run."
    return flag((), identity=False, metavar="NAME", help=text, since=since)


@functools.cache
def specs_of(flags: Any) -> Mapping[str, FlagSpec]:
    """The flags of a dataclass, by name, in the order of its fields."""
    hints = typing.get_type_hints(flags)
    return types.MappingProxyType({f.name: _spec(f, hints[f.name]) for f in dataclasses.fields(flags)})


def _spec(declared: dataclasses.Field[Any], hint: Any) -> FlagSpec:
    many = typing.get_origin(hint) is tuple
    if many:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return FlagSpec(name=declared.name, type=hint, default=declared.default, many=many, **declared.metadata["flag"])


def convert(spec: FlagSpec, texts: Sequence[str]) -> Any:
    """The typed texts of one flag as its value.

    Raises:
        InvalidInput: naming the flag, the text and what is allowed.
    """
    if spec.many:
        return tuple(_convert_one(spec, text) for text in texts)
    return _convert_one(spec, texts[0])


def _convert_one(spec: FlagSpec, text: str) -> Any:
    value = _read(spec, text)
    if spec.choices and value not in spec.choices:
        raise InvalidInput(not_a_choice(spec.option, text, [str(choice) for choice in spec.choices]))
    if spec.minimum is not None and not value >= spec.minimum:
        raise InvalidInput(f"{spec.option} must be at least {spec.minimum}, not {text}")
    if spec.above is not None and not value > spec.above:
        raise InvalidInput(f"{spec.option} must be above {spec.above}, not {text}")
    return value


def _read(spec: FlagSpec, text: str) -> Any:
    if spec.parse is not None:
        try:
            return spec.parse(text)
        except ValueError as error:
            raise InvalidInput(f"{spec.option}: {error}") from None
    if spec.type is DType:
        return _read_dtype(spec, text)
    try:
        value = spec.type(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[spec.type]
        hint = "; sweeps in braces belong in a testlist, unquoted" if text.startswith("{") else ""
        raise InvalidInput(f"{spec.option} takes {wanted}, not {text!r}{hint}") from None
    if spec.type is float and not math.isfinite(value):
        raise InvalidInput(f"{spec.option} takes a finite number, not {text!r}")
    return value


def _read_dtype(spec: FlagSpec, text: str) -> DType:
    try:
        return DType(text)
    except ValueError:
        allowed = [str(choice) for choice in spec.choices or DType]
        raise InvalidInput(not_a_choice(spec.option, text, allowed)) from None


def not_a_choice(thing: str, text: str, allowed: Iterable[str]) -> str:
    """'--sf_layout: 8x8 is not one of 128x4, 8x4, linear. Did you mean 8x4?'"""
    allowed = list(allowed)
    guess = did_you_mean(text, allowed)
    return f"{thing}: {text!r} is not one of {', '.join(allowed)}{'.' * bool(guess)}{guess}"


def did_you_mean(text: str, allowed: Iterable[str]) -> str:
    """' Did you mean '8x4'?', or nothing when nothing is close."""
    allowed = list(allowed)
    close = difflib.get_close_matches(text, allowed, n=1) or [name for name in allowed if text and text in name]
    return f" Did you mean {close[0]!r}?" if close else ""


F = TypeVar("F")


def build(flags: Callable[..., F], specs: Mapping[str, FlagSpec], typed: Mapping[str, Any]) -> F:
    """An instance with every field given: typed values, else the default of ``specs``, else None.

    Raises:
        InvalidInput: when a required flag of ``specs`` was not typed; all that are missing are named.
    """
    missing = [spec.option for name, spec in specs.items() if spec.required and name not in typed]
    if missing:
        raise InvalidInput(f"missing required {'flag' if len(missing) == 1 else 'flags'} {', '.join(missing)}")
    values = {name: _default(specs.get(name, spec)) for name, spec in specs_of(flags).items()}
    return flags(**{**values, **typed})


def _default(spec: FlagSpec) -> Any:
    return None if spec.required else spec.default


def shown(value: Any) -> Any:
    """A value as the Namespace line, the CSV and JSON show it: dtypes by name, tuples as lists."""
    if isinstance(value, DType):
        return value.value
    if isinstance(value, tuple):
        return [shown(item) for item in value]
    return value
