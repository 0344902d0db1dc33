"""From tokens to typed flags, with argparse for the grammar.

argparse only finds out which texts belong to which flag. Values are converted and checked later, and only for the
flags that the routine reads (``core.case``).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import FlagSpec, convert, did_you_mean
from flashinfer_perf.core.listing import listed


@dataclass(frozen=True)
class Typed:
    """One flag as it was typed: its name, the option's full spelling, and the texts behind it."""

    name: str
    option: str
    values: tuple[str, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        """What to type to say the same again."""
        if len(self.values) == 1 and self.values[0].startswith("-"):
            return (f"{self.option}={self.values[0]}",)
        return (self.option, *self.values)


class Grammar:
    """The flags that one kind of line may carry; ``family`` says whose they are."""

    def __init__(self, specs: Iterable[FlagSpec], family: str = "") -> None:
        self.family = family
        self._options = {option: spec for spec in specs for option in (*spec.options, *spec.off_options)}
        self._parser = self._build()

    def parse(self, tokens: Sequence[str], others: Sequence[Grammar] = ()) -> list[Typed]:
        """The flags of a line, in the order typed.

        Args:
            others: grammars whose flags may have been typed by mistake.

        Raises:
            InvalidInput: for an unknown or ambiguous flag, a missing value, a stray word.
        """
        typed, rest = self.parse_known(tokens)
        if rest:
            option = rest[0].partition("=")[0]
            owners = [other.family for other in others if option in other.options]
            if owners:
                found = listed(owners, "and")
                raise InvalidInput(f"{option} is a flag of {found} routines, not of {self.family} ones")
            raise InvalidInput(not_understood(rest[0], self.options))
        return typed

    def parse_known(self, tokens: Sequence[str], others: Sequence[Grammar] = ()) -> tuple[list[Typed], list[str]]:
        """Like parse, but gives back the tokens that it does not know instead of raising.

        Args:
            others: grammars that the tokens may be meant for. What is spelled out in one of them, or abbreviates an
                older flag of one, is no abbreviation here: ``--m`` is a size, not ``--max_time``.
        """
        expanded = [self._expand(token, others) for token in tokens]
        namespace, rest = self._parser.parse_known_args(expanded, argparse.Namespace(typed=[]))
        return namespace.typed, rest

    @property
    def options(self) -> Iterable[str]:
        """Every spelling, short ones and those that switch off included."""
        return self._options

    def _build(self) -> argparse.ArgumentParser:
        parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for option, spec in self._options.items():
            nargs = 0 if spec.type is bool or spec.counted else "+" if spec.many else None
            parser.add_argument(option, dest=spec.name, action=_Record, nargs=nargs)
        return parser

    def _expand(self, token: str, others: Sequence[Grammar] = ()) -> str:
        """An abbreviated option in full. Older programs' flags win, so that a new flag changes no abbreviation."""
        option, equals, value = token.partition("=")
        if not option.startswith("--") or option == "--" or option in self._options or " " in option:
            return token
        if any(option in other._options for other in others):
            return token
        found, age = self._oldest(option)
        if any(other._oldest(option)[1] < age for other in others):
            return token
        if len({self._options[known].name for known in found}) > 1:
            raise InvalidInput(f"ambiguous flag {option}: it could be {', '.join(sorted(found))}")
        return found[-1] + equals + value if found else token  # of several spellings an alias: it is the older one

    def _oldest(self, prefix: str) -> tuple[list[str], float]:
        """The oldest options that begin like this, and their age; the youngest age of all where there are none."""
        ages = {known: _age(known, spec) for known, spec in self._options.items() if known.startswith(prefix)}
        oldest = min(ages.values(), default=math.inf)
        return [known for known, age in ages.items() if age == oldest], oldest


def not_understood(token: str, known: Iterable[str]) -> str:
    """'unknown flag --bach_size. Did you mean '--batch_size'?', or that a word stands where none is expected."""
    if not token.startswith("-"):
        return f"stray word {token!r}: no flag before it takes it"
    option = token.partition("=")[0]
    return f"unknown flag {option}" + (f".{guess}" if (guess := did_you_mean(option, known)) else "; see --help")


def values_of(typed: Iterable[Typed], specs: Mapping[str, FlagSpec]) -> dict[str, Any]:
    """Typed flags as values; a flag typed twice has its last value, a counted one the number of times.

    Raises:
        InvalidInput: when a text is no value of its flag.
    """
    values: dict[str, Any] = {}
    for flag in typed:
        spec = specs[flag.name]
        if spec.counted:
            values[flag.name] = values.get(flag.name, 0) + 1
        elif spec.type is bool:
            values[flag.name] = flag.option not in spec.off_options
        else:
            values[flag.name] = convert(spec, flag.values)
    return values


def merge(defaults: Iterable[Typed], line: Sequence[Typed]) -> list[Typed]:
    """The flags beside a testlist, with those of a line in place of the ones that it types again."""
    overridden = {flag.name for flag in line}
    return [flag for flag in defaults if flag.name not in overridden] + list(line)


def _age(option: str, spec: FlagSpec) -> int:
    """Our ``--no-…`` forms are younger than any flag, whoever's flag they negate."""
    return int(spec.since) + 10 * option.startswith("--no-")


class _Record(argparse.Action):
    """Keeps every occurrence in order."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        texts = (values,) if isinstance(values, str) else tuple(values or ())
        if self.nargs != 0 and not texts:
            parser.error(f"{option_string}: '--' is no value")  # older versions of argparse drop it
        namespace.typed.append(Typed(self.dest, option_string or "", texts))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message.removeprefix("argument "))
