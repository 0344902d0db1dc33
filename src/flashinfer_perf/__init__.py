"""Benchmarks and correctness checks of GPU kernels for LLM inference."""

__version__ = "0.1.0"
