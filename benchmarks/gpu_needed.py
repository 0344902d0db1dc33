"""What the scripts beside this file say on a machine on which they have nothing to measure."""

from __future__ import annotations

from argparse import ArgumentParser


def require_gpu(parser: ArgumentParser) -> None:
    """Ends the script with one line and exit status 2 where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        parser.error(
            f"it measures a CUDA GPU, and torch {torch.__version__} sees none here; "
            "flashinfer_benchmark.py runs on a CPU, too"
        )
