"""The error tree. A message names the value at fault and the next step, in one line.

KcodeError                     exit code
├── StartError                 1  usage, configuration, no such model, no sandbox
│   ├── ConfigError
│   ├── ModelNotFound
│   └── SandboxUnavailable
├── InfrastructureError        2  the model or the engine failed while working
│   ├── ModelError
│   │   ├── AnswerBroken
│   │   └── EngineDied
│   ├── SandboxFailed
│   └── CheckpointFailed
└── Aborted                    4  the user stopped it

What the model does wrong is never an exception: it is a ToolResult with is_error.
"""

from __future__ import annotations

from typing import ClassVar


class KcodeError(Exception):
    """Base of all expected failures; `exit_code` is what a headless run ends with."""

    exit_code: ClassVar[int] = 2


class StartError(KcodeError):
    """kcode could not start."""

    exit_code: ClassVar[int] = 1


class ConfigError(StartError):
    """A setting is unknown, unreadable or has a wrong value."""


class ModelNotFound(StartError):
    """The named model is not installed or not known."""


class SandboxUnavailable(StartError):
    """The wanted sandbox cannot be set up on this machine."""


class InfrastructureError(KcodeError):
    """Something under kcode failed while it worked."""

    exit_code: ClassVar[int] = 2


class ModelError(InfrastructureError):
    """The model answered with an error that retrying did not cure."""


class AnswerBroken(ModelError):
    """The connection to the model broke in the middle of an answer."""


class ContextTooLong(ModelError):
    """The server refused the request because it is longer than the model's context; the model's `context_limit` is known now."""


class EngineDied(ModelError):
    """The local engine process ended while it was answering."""


class SandboxFailed(InfrastructureError):
    """The sandbox ended or broke its protocol while working."""


class CheckpointFailed(InfrastructureError):
    """The tree could not be snapshotted, restored or compared."""


class Aborted(KcodeError):
    """The user stopped the run."""

    exit_code: ClassVar[int] = 4
