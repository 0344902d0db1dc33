"""Has Triton compile a mixture's kernels for a GPU that is not there, instead of launching them."""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from flashinfer_perf.kernels.moe import conversion, experts, hopper_experts, routing

KERNELS = (
    (routing, "route"),
    (experts, "prepare"),
    (experts, "first_product"),
    (experts, "second_product"),
    (experts, "reduce_pairs"),
    (conversion, "convert_rows"),
    (conversion, "raise_scale"),
    (hopper_experts, "prepare"),
    (hopper_experts, "spread_rows"),
    (hopper_experts, "hopper_product"),
    (hopper_experts, "reduce_pairs"),
)


class Offline:
    """Triton's driver for an absent GPU: it can compile."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        """One for each target: kernels remember what they were compiled for by it."""
        return self.target.arch

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def compile_instead(monkeypatch: Any, capability: tuple[int, int]) -> dict[str, Any]:
    """From here on, calls compile; gives what was compiled, by the kernel's name; ``hopper_product``'s two by the
    activation, too.
    """
    found: dict[str, Any] = {}

    def remember(name: str, options: dict[str, Any], kernel: Any) -> None:
        found[f"{name} {options['ACTIVATION']}" if name == "hopper_product" else name] = kernel

    def instead_of(name: str, kernel: Any) -> Any:
        def launch(grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: remember(name, options, kernel.warmup(*args, grid=grid, **options))

        return type("Kernel", (), {"__getitem__": lambda self, grid: launch(grid)})()

    monkeypatch.setattr(driver, "_active", Offline(capability))
    monkeypatch.setattr(experts, "_capability", lambda device: capability)
    monkeypatch.setattr(hopper_experts, "_processors", lambda device: 132)
    for module, name in KERNELS:
        monkeypatch.setattr(module, name, instead_of(name, getattr(module, name)))
    return found


def call(run: Any) -> None:
    """A planned mixture, on tensors of no meaning."""
    tokens, hidden = run.num_tokens, run.weights.hidden_size
    x, out = (torch.zeros(tokens, hidden, dtype=run.dtype) for _ in range(2))
    ids = torch.zeros(tokens, run.top_k, dtype=torch.int32)
    run(x, ids, torch.zeros(tokens, run.top_k), out)
