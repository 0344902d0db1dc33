"""Number formats that torch does not know whole, bit-exact: FP8 that saturates, FP4, and blocks with scales."""
