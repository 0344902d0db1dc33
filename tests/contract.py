"""Contracts: an attribute of an installed library, replaced by a stand-in that accepts what the library declares.

    with contract("flashinfer.norm.fused_add_rmsnorm_quant") as kernel:
        backend.prepare(flags, problem)()
    assert kernel.call["enable_pdl"] is False

Libraries wrap their functions in decorators that take ``*args, **kwargs`` and would swallow any misspelt argument, so
the stand-in has the signature of the innermost callable that spells its parameters out. A call has to fit it (and one
of the typing overloads, where there are any), its values have to fit the annotations: Literals, tensors, numbers, None.
A method that hands its keywords to a private implementation (``plan(**kwargs)`` to ``_plan_impl``) has that one's.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from flashinfer_perf import lazy
from tests.declarations import ContractViolation, conforms, declaration_of, explicit_layer, explicit_layers

COVERED: set[tuple[str, str]] = set()
"""(routine, backend) pairs with a contract test, as the test modules imported so far declare them."""


def covers(routine: str, *backends: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares of a test that it is the contract test of these backends."""

    def declare(test: Callable[..., Any]) -> Callable[..., Any]:
        COVERED.update((routine, backend) for backend in backends)
        return test

    return declare


@dataclass(frozen=True)
class Gives:
    """A result of a stand-in: a tensor of zeros of the documented shape and number format."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Extras:
    """What a method gives that takes ``*args`` for a custom kernel, and how many of these each call has to pass.

    They are in ``call["args"]``. Without this there may be none.
    """

    returns: Any
    count: int


@contextlib.contextmanager
def contract(path: str, returns: Any = None, **members: Any) -> Iterator[Any]:
    """Replaces what a dotted path names, for as long as the block lasts.

    Args:
        path: of a function, or of a class.
        returns: what a call of the function gives: None, a ``Gives``, a tuple of them, or a function of the keyword
            arguments of the call that computes it (and may write into them, as a kernel does).
        members: of a class, the methods that may be called, each with what it gives; and the properties and
            attributes that may be read, each with its value.

    Yields:
        the ``Contract`` of a function, the ``ClassContract`` of a class.
    """
    owner, name = _resolve(path)
    original = getattr(owner, name)
    stand_in = ClassContract(original, members) if isinstance(original, type) else Contract(original, returns)
    with contextlib.ExitStack() as restore:
        for holder in (owner, *_lazy_modules_of(owner)):
            _replace(restore, holder, name, stand_in)
        yield stand_in


class Contract:
    """A function's stand-in. ``calls`` holds the arguments of each call, by parameter name, defaults left out."""

    def __init__(self, original: Callable[..., Any], returns: Any = None, *, method: bool = False) -> None:
        self._returns, extras = (returns.returns, returns.count) if isinstance(returns, Extras) else (returns, 0)
        self._declaration = declaration_of(explicit_layer(original), _added_parameters(original), method, extras)
        self._overloads = [declaration_of(overload, (), method, extras) for overload in _overloads(original)]
        self.__name__ = getattr(original, "__name__", repr(original))
        self.__signature__ = self._declaration.signature
        self.calls: list[dict[str, Any]] = []
        self._is_backend_supported = getattr(original, "is_backend_supported", None)
        if self._is_backend_supported and not original.has_backend_choices():  # type: ignore[attr-defined]
            self._is_backend_supported = None

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the only call."""
        assert len(self.calls) == 1, f"{self.__name__} was called {len(self.calls)} times"
        return self.calls[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self.admit(args, kwargs)
        self.calls.append(arguments)
        result = _produce(self._returns, arguments)
        promised = self._declaration.hints.get("return", Any)
        if not conforms(result, promised):
            raise ContractViolation(f"{self.__name__} gives {promised}, the test's stand-in gave {result!r}")
        return result

    def admit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by parameter name. Raises ContractViolation when the library does not declare such a call."""
        arguments = self._declaration.admit(args, kwargs)
        if self._overloads:
            refusals = [overload.refusal(args, kwargs) for overload in self._overloads]
            if all(refusals):
                raise ContractViolation(f"{self.__name__} fits no overload: {'; '.join(map(str, refusals))}")
        backend = arguments.get("backend", "auto")
        if self._is_backend_supported and backend != "auto" and not self._is_backend_supported(backend):
            raise ContractViolation(f"{self.__name__} has no backend {backend!r}")
        return arguments


