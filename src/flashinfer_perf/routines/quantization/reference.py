"""The mathematics of the quantisers: what elements and scales stand for, before anything is rounded to a format.

The checks round it themselves, by searching the formats' tables, and know what arithmetic explains.
"""

from __future__ import annotations

from collections.abc import Mapping

from flashinfer_perf.checks.block_formats import BlockFormat
from flashinfer_perf.lazy import torch

ELEMENTS_AT_A_TIME = 1 << 22
"""Multiplied at a time in fp64: 64 MiB."""


def quantised(
    x: torch.Tensor, global_scale: torch.Tensor | None = None, *, format: BlockFormat
) -> Mapping[str, torch.Tensor]:
    """OCP Microscaling Formats 1.0, section 6.3; for NVFP4 the same with a global scale multiplied in.

    Args:
        x: (…, k) of 16-bit floats.
        global_scale: (1,), or None for 1.

    Returns:
        x_q (…, k) in fp32: what element times block scale should be, x times the global scale; sf (…, k / block) in
        fp64: the largest magnitude of each block of that, divided by the format's largest element.
    """
    wanted = x.unflatten(-1, (-1, format.block)).abs().amax(dim=-1).double() / format.elements[-1]
    if global_scale is None:
        return {"x_q": x.float(), "sf": wanted}
    factor = global_scale.double()
    parts = x.flatten(0, -2).split(max(ELEMENTS_AT_A_TIME // x.shape[-1], 1))
    return {"x_q": torch.cat([(part * factor).float() for part in parts]).view(x.shape), "sf": wanted * factor}
