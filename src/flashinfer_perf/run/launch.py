"""A launch: one call, ready to be timed, that knows its tensors and its outputs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flashinfer_perf.lazy import torch

if TYPE_CHECKING:
    from flashinfer_perf.run.problem import Outputs

POISON = 0xFF
"""Every byte of an output before a call. In all floating formats that we write, bytes of ones are NaN."""


@dataclass(frozen=True)
class Phase:
    """A named part of a launch. Called with the previous phase's result (None at first) and the launch's keywords."""

    name: str
    fn: Callable[..., Any]


@dataclass(frozen=True)
class Launch:
    """A call with its arguments; planning and compiling are done before it exists.

    Attributes:
        fn: what is timed; called with args and kwargs.
        phases: in place of fn, the parts of a call that has several; they take keywords only.
        timed_apart: time the phases one by one, rather than the call as a whole.
        total_name: what the whole of the call is called in results, beside the names of its phases.
        mutates: names of the parameters that the call writes. Those that are the problem's tensors are restored
            before each call, outside the timed span; all of them are outputs. A tuple or dictionary of tensors gives
            outputs named ``cache.0``, ``cache.1``, or by its keys.
        returns: names of what the call returns, in order.
        scratch: names of the parameters that are plan state or workspace; never copied, never rotated.
        host_sync: the call waits for the device by itself.
        no_graph: why no CUDA graph can hold the call, where it is known beforehand; a sentence.
        no_cupti: why CUPTI must not record the call; a sentence.
        facts: values for declared columns, such as the time that planning took.
        resolved_backend: what really runs, where a name stands for a choice.
        tuned: what a library's tuner has measured tactics for, by the name that the documents have for it.
        draw: for samplers, (seed, offset) -> what the very call that is timed returns, with the first row of its
            inputs in place of every row.
    """

    fn: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    timed_apart: bool = True
    total_name: str = ""
    mutates: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    host_sync: bool = False
    no_graph: str = ""
    no_cupti: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    resolved_backend: str = ""
    tuned: str = ""
    draw: Callable[[int, int], Any] | None = None

    def __post_init__(self) -> None:
        if (self.fn is None) == (not self.phases):
            raise TypeError("a launch has either fn or phases")
        if self.phases and self.args:
            raise TypeError("a launch of several phases takes keywords only")
        unknown = sorted({*self.mutates, *self.scratch} - set(self.arguments()))
        if unknown:
            raise TypeError(
                f"no argument of the call is named {', '.join(unknown)}; it has {', '.join(self.arguments())}"
            )

    def __call__(self) -> Any:
        result = None
        for step in self._parts():
            result = step(result)
        return result

    def with_arguments(self, **changes: Any) -> Launch:
        """The same call with other values for some of its keywords."""
        return dataclasses.replace(self, kwargs={**self.kwargs, **changes})

    def with_seed(self, seed: int) -> Any:
        """What the call gives with another ``seed``, which it takes as a keyword.

        Raises:
            TypeError: when it takes none.
        """
        if "seed" not in self.kwargs:
            raise TypeError(f"the call takes no seed by keyword; it takes {', '.join(self.kwargs)}")
        return self.with_arguments(seed=seed)()

    def steps(self) -> list[Callable[[Any], Any]]:
        """The parts to time, each taking the previous one's result."""
        return self._parts() if self.fn is None and self.timed_apart else [lambda _: self()]

    def _parts(self) -> list[Callable[[Any], Any]]:
        fn, args, kwargs = self.fn, self.args, dict(self.kwargs)
        if fn is not None:
            return [lambda _: fn(*args, **kwargs)]
        return [_bound(phase.fn, kwargs) for phase in self.phases]

    @property
    def phase_names(self) -> tuple[str, ...]:
        """Of the parts that are timed one by one; empty for a launch that is timed as a whole."""
        return tuple(phase.name for phase in self.phases) if self.timed_apart else ()

    def arguments(self) -> dict[str, Any]:
        """What the call gets, by parameter name."""
        if self.fn is None or not self.args:
            return dict(self.kwargs)
        return _by_parameter(self.fn, self.args, self.kwargs)

    def outputs(self, returned: Any) -> Outputs:
        """The outputs of a call by name: what it returned and what it wrote.

        Raises:
            TypeError: when the call returned another number of things than declared.
        """
        values = returned if isinstance(returned, tuple | list) else (returned,)
        if self.returns and (len(values) != len(self.returns) or any(value is None for value in values)):
            raise TypeError(f"the call returned {_kinds(values)}, not {', '.join(self.returns)}")
        arguments = self.arguments()
        written = {name: arguments[name] for name in self.mutates}
        found = {**dict(zip(self.returns, values, strict=False)), **written}
        return dict(pair for name, value in found.items() for pair in named_tensors(name, value))

    def written(self) -> Iterator[torch.Tensor]:
        """Every tensor in the arguments that the call writes."""
        arguments = self.arguments()
        return tensors_in([arguments[name] for name in self.mutates])

    def data(self) -> Iterator[torch.Tensor]:
        """Every tensor in the arguments that is not scratch."""
        for name, value in self.arguments().items():
            if name not in self.scratch:
                yield from tensors_in(value)

    def on_copies(self, copies: Copies, names: tuple[str, ...] | None = None) -> Launch:
        """The same call on copies of the tensors in the named arguments; by default all but scratch."""
        chosen = tuple(n for n in self.arguments() if n not in self.scratch) if names is None else names
        replaced = {name: copies.of(value) for name, value in self.arguments().items() if name in chosen}
        if self.fn is None or not self.args:
            return dataclasses.replace(self, kwargs={**self.kwargs, **replaced})
        positions = list(_by_parameter(self.fn, self.args, {}))
        args = tuple(replaced.get(name, value) for name, value in zip(positions, self.args, strict=True))
        kwargs = {name: replaced.get(name, value) for name, value in self.kwargs.items()}
        return dataclasses.replace(self, args=args, kwargs=kwargs)


