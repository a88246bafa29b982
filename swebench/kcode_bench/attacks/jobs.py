"""Legitimate work, which the walls must not hinder."""

from __future__ import annotations

import shutil
import tomllib
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kcode_bench.attacks.run import TIME_LIMIT_S, Trial
from kcode_bench.attacks.scene import build
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.policy import Choice, Policy


class Job(BaseModel):
    """Must end with exit code 0. Without the program `needs` there is nothing to try; the backends `residue` hinder it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    script: str
    needs: str = ""
    residue: tuple[Choice, ...] = ()

    @property
    def possible(self) -> bool:
        return not self.needs or shutil.which(self.needs) is not None


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    job: list[Job]


def read_jobs() -> tuple[Job, ...]:
    text = (files("kcode_bench.attacks") / "jobs.toml").read_text(encoding="utf-8")
    return tuple(_Table.model_validate(tomllib.loads(text)).job)


async def work(job: Job, root: Path, backend: Choice = "auto", image: str = "") -> Trial:
    """The job in a sandbox as an agent has it, in a fresh scene below the new folder `root`."""
    scene = build(root)
    try:
        environment = tuple(sorted(clean_environment(scene.environment).items()))
        sandbox = open_sandbox(Policy(scene.workspace.resolve(), environment=environment, backend=backend, image=image))
        await sandbox.start()
        try:
            result = await sandbox.exec(["bash", "-c", job.script], timeout_s=2 * TIME_LIMIT_S)
        finally:
            await sandbox.close()
        said = result.output.decode(errors="replace")[-2000:]
        return Trial(result.exit_code == 0 and not result.held, said + "".join(f"\nheld: {name}" for name in result.held))
    finally:
        scene.close()
