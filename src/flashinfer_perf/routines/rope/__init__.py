"""Rotary position embedding, alone or fused with FP8 quantisation and a write to the paged cache."""
