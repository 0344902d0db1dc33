"""Matrix products, of 16-bit and quantised operands."""
