"""Property tests draw the same examples on every run: a failure that comes and goes helps nobody."""

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.load_profile("deterministic")
