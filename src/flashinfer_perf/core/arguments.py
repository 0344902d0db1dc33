"""From tokens to typed flags, with argparse for the grammar.

argparse only finds out which texts belong to which flag. Values are converted and checked later, and only for the
flags that the routine reads (``core.case``).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.flags import FlagSpec, convert, not_a_choice


@dataclass(frozen=True)
class Typed:
    """One flag as it was typed: its name, the option's full spelling, and the texts behind it."""

    name: str
    option: str
    values: tuple[str, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        """What to type to say the same again."""
        if any(value.startswith("-") and not _is_number(value) for value in self.values):
            return (f"{self.option}={self.values[0]}",)
        return (self.option, *self.values)


class Grammar:
    """The flags that one kind of line may carry."""

    def __init__(self, specs: Iterable[FlagSpec]) -> None:
        self.specs: Mapping[str, FlagSpec] = {spec.name: spec for spec in specs}
        self._options = {option: spec for spec in self.specs.values() for option in (*spec.options, *spec.off_options)}
        self._parser = self._build()

    def parse(self, tokens: Sequence[str]) -> list[Typed]:
        """The flags of a line, in the order typed.

        Raises:
            InvalidInput: for an unknown or ambiguous flag, a missing value, a stray word.
        """
        typed, rest = self.parse_known(tokens)
        if rest:
            raise InvalidInput(self._unknown(rest[0]))
        return typed

    def parse_known(self, tokens: Sequence[str]) -> tuple[list[Typed], list[str]]:
        """Like parse, but gives back the tokens that it does not know instead of raising."""
        expanded = [self._expand(token) for token in tokens]
        namespace, rest = self._parser.parse_known_args(expanded, argparse.Namespace(typed=[]))
        return namespace.typed, rest

    def knows(self, option: str) -> bool:
        """Whether the option, perhaps abbreviated or with '=value', is one of this grammar's."""
        return option.partition("=")[0] in self._options or self._expand(option) != option

    def _build(self) -> argparse.ArgumentParser:
        parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for spec in self.specs.values():
            takes_none = spec.type is bool or spec.counted
            parser.add_argument(
                *spec.options,
                *spec.off_options,
                dest=spec.name,
                action=_Record,
                nargs=0 if takes_none else "+" if spec.many else None,
            )
        return parser

    def _expand(self, token: str) -> str:
        """An abbreviated option in full. Older programs' flags win, so that a new flag changes no abbreviation."""
        option, equals, value = token.partition("=")
        if not option.startswith("--") or option == "--" or option in self._options or " " in option:
            return token
        matches = [(known, spec) for known, spec in self._options.items() if known.startswith(option)]
        oldest = min((_age(known, spec) for known, spec in matches), default=0)
        found = [known for known, spec in matches if _age(known, spec) == oldest]
        if len(found) > 1:
            raise InvalidInput(f"ambiguous flag {option}: it could be {', '.join(sorted(found))}")
        return found[0] + equals + value if found else token

    def _unknown(self, token: str) -> str:
        if not token.startswith("-"):
            return f"stray word {token!r}: no flag before it takes it"
        return not_a_choice_of_flags(token.partition("=")[0], self._options)


def not_a_choice_of_flags(option: str, known: Iterable[str]) -> str:
    """'unknown flag --bach_size. Did you mean '--batch_size'?'"""
    text = not_a_choice("", option, known)
    guess = text[text.rindex(". Did you mean") :] if ". Did you mean" in text else ""
    return f"unknown flag {option}{guess}"


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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _Record(argparse.Action):
    """Keeps every occurrence in order."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        texts = (values,) if isinstance(values, str) else tuple(values or ())
        namespace.typed.append(Typed(self.dest, option_string or "", texts))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message.removeprefix("argument "))


@functools.cache
def grammar_of(*specs: FlagSpec) -> Grammar:
    """The grammar of these flags, built once."""
    return Grammar(specs)
