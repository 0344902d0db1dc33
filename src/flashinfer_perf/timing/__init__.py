"""Clocks, cache policies, and the loop that uses them."""
