"""From cases to records: problems, launches, ranks, the engine and the session around it."""
