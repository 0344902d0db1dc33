"""The torch-free heart: flags, cases, testlists, records, statistics, stop rules."""
