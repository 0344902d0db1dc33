"""Normalisation, alone or fused with residual addition and quantisation."""
