"""Sampling tokens, and selecting the largest."""
