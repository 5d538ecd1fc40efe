"""How unit tests draw examples: no deadline for a single one, for a busy machine is not slow code."""

from hypothesis import settings

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
