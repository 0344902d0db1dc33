"""Which device a rank runs on."""

from __future__ import annotations

from flashinfer_perf.core.errors import InvalidInput
from flashinfer_perf.core.machine import Machine
from flashinfer_perf.device.machine import find_machine
from flashinfer_perf.lazy import torch
from flashinfer_perf.run.ranks import Ranks, place_on_host


def machine_of(device: str, ranks: Ranks) -> Machine:
    """The machine behind ``--device``; of several ranks on a host each gets a GPU of its own.

    Raises:
        InvalidInput: when there are more ranks on a host than GPUs.
        Unsupported: when the GPU asked for is not there.
    """
    if ranks.size > 1 and device in ("auto", "cuda"):
        device = _own_gpu(device, ranks)
    machine = find_machine(device)
    if machine.is_cuda:
        torch.cuda.set_device(machine.device)
    return machine


def _own_gpu(device: str, ranks: Ranks) -> str:
    number, on_host = place_on_host(ranks)
    gpus = torch.cuda.device_count()
    if gpus == 0:
        return device
    if on_host > gpus:
        raise InvalidInput(
            f"{on_host} ranks were started on a host whose processes see {gpus} GPU(s), and each needs one of its own; "
            f"start at most {gpus}, or use --device cpu, or --device cuda:0 where each process sees another GPU"
        )
    return f"cuda:{number}"
