"""kcode: a terminal coding agent that owns its whole stack."""

__version__ = "0.1.0"
