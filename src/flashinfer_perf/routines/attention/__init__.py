"""Attention over paged and ragged key-value caches."""
