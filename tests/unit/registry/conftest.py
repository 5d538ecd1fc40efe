"""How these tests draw examples: no deadline for a single one, for a busy machine is not a slow codec."""

from hypothesis import settings

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