class ClassContract:
    """A class's stand-in; ``instances`` are those made so far."""

    def __init__(self, original: type, members: dict[str, Any]) -> None:
        self._original, self._members = original, members
        self.instances: list[Instance] = []

    @property
    def instance(self) -> Instance:
        """The only one."""
        assert len(self.instances) == 1, f"{self._original.__name__} was made {len(self.instances)} times"
        return self.instances[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Instance:
        self.instances.append(Instance(self._original, self._members, args, kwargs))
        return self.instances[-1]


class Instance:
    """``made_with`` holds the constructor's arguments; each method that the test gives results for is a Contract."""

    def __init__(self, original: type, members: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.made_with = Contract(original.__init__, method=True).admit(args, kwargs)  # type: ignore[misc]
        for name, given in members.items():
            setattr(self, name, _member(original, name, given))


def _member(original: type, name: str, given: Any) -> Any:
    """What stands in for a method; the value of a property, or of an attribute that the constructor sets."""
    declared = getattr(original, name, None)
    if isinstance(declared, property):
        promised = typing.get_type_hints(declared.fget).get("return", Any)
        if not conforms(given, promised):
            raise ContractViolation(f"{original.__name__}.{name} is {promised}, the test's value is {given!r}")
        return given
    if declared is None and name in explicit_layer(original.__init__).__code__.co_names:  # type: ignore[misc]
        return given
    return Contract(_implementation(original, name), given, method=True)


def _implementation(original: type, name: str) -> Callable[..., Any]:
    """A method, or the private one that it hands its keywords to."""
    private = getattr(original, f"_{name}_impl", None)
    public: Callable[..., Any] = getattr(original, name)
    return private if private and not explicit_layers(public) else public


def _added_parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """What known decorators add to a function's own: FlashInfer's backend_requirement takes ``skip_check``."""
    if not hasattr(function, "is_backend_supported"):
        return ()
    return (inspect.Parameter("skip_check", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool),)


def _overloads(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    if not hasattr(typing, "get_overloads"):  # Python 3.10
        return []
    return list(typing.get_overloads(explicit_layer(function)))


def _produce(returns: Any, arguments: dict[str, Any]) -> Any:
    if isinstance(returns, Gives):
        return torch.zeros(returns.shape, dtype=returns.dtype)
    if isinstance(returns, tuple):
        return tuple(_produce(part, arguments) for part in returns)
    return returns(**arguments) if callable(returns) else returns


def _resolve(path: str) -> tuple[Any, str]:
    """The module or class that holds an attribute, and the attribute's name."""
    owner_path, _, name = path.rpartition(".")
    try:
        return importlib.import_module(owner_path), name
    except ModuleNotFoundError:
        outer, attribute = _resolve(owner_path)
        return getattr(outer, attribute), name


def _lazy_modules_of(owner: Any) -> list[lazy.LazyModule]:
    """The package's lazy stands-ins for a module: they keep what was once read from it."""
    found = [value for value in vars(lazy).values() if isinstance(value, lazy.LazyModule)]
    return [module for module in found if vars(module)["_name"] == getattr(owner, "__name__", "")]


def _replace(restore: contextlib.ExitStack, holder: Any, name: str, value: Any) -> None:
    if name in vars(holder):
        restore.callback(setattr, holder, name, vars(holder)[name])
    else:
        restore.callback(delattr, holder, name)
    setattr(holder, name, value)
