"""Wrong quantisers, made from right ones: each function changes what PyTorch's own gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from flashinfer_perf.formats import e2m1
from flashinfer_perf.formats.scale_layout import LAYOUTS, arrange, padding, restore
from flashinfer_perf.formats.shuffle import shuffle_rows, unshuffle_rows
from flashinfer_perf.routines.quantization.encoding import Encoding
from flashinfer_perf.run.launch import Launch
from flashinfer_perf.run.problem import Problem
from tests.routines.harness import routine_named


class Quantiser:
    """A right quantiser of one case, and the parts of what it gives.

    Attributes:
        x: the input; global_scale: as a number.
        x_q, sf: bytes of the right outputs.
    """

    def __init__(self, name: str, case: Any, problem: Problem) -> None:
        self.launch: Launch = routine_named(name).backends["torch"].prepare(case, problem)
        self.x: torch.Tensor = self.launch.kwargs["x"]
        self.global_scale = float(self.launch.kwargs.get("global_scale", 1.0))
        self.encoding: Encoding = self.launch.kwargs["encoding"]
        self.x_q, self.sf = (part.view(torch.uint8) for part in self.launch())

    @property
    def scales(self) -> torch.Tensor:
        """(…, rows, blocks) in the order of the input."""
        found = restore(self.sf, self.encoding.layout, self.encoding.scales_shape)
        return unshuffle_rows(found) if self.encoding.shuffled else found

    def again(self, **changes: Any) -> Any:
        """The same call with other arguments."""
        return self.launch.fn(**{**self.launch.kwargs, **changes})

    def placed(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales as the output has them."""
        scales = shuffle_rows(scales) if self.encoding.shuffled else scales
        return arrange(scales, self.encoding.layout).view(self.sf.shape)

    def rounded(self, scales: torch.Tensor, how: str = "even") -> torch.Tensor:
        """Elements under other scales, or rounded in another way."""
        format = self.encoding.format
        values = self.x.double().unflatten(-1, (-1, format.block)) * self.global_scale
        codes = _codes(values / format.decode(scales)[..., None], format.elements, how).flatten(-2)
        codes = shuffle_rows(codes) if self.encoding.shuffled else codes
        return e2m1.pack(codes) if format.packed else codes


def _codes(values: torch.Tensor, elements: tuple[float, ...], how: str) -> torch.Tensor:
    table = torch.tensor(elements, dtype=torch.float64)
    middles = (table[1:] + table[:-1]) / 2
    size = values.abs().nan_to_num(nan=0.0)
    codes = {
        "away": lambda: torch.bucketize(size, middles, right=True),
        "towards": lambda: torch.bucketize(size, middles),
        "down": lambda: torch.bucketize(size, table[1:], right=True),
        "up": lambda: torch.bucketize(size, table[:-1]),
    }[how]()
    sign = 8 if len(elements) <= 8 else 128
    return (codes + sign * torch.signbit(values)).to(torch.uint8)


Broken = Callable[[Quantiser], Any]


def zeros(q):
    return torch.zeros_like(q.x_q), torch.zeros_like(q.sf)


def nothing_written(q):
    return torch.full_like(q.x_q, 0xFF), torch.full_like(q.sf, 0xFF)


def zero_elements(q):
    return torch.zeros_like(q.x_q), q.sf


def zero_scales(q):
    return q.x_q, torch.zeros_like(q.sf)


def scales_one_code_high(q):
    return q.x_q, q.placed(q.scales + 1)


def scales_one_code_high_with_elements_that_fit(q):
    higher = q.scales + 1
    return q.rounded(higher, "away"), q.placed(higher)


def one_scale_one_code_off(q):
    scales = q.scales.clone()
    scales[..., -1, 0] -= 1
    return q.x_q, q.placed(scales)


def a_scale_that_is_nan(q):
    scales = q.scales.clone()
    scales[..., 0, 0] = 0xFF
    return q.x_q, q.placed(scales)


def an_element_that_is_nan_or_wrong(q):
    q.x_q[..., 1, 1] = 0x7F
    return q.x_q, q.sf


def one_element_one_code_off(q):
    byte = int(q.x_q[..., -1, -1].flatten()[0])
    q.x_q[..., -1, -1] = byte - 1 if byte & 7 else byte + 1
    return q.x_q, q.sf


def signs_lost(q):
    return q.x_q & 0x7F, q.sf


def last_row_forgotten(q):
    q.x_q[..., -1, :] = 0xFF
    return q.x_q, q.sf


def last_column_forgotten(q):
    q.x_q[..., -1] = 0
    return q.x_q, q.sf


def one_row_off(q):
    return q.again(x=q.x.roll(1, dims=-2))


def one_block_off(q):
    return q.again(x=q.x.roll(q.encoding.format.block, dims=-1))


def elements_one_off(q):
    return q.again(x=q.x.roll(1, dims=-1))[0].view(torch.uint8), q.sf


def half_away_from_zero(q):
    return q.rounded(q.scales, "away"), q.sf


def half_towards_zero(q):
    return q.rounded(q.scales, "towards"), q.sf


def truncates(q):
    return q.rounded(q.scales, "down"), q.sf


def rounds_up(q):
    return q.rounded(q.scales, "up"), q.sf


def scale_of_half_a_block(q):
    half = q.encoding.format.block // 2
    x = q.x.unflatten(-1, (-1, 2, half))
    first = torch.cat((x[..., :1, :], x[..., :1, :]), dim=-2).flatten(-3)
    other = copy.copy(q)
    other.sf = q.again(x=first.contiguous())[1]
    return q.rounded(other.scales, "away"), other.sf


