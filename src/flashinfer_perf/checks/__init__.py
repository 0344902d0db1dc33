"""What a right output is, and by how much it may differ."""
