"""Where records go: the console, CSV and JSONL files."""
