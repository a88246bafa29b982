"""danger-full-access: the same worker without walls. Only for those who asked for it by name."""

from __future__ import annotations

import os

from kcode_sandbox.connection import Connection, start_process
from kcode_sandbox.environment import DEFAULTS
from kcode_sandbox.launch import PACKAGE, Attachment, attached, greet, worker_argv
from kcode_sandbox.policy import Policy
from kcode_sandbox.toolchains import own_programs

LAUNCH_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def direct_environment(policy: Policy) -> dict[str, str]:
    """The policy's variables, with kcode's own programs at the end of PATH."""
    given = {**DEFAULTS, "HOME": os.path.expanduser("~"), **dict(policy.environment)}
    folders = dict.fromkeys(str(path.parent) for path in own_programs().values())
    return given | {"PATH": ":".join((given["PATH"], *folders))}


class DirectBackend:
    """Nothing is hidden and nothing is limited but core files; processes still end with the session."""

    def __init__(self, attachment: Attachment | None = None) -> None:
        self._attachment = attachment

    def description(self, policy: Policy) -> str:
        return "no sandbox · danger-full-access · network on"

    async def launch(self, policy: Policy) -> Connection:
        descriptors, stdio = attached(self._attachment)
        connection = await start_process(worker_argv(str(PACKAGE)), LAUNCH_ENVIRONMENT, "/", descriptors)
        environment = direct_environment(policy)
        await greet(connection, {"workspace": str(policy.workspace), "environment": environment, "limits": {}, **stdio})
        return connection

    def guard(self) -> list[str]:
        return []

    def adapt(self, before: Policy, policy: Policy) -> bool:
        return True

    def evidence(self) -> None:
        return None

    def tidy(self) -> None:
        """Nothing was left on the host."""
