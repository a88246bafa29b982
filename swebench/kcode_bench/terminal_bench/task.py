"""A task folder, in Terminal-Bench's first layout (task.yaml) or in Harbor's (task.toml), and what of it cannot be had here."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from kcode.errors import StartError
from kcode_bench.terminal_bench.dockerfile import Plan, read_dockerfile

Layout = Literal["terminal-bench-1", "harbor"]


class First(BaseModel):
    """What is read of task.yaml."""

    instruction: str
    max_agent_timeout_sec: float = 360.0
    max_test_timeout_sec: float = 60.0
    parser_name: str = "pytest"


class Timed(BaseModel):
    timeout_sec: float | None = None


class Verifier(Timed):
    env: dict[str, str] = Field(default_factory=dict)
    environment_mode: str = "shared"


class Surroundings(BaseModel):
    docker_image: str | None = None
    os: str = "linux"
    gpus: int | None = None
    env: dict[str, str] = Field(default_factory=dict)
    workdir: str | None = None


class Solution(BaseModel):
    env: dict[str, str] = Field(default_factory=dict)


class Second(BaseModel):
    """What is read of task.toml."""

    agent: Timed = Field(default_factory=Timed)
    verifier: Verifier = Field(default_factory=Verifier)
    environment: Surroundings = Field(default_factory=Surroundings)
    solution: Solution = Field(default_factory=Solution)
    steps: list[dict[str, object]] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Task:
    """`tests` is laid to /tests once the agent has ended, and `script` in it is run. `obstacles` say, each with its file and
    line, why the task cannot be run without a container; with none of them it can. `solution` is a script or None."""

    name: str
    folder: Path
    layout: Layout
    instruction: str
    plan: Plan
    tests: Path
    script: Path
    solution: Path | None
    agent_timeout_s: float
    verifier_timeout_s: float
    verifier_environment: tuple[tuple[str, str], ...]
    solution_environment: tuple[tuple[str, str], ...]
    obstacles: tuple[str, ...]


def find_tasks(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """The task folders that the paths are or hold, in order of their names. Raises StartError for one that holds none."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise StartError(f"{path}: there is no such folder")
        below = [path] if _is_task(path) else sorted(child for child in path.iterdir() if _is_task(child))
        if not below:
            raise StartError(f"{path}: neither task.toml nor task.yaml in it or in a folder of it")
        found += below
    return tuple(dict.fromkeys(path.resolve() for path in found))


def _is_task(folder: Path) -> bool:
    return (folder / "task.toml").is_file() or (folder / "task.yaml").is_file()


def read_task(folder: Path) -> Task:
    """Raises StartError naming the file and what is wrong with it."""
    file = folder / "task.toml" if (folder / "task.toml").is_file() else folder / "task.yaml"
    try:
        text = file.read_text(encoding="utf-8")
        if file.name == "task.toml":
            return _second(folder, Second.model_validate(tomllib.loads(text)))
        return _first(folder, First.model_validate(yaml.safe_load(text)))
    except ValidationError as error:
        first = error.errors()[0]
        raise StartError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise StartError(f"{file}: {' '.join(str(error).split())}") from error


def _first(folder: Path, given: First) -> Task:
    plan = read_dockerfile(folder / "Dockerfile", folder)
    obstacles = [*plan.obstacles, *_compose(folder)]
    if given.parser_name != "pytest":
        obstacles.append(f"task.yaml: parser_name {given.parser_name}: only pytest's summary is read")
    script = folder / "run-tests.sh"
    solution = folder / "solution.sh"
    return Task(
        folder.name,
        folder,
        "terminal-bench-1",
        given.instruction,
        plan,
        folder / "tests",
        script,
        solution if solution.is_file() else None,
        given.max_agent_timeout_sec,
        given.max_test_timeout_sec,
        (),
        (),
        (*obstacles, *_missing(script)),
    )


def _second(folder: Path, given: Second) -> Task:
    surroundings = folder / "environment"
    file = surroundings / "Dockerfile"
    environment = tuple(given.environment.env.items())
    plan = read_dockerfile(file, surroundings, workdir=given.environment.workdir or "", environment=environment)
    obstacles = [*plan.obstacles, *_compose(surroundings)]
    if given.steps:
        obstacles.append("task.toml: steps: a task of several steps")
    if given.environment.gpus:
        obstacles.append(f"task.toml: gpus = {given.environment.gpus}")
    if given.environment.os != "linux":
        obstacles.append(f"task.toml: os = {given.environment.os}")
    if given.environment.docker_image and not file.is_file():
        obstacles.append(f"task.toml: docker_image = {given.environment.docker_image}: an image without a Dockerfile")
    if given.verifier.environment_mode != "shared":
        obstacles.append(f"task.toml: verifier.environment_mode = {given.verifier.environment_mode}")
    values = (*environment, *given.verifier.env.items(), *given.solution.env.items())
    obstacles += [f"task.toml: {name} = {value}: a variable of the host" for name, value in values if "${" in value]
    script = folder / "tests" / "test.sh"
    solution = folder / "solution" / "solve.sh"
    instruction = folder / "instruction.md"
    return Task(
        folder.name,
        folder,
        "harbor",
        instruction.read_text(encoding="utf-8"),
        plan,
        folder / "tests",
        script,
        solution if solution.is_file() else None,
        given.agent.timeout_sec or 1800.0,
        given.verifier.timeout_sec or 600.0,
        tuple(given.verifier.env.items()),
        tuple(given.solution.env.items()),
        (*obstacles, *_missing(script)),
    )


def _missing(script: Path) -> list[str]:
    return [] if script.is_file() else [f"{script.name}: it is missing"]


def _compose(folder: Path) -> list[str]:
    """More than one service takes a network of containers."""
    file = folder / "docker-compose.yaml"
    if not file.is_file():
        return []
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    services = document.get("services", {}) if isinstance(document, dict) else {}
    if len(services) > 1:
        return [f"{file.name}: {len(services)} services ({', '.join(services)})"]
    return [f"{file.name}: {name} is privileged" for name, service in services.items() if service.get("privileged")]
