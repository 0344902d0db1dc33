"""What a library declares of a call: the parameters that it spells out, and the annotations of their values."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


class ContractViolation(AssertionError):
    """A call that the library's declaration does not admit, or a result that it does not promise."""


@dataclass(frozen=True)
class Declaration:
    """What a library declares of one call."""

    name: str
    signature: inspect.Signature
    hints: dict[str, Any]
    extras: int
    """How many positional arguments its ``*args`` gets."""

    def admit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if refusal := self.refusal(args, kwargs):
            raise ContractViolation(refusal)
        return dict(self.signature.bind(*args, **kwargs).arguments)

    def refusal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why a call is not admitted, or None."""
        try:
            arguments = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            return f"{self.name}: {error}; it declares {', '.join(self.signature.parameters)}"
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL and len(arguments.get(name, ())) != self.extras:
                return f"{self.name}: {self.extras} arguments for *{name} are due, not {arguments.get(name, ())}"
        for name, value in arguments.items():
            parameter = self.signature.parameters[name]
            hint = Any if parameter.kind is parameter.VAR_POSITIONAL else self.hints.get(name, Any)
            by_default_none = value is None and parameter.default is None
            if not by_default_none and not conforms(value, hint):
                return f"{self.name}: {name} must be {hint}, not {value!r}"
        return None


def explicit_layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """The innermost of a callable and what its decorators wrap that takes no ``**kwargs``, and not only ``*args``.

    Raises:
        TypeError: when there is none: a stand-in would accept anything.
    """
    explicit = explicit_layers(function)
    if not explicit:
        raise TypeError(f"no layer of {function!r} spells its parameters out; a contract with it would check nothing")
    return explicit[-1]


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation. What cannot be checked fits."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is typing.Literal:
        return any(type(value) is type(allowed) and value == allowed for allowed in args)
    if origin in (typing.Union, types.UnionType):
        return any(conforms(value, arm) for arm in args)
    if origin is typing.Annotated:
        return conforms(value, args[0])
    if origin is tuple and args:
        arms = [args[0]] * len(value) if isinstance(value, tuple) and args[1:] == (...,) else args
        return isinstance(value, tuple) and len(value) == len(arms) and all(map(conforms, value, arms))
    if origin is list and args:
        return isinstance(value, list) and all(conforms(item, args[0]) for item in value)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    plain = hint if origin is None else origin
    return not isinstance(plain, type) or getattr(plain, "_is_protocol", False) or isinstance(value, plain)


def declaration_of(
    function: Callable[..., Any], added: tuple[inspect.Parameter, ...], method: bool, extras: int
) -> Declaration:
    """What a function declares, with these parameters more; of a method without its ``self``."""
    parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())[method:]
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # annotations that only a type checker can read
        hints = {}
    hints |= {parameter.name: parameter.annotation for parameter in added}
    name = getattr(function, "__qualname__", repr(function))
    return Declaration(name, inspect.Signature([*parameters, *added]), hints, extras)


def explicit_layers(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Of a callable and what its decorators wrap, those that a contract can be made with, outermost first."""
    return [layer for layer in _layers(function) if _is_explicit(layer)]


def _layers(function: Any) -> Iterator[Callable[..., Any]]:
    """A callable and what it wraps, outermost first: functools.wraps, methods, torch's custom ops, Triton's kernels."""
    seen: set[int] = set()
    while callable(function) and id(function) not in seen:
        seen.add(id(function))
        yield function
        wrapped = (getattr(function, name, None) for name in ("__wrapped__", "__func__", "_init_fn", "fn"))
        function = next((layer for layer in wrapped if layer is not None), None)


def _is_explicit(function: Callable[..., Any]) -> bool:
    try:
        kinds = [p.kind for p in inspect.signature(function, follow_wrapped=False).parameters.values()]
    except (TypeError, ValueError):
        return False
    return inspect.Parameter.VAR_KEYWORD not in kinds and kinds != [inspect.Parameter.VAR_POSITIONAL]
