"""What backends' names stand for. What a backend does in a routine its --help says."""

from __future__ import annotations

from collections.abc import Iterable

from flashinfer_perf.core.routine import Backend

MEANINGS = {
    "auto": "whichever backend FlashInfer chooses; the record says which",
    "b12x": "FlashInfer's CuTe-DSL kernels for compute capability 12.x",
    "cake": "FlashInfer's generated CAKE kernels",
    "cublas": "cuBLASLt, through FlashInfer or PyTorch",
    "cublaslt": "cuBLASLt, through FlashInfer",
    "cuda": "FlashInfer's CUDA kernels",
    "cudnn": "cuDNN, through FlashInfer",
    "cudnn-native": "cuDNN, called directly",
    "cute-dsl": "FlashInfer's CuTe-DSL kernels",
    "cutedsl_low_latency": "FlashInfer's low-latency CuTe-DSL kernels, for few rows",
    "cutile": "FlashInfer's cuTile kernels",
    "cutlass": "CUTLASS kernels of FlashInfer's",
    "deepgemm": "DeepGEMM",
    "fa2": "FlashAttention-2",
    "fa2_tc": "FlashAttention-2 on tensor cores, for decoding",
    "fa3": "FlashAttention-3",
    "gloo": "torch.distributed over gloo, on CPUs",
    "moe_a2a": "FlashInfer's MoeAlltoAll, over NVLink",
    "nccl": "torch.distributed over NCCL",
    "tgv": "FlashInfer's TGV kernels, in the CuTe DSL",
    "tinygemm": "TinyGEMM, for few rows",
    "torch": "PyTorch's operators: runs everywhere",
    "triton": "this project's Triton kernels",
    "trtllm": "TensorRT-LLM's kernels",
    "trtllm-gen": "TensorRT-LLM's generated kernels, through FlashInfer's wrapper",
    "trtllm-native": "TensorRT-LLM's kernels, called directly",
    "trtllm_low_latency": "TensorRT-LLM's low-latency kernels",
    "trtllm_oneshot": "FlashInfer's fused all-reduce, every rank reading all inputs",
    "trtllm_twoshot": "FlashInfer's fused all-reduce, each rank reducing a share",
}


def legend(backends: Iterable[Backend]) -> str:
    """A Markdown list of the names, each once; of a name that is not known here the first backend's own words."""
    meanings: dict[str, str] = {}
    for backend in backends:
        meanings.setdefault(backend.name, MEANINGS.get(backend.name, backend.summary.rstrip(".")))
    return "\n".join(f"- {name}: {meaning}" for name, meaning in sorted(meanings.items()))
