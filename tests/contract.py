"""Contracts: an attribute of an installed library, replaced by a stand-in that accepts what the library declares.

    with contract("flashinfer.norm.fused_add_rmsnorm_quant") as kernel:
        backend.prepare(flags, problem)()
    assert kernel.call["enable_pdl"] is False

Libraries wrap their functions in decorators that take ``*args, **kwargs`` and would swallow any misspelt argument, so
the stand-in has the signature of the innermost callable that spells its parameters out. A call has to fit it (and one
of the typing overloads, where there are any), its values have to fit the annotations: Literals, tensors, numbers, None.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from flashinfer_perf import lazy

COVERED: set[tuple[str, str]] = set()
"""(routine, backend) pairs with a contract test, as the test modules imported so far declare them."""


def covers(routine: str, *backends: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares of a test that it is the contract test of these backends."""

    def declare(test: Callable[..., Any]) -> Callable[..., Any]:
        COVERED.update((routine, backend) for backend in backends)
        return test

    return declare


class ContractViolation(AssertionError):
    """A call that the library's declaration does not admit, or a result that it does not promise."""


@dataclass(frozen=True)
class Gives:
    """A result of a stand-in: a tensor of zeros of the documented shape and number format."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@contextlib.contextmanager
def contract(path: str, returns: Any = None, **methods: Any) -> Iterator[Any]:
    """Replaces what a dotted path names, for as long as the block lasts.

    Args:
        path: of a function, or of a class.
        returns: what a call of the function gives: None, a ``Gives``, a tuple of them, or a function of the keyword
            arguments of the call that computes it (and may write into them, as a kernel does).
        methods: of a class, the methods that may be called, each with what it gives.

    Yields:
        the ``Contract`` of a function, the ``ClassContract`` of a class.
    """
    owner, name = _resolve(path)
    original = getattr(owner, name)
    stand_in = ClassContract(original, methods) if isinstance(original, type) else Contract(original, returns)
    with contextlib.ExitStack() as restore:
        for holder in (owner, *_lazy_modules_of(owner)):
            _replace(restore, holder, name, stand_in)
        yield stand_in


class Contract:
    """A function's stand-in. ``calls`` holds the arguments of each call, by parameter name, defaults left out."""

    def __init__(self, original: Callable[..., Any], returns: Any = None, *, method: bool = False) -> None:
        self._declaration = _declaration(explicit_layer(original), _added_parameters(original), method)
        self._overloads = [_declaration(overload, (), method) for overload in _overloads(original)]
        self._returns = returns
        self.__name__ = getattr(original, "__name__", repr(original))
        self.__signature__ = self._declaration.signature
        self.calls: list[dict[str, Any]] = []
        self._is_backend_supported = getattr(original, "is_backend_supported", None)

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

    def __init__(self, original: type, methods: dict[str, Any]) -> None:
        self._original, self._methods = original, methods
        self.instances: list[Instance] = []

    @property
    def instance(self) -> Instance:
        """The only one."""
        assert len(self.instances) == 1, f"{self._original.__name__} was made {len(self.instances)} times"
        return self.instances[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Instance:
        self.instances.append(Instance(self._original, self._methods, args, kwargs))
        return self.instances[-1]


class Instance:
    """``made_with`` holds the constructor's arguments; each method that the test gives results for is a Contract."""

    def __init__(self, original: type, methods: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.made_with = Contract(original.__init__, method=True).admit(args, kwargs)  # type: ignore[misc]
        for name, returns in methods.items():
            setattr(self, name, Contract(getattr(original, name), returns, method=True))


@dataclass(frozen=True)
class Declaration:
    """What a library declares of one call."""

    name: str
    signature: inspect.Signature
    hints: dict[str, Any]

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
        for name, value in arguments.items():
            hint = self.hints.get(name, Any)
            by_default_none = value is None and self.signature.parameters[name].default is None
            if not by_default_none and not conforms(value, hint):
                return f"{self.name}: {name} must be {hint}, not {value!r}"
        return None


def explicit_layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """The innermost of a callable and what its decorators wrap that takes no ``*args`` or ``**kwargs``.

    Raises:
        TypeError: when there is none: a stand-in would accept anything.
    """
    explicit = [layer for layer in _layers(function) if _is_explicit(layer)]
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
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return False
    return not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _added_parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """What known decorators add to a function's own: FlashInfer's backend_requirement takes ``skip_check``."""
    if not hasattr(function, "is_backend_supported"):
        return ()
    return (inspect.Parameter("skip_check", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool),)


def _overloads(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    if not hasattr(typing, "get_overloads"):  # Python 3.10
        return []
    return list(typing.get_overloads(explicit_layer(function)))


def _declaration(function: Callable[..., Any], added: tuple[inspect.Parameter, ...], method: bool) -> Declaration:
    parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())[method:]
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # annotations that only a type checker can read
        hints = {}
    hints |= {parameter.name: parameter.annotation for parameter in added}
    name = getattr(function, "__qualname__", repr(function))
    return Declaration(name, inspect.Signature([*parameters, *added]), hints)


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