class Copies:
    """Copies of tensors, made storage by storage and viewed again as before.

    Views, aliases and strides survive: two tensors that shared a storage share its copy.
    """

    def __init__(self) -> None:
        self._storages: dict[int, Any] = {}
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        """(copy, original), to restore the one from the other."""

    def of(self, value: Any) -> Any:
        """A nested value with every tensor in it copied."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, tuple) and hasattr(value, "_make"):  # a named tuple
            return value._make(self.of(item) for item in value)
        if isinstance(value, tuple | list):
            return type(value)(self.of(item) for item in value)
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        return value

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = storage.clone()
        copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        copy.set_(self._storages[storage.data_ptr()], tensor.storage_offset(), tensor.shape, tensor.stride())
        self.pairs.append((copy, tensor))
        return copy


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a nested value."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def named_tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a nested value with names: the bare one for a tensor, else ``name.0``, ``name.key``."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, tuple | list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from named_tensors(f"{name}.{key}", item)


def storages_in(value: Any) -> set[int]:
    """Addresses of the storages behind the tensors of a nested value. Empty ones have none."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_in(value)} - {0}


def poison(tensor: torch.Tensor) -> None:
    """Overwrites a tensor's storage so that a kernel that writes nothing is found out."""
    storage = tensor.untyped_storage()
    torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage).fill_(POISON)


def _bound(fn: Callable[..., Any], kwargs: Mapping[str, Any]) -> Callable[[Any], Any]:
    return lambda previous: fn(previous, **kwargs)


def _by_parameter(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        signature = inspect.signature(fn)
    except ValueError:
        raise TypeError(f"pass the arguments of {fn!r} by keyword: its parameters have no names to be found") from None
    bound = signature.bind_partial(*args, **kwargs)
    flat: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise TypeError(f"pass the arguments of {fn!r} by keyword: it takes *{name}")
        flat.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return flat


def _kinds(values: tuple[Any, ...] | list[Any]) -> str:
    return ", ".join(type(value).__name__ for value in values) or "nothing"
