"""Quantisers to block-scaled formats."""
