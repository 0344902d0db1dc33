"""Triton kernels. Importing a module of this package imports Triton: do it where a kernel is to be run."""
