"""Communication between the ranks of an expert-parallel mixture of experts."""
