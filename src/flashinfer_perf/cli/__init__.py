"""The commands, a file each. Nothing here imports torch before a case is to be run."""
