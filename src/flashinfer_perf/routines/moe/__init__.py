"""Fused mixtures of experts: routing, two products per expert with an activation between them, weighted sums."""
