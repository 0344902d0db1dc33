"""Finds the device to run on and describes it."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.lazy import torch

CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 62


def find_machine(device: str) -> Machine:
    """The machine behind ``--device``: 'auto', 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        Unsupported: when the GPU asked for is not there.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return Machine("cpu", "cpu", last_level_cache_bytes=cpu_cache_bytes())
    if not torch.cuda.is_available():
        raise Unsupported(f"--device {device}: torch {torch.__version__} sees no CUDA GPU here; use --device cpu")
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise Unsupported(f"--device {device}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    properties = torch.cuda.get_device_properties(index)
    return Machine(
        device=f"cuda:{index}",
        name=properties.name,
        compute_capability=(properties.major, properties.minor),
        last_level_cache_bytes=properties.L2_cache_size,
    )


def free_bytes(machine: Machine) -> int:
    """Memory that new tensors can have."""
    if machine.is_cuda:
        return int(torch.cuda.mem_get_info(machine.device)[0])
    return min(_system_free_bytes(), _container_free_bytes())


def _system_free_bytes() -> int:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_free_bytes() -> int:
    """What a container's limit leaves. Files that were read or written count as used, but give way when asked."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return UNLIMITED
    return max(int(limit) - used + int(cached[1] if cached else 0), 0) if limit.isdecimal() else UNLIMITED


@functools.cache
def cpu_cache_bytes() -> int:
    """Size of the last-level cache of CPU 0; 0 where Linux does not tell."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KM]?)", file.read_text().strip())
        if found:
            sizes.append(int(found[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[found[2]])
    return max(sizes, default=0)
