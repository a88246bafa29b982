"""The sandbox's own errors; kcode translates them once at its edge."""

from __future__ import annotations


class SandboxError(Exception):
    """Base of all sandbox errors; the message names the value and the next step."""


class SandboxUnavailableError(SandboxError):
    """No backend can hold the wanted policy on this machine; says which layer failed and the remedy."""


class SandboxDiedError(SandboxError):
    """The sandbox ended or broke its protocol."""


class FileError(SandboxError):
    """A file operation failed inside: `code` is the errno name ("ENOENT", "EISDIR", "STALE", "EFBIG", ...)."""

    def __init__(self, code: str, path: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.path = path
