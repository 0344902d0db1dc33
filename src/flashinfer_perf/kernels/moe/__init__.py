"""A fused mixture of experts in Triton: routing, sorting by expert, two grouped products, weighted sum."""
