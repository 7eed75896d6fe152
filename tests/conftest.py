"""Its place puts tests/ on the import path, for what several test folders share; property tests are deterministic."""

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")
