"""The engine's error tree. A message names the value at fault and the next step, in one line.

BackendError
├── ModelFileError     a model file is damaged or of a kind the engine cannot run
├── UnknownModel       a name is neither in the catalogue nor a file
│   └── NotInstalled
├── PullError          a model could not be fetched; what was fetched stays for the next try
│   ├── DiskFull
│   └── PullCancelled
└── OutOfContext       a request needs more tokens or blocks than there are
"""

from __future__ import annotations


class BackendError(Exception):
    """Base of all expected failures of the engine."""


class ModelFileError(BackendError):
    """A model file is damaged, incomplete or of a kind that the engine cannot run."""


class UnknownModel(BackendError):
    """The name is neither in the catalogue nor a model file."""


class NotInstalled(UnknownModel):
    """The model is in the catalogue but was not pulled."""


class PullError(BackendError):
    """A model could not be fetched; finished parts stay on disk for the next try."""


class DiskFull(PullError):
    """The disk has no room for the model."""


class PullCancelled(PullError):
    """The caller stopped the pull."""


class OutOfContext(BackendError):
    """A request needs more tokens or blocks than the engine has."""