def scales_one_code_low_with_elements_that_fit(q):
    lower = torch.where(q.scales > 1, q.scales - 1, q.scales)
    return q.rounded(lower, "away"), q.placed(lower)


def in_another_layout(q):
    """As many of its bytes as fit, the rest zero: another layout has another size, except by chance."""
    other = LAYOUTS[(LAYOUTS.index(q.encoding.layout) + 1) % 3]
    placed = arrange(q.scales, other).flatten()[: q.sf.numel()]
    sf = torch.zeros_like(q.sf)
    sf.view(-1)[: placed.numel()] = placed
    return q.x_q, sf


def scales_of_another_shape(q):
    return q.x_q, q.sf.reshape(-1, 4) if q.sf.dim() == 1 else q.sf.flatten()


def elements_of_another_shape(q):
    return q.x_q.flatten(), q.sf


def changes_its_input(q):
    q.x[..., 0, 0] += 1
    return q.x_q, q.sf


EVERYWHERE: list[Broken] = [
    zeros, nothing_written, zero_elements, zero_scales, scales_one_code_high,
    scales_one_code_high_with_elements_that_fit, one_scale_one_code_off, a_scale_that_is_nan,
    an_element_that_is_nan_or_wrong, one_element_one_code_off, signs_lost, last_row_forgotten, last_column_forgotten,
    one_row_off, one_block_off, elements_one_off, half_away_from_zero, half_towards_zero, truncates, rounds_up,
    scale_of_half_a_block, scales_one_code_low_with_elements_that_fit, in_another_layout, scales_of_another_shape,
    elements_of_another_shape, changes_its_input,
]  # fmt: skip


def padding_not_zero(q):
    unused = padding(q.encoding.layout, q.encoding.scales_shape).view(q.sf.shape)
    assert unused.any()
    return q.x_q, torch.where(unused, torch.full_like(q.sf, 1), q.sf)


def swizzled_the_other_way_round(q):
    return q.x_q, q.sf.view(-1, 32, 4, 4).transpose(2, 3).reshape(q.sf.shape).contiguous()


TILED: list[Broken] = [padding_not_zero, swizzled_the_other_way_round]
"""Of scales in 128x4 tiles that need padding."""


def nibbles_swapped(q):
    return (q.x_q >> 4) | (q.x_q << 4), q.sf


PACKED: list[Broken] = [nibbles_swapped]


def global_scale_forgotten(q):
    return q.again(global_scale=torch.ones(1))


def divided_by_the_global_scale(q):
    return q.again(global_scale=torch.tensor([1 / q.global_scale]))


def global_scale_a_little_off(q):
    return q.again(global_scale=torch.tensor([q.global_scale * 1.02]))


def global_scale_in_the_scales_only(q):
    q.global_scale = 1.0
    return q.rounded(q.scales, "away"), q.sf


SCALED: list[Broken] = [
    global_scale_forgotten, divided_by_the_global_scale, global_scale_a_little_off, global_scale_in_the_scales_only,
]  # fmt: skip


def shuffle_forgotten(q):
    return q.again(encoding=replace(q.encoding, shuffled=False))


def shuffled_twice(q):
    return shuffle_rows(q.x_q), q.placed(shuffle_rows(q.scales))


def only_elements_shuffled(q):
    return q.x_q, shuffle_forgotten(q)[1]


def only_scales_shuffled(q):
    return shuffle_forgotten(q)[0], q.sf


def shuffled_backwards(q):
    plain, _ = shuffle_forgotten(q)
    return unshuffle_rows(plain), arrange(unshuffle_rows(q.scales), "128x4").view(q.sf.shape)


def shuffled_after_the_tiles_were_made(q):
    return q.x_q, shuffle_rows(shuffle_forgotten(q)[1])


SHUFFLED: list[Broken] = [
    shuffle_forgotten, shuffled_twice, only_elements_shuffled, only_scales_shuffled, shuffled_backwards,
    shuffled_after_the_tiles_were_made,
]  # fmt: skip


def entries_swapped(q):
    return q.x_q.flip(0), q.sf.flip(0)


def scales_of_entries_swapped(q):
    return q.x_q, q.sf.flip(0)


def tiled_as_one_matrix(q):
    """Rows of all entries one under the other, padded once; the rest zero."""
    tiles = arrange(q.scales.flatten(0, 1), "128x4").flatten()
    sf = torch.zeros_like(q.sf)
    sf.view(-1)[: tiles.numel()] = tiles[: sf.numel()]
    return q.x_q, sf


def last_entry_forgotten(q):
    q.x_q[-1], q.sf[-1] = 0, 0
    return q.x_q, q.sf


BATCHED: list[Broken] = [entries_swapped, scales_of_entries_swapped, tiled_as_one_matrix, last_entry_forgotten]


def prepared(name: str, broken: Broken) -> Callable[[Any, Problem], Launch]:
    """A backend that is wrong in this way."""

    def kernel(case: Any, problem: Problem, x: torch.Tensor) -> Any:
        quantiser = Quantiser(name, case, problem)
        x_q, sf = broken(quantiser)
        return x_q.view(quantiser.encoding.x_q_dtype), sf

    def prepare(case: Any, problem: Problem) -> Launch:
        return Launch(kernel, kwargs={"case": case, "problem": problem, "x": problem["x"]}, returns=("x_q", "sf"))

    return prepare
