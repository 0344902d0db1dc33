"""FlashInfer's MoeAlltoAll, as far as it shows without NVLink: the calls, and what is made of their results."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from flashinfer_perf.core.errors import Unsupported
from flashinfer_perf.routines.moe_comm import one_sided
from flashinfer_perf.routines.moe_comm.one_sided import demand_nvlink
from flashinfer_perf.run.judge import judge, probe
from tests.contract import contract, covers
from tests.routines.harness import launch_of

NAME = "moe_a2a_dispatch_combine"
CASE = "--num_tokens 6 --hidden_size 128 --num_experts 8 --top_k 2"
SLOTS = 8

pytest.importorskip("flashinfer")


class Library:
    """On one rank: tokens take slots in another order than they stand in; some slots stay empty."""

    def __init__(self, columns: int) -> None:
        self.order = torch.tensor([3, 0, 5, 1, 4, 2])
        self.payload = torch.full((1, len(self.order), columns), 7.0, dtype=torch.bfloat16)

    def dispatch(self, token_selected_experts, input_payloads, runtime_max_tokens_per_rank, **marks):
        return [part[self.order][None] for part in input_payloads]

    def get_combine_payload_tensor_in_workspace(self, **_):
        return self.payload

    def combine(self, payload, output, **_):
        output[self.order] = payload[0]
        return output


@contextlib.contextmanager
def stood_in(columns: int):
    library = Library(columns)
    methods = ("dispatch", "combine", "get_combine_payload_tensor_in_workspace")
    with (
        contract("flashinfer.comm.MoeAlltoAll", **{name: getattr(library, name) for name in methods}) as made,
        contract("flashinfer.comm.moe_a2a_get_workspace_size_per_rank", lambda **_: 4096) as size,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(one_sided, "demand_nvlink", lambda comm: None)
        yield made, size


@covers(NAME, "moe_a2a")
@pytest.mark.parametrize(
    ("format", "parts", "row_bytes"),
    [("", 3, 256 + 16), ("fp8", 3, 128 + 16), ("nvfp4", 4, 64 + 8 + 16), ("fp8_block_scale", 4, 128 + 4 + 16)],
)
def test_the_librarys_calls(format, parts, row_bytes):
    with stood_in(128) as (made, size):
        flags = f"{CASE} --max_num_tokens {SLOTS} {f'--quant_dtype {format}' if format else ''}"
        launch, problem = launch_of(NAME, "moe_a2a", flags)
        outputs = launch.outputs(launch())
        made_with = made.instance.made_with
        assert size.call == {
            "ep_size": 1,
            "max_num_tokens": SLOTS,
            "total_dispatch_payload_size_per_token": row_bytes,
            "combine_payload_size_per_token": 256,
        }
        assert (made_with["max_num_tokens"], made_with["top_k"], made_with["num_experts"]) == (SLOTS, 2, 8)
        assert made_with["workspace_size_per_rank"] == 4096
        mapping = made_with["mapping"]
        assert (mapping.moe_ep_size, mapping.moe_ep_rank, mapping.world_size) == (1, 0, 1)
        assert type(made_with["mnnvl_config"].comm_backend).__name__ == "TorchDistBackend"
        timed = made.instance.dispatch.calls[-1]
        assert timed["token_selected_experts"].data_ptr() == problem["expert_ids"].data_ptr()
        assert [part.shape[0] for part in timed["input_payloads"]] == [6] * parts
        assert timed["runtime_max_tokens_per_rank"] == 6
        assert timed.get("invalid_token_expert_id") is None
        combined = made.instance.combine.calls[-1]
        assert combined["payload_in_workspace"]
        assert combined["payload"].shape == (1, 6, 128)
        truth = problem.truth()
        findings = judge(problem, outputs, truth) + probe(problem, launch, truth)
        assert all(finding.passed for finding in findings), findings
        marked = [call for call in made.instance.dispatch.calls if call.get("invalid_token_expert_id") is not None]
        assert marked[0]["invalid_token_expert_id"] == 8
        assert marked[0]["input_payloads"][marked[0]["expert_id_payload_index"]].dtype is torch.int32


def test_a_token_that_the_library_puts_into_another_slot_is_caught():
    with stood_in(128):
        launch, problem = launch_of(NAME, "moe_a2a", CASE)
        library = launch.kwargs["exchange"]._library
        right = library.dispatch
        library.dispatch = lambda *args, **marks: [
            part.roll(1, dims=1) if part.dtype is torch.int32 else part for part in right(*args, **marks)
        ]
        (finding,) = probe(problem, launch, problem.truth())
        assert not finding.passed
        assert "6 have other contents" in finding.detail


class Comm:
    """As much of the library's module as says whether the backend can run."""

    def __init__(self, nvlink: bool, error: Exception | None = None) -> None:
        memory = SimpleNamespace(initialize=lambda: None, supports_mnnvl=lambda: nvlink)
        self.mnnvl = SimpleNamespace(MnnvlMemory=memory)
        self.trtllm_moe_alltoall = SimpleNamespace(get_moe_alltoall_module=self.build)
        self.error = error

    def build(self, backend: str) -> None:
        assert backend == "trtllm"
        if self.error:
            raise self.error


def test_it_runs_where_there_is_nvlink_and_the_kernels_can_be_built():
    demand_nvlink(Comm(nvlink=True))
    with pytest.raises(Unsupported, match="NVLinks are all up"):
        demand_nvlink(Comm(nvlink=False))
    with pytest.raises(Unsupported, match="cannot be built here: no nvcc"):
        demand_nvlink(Comm(nvlink=True, error=RuntimeError("no nvcc\nmore")))


def test_workspaces_are_given_back_whatever_happened():
    import flashinfer

    cache = flashinfer.comm.MoeAlltoAll._WORKSPACE_CACHE
    cache["of a case"] = {}
    with pytest.raises(ValueError, match="broken"), one_sided.workspace_released():
        raise ValueError("broken")
    assert not cache
