"""What kcode uses of Harbor's base classes, for type checking where Harbor is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class EnvironmentConfig(Protocol):
    workdir: str | None


class Logger(Protocol):
    def warning(self, text: str) -> None: ...


class EnvironmentBase:
    environment_dir: Path
    environment_name: str
    task_env_config: EnvironmentConfig

    @property
    def _network_is_public(self) -> bool:
        raise NotImplementedError

    def _merge_env(self, env: dict[str, str] | None) -> dict[str, str] | None:
        raise NotImplementedError


class ExecResult(Protocol):
    stdout: str | None
    stderr: str | None
    return_code: int


class Environment(Protocol):
    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> ExecResult: ...

    async def upload_file(self, source_path: Path | str, target_path: str) -> None: ...


class Context(Protocol):
    n_input_tokens: int | None
    n_cache_tokens: int | None
    n_output_tokens: int | None
    metadata: dict[str, object] | None


class InstalledBase:
    logs_dir: Path
    model_name: str | None
    logger: Logger
    options: object

    async def exec_as_agent(self, environment: Environment, command: str) -> ExecResult:
        raise NotImplementedError

    def render_instruction(self, instruction: str) -> str:
        raise NotImplementedError
