"""Attacks behind the walls, and the same without them to show that they work."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kcode_bench.attacks.attack import Attack, Effect
from kcode_bench.attacks.scene import Scene, alive_after, build, fingerprint, has_died, replay
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.policy import Choice, Limits, Policy

TIME_LIMIT_S = 25.0
LIMITS = Limits(processes=256, tmp_bytes=64 << 20)


@dataclass(frozen=True, slots=True)
class Trial:
    """`succeeded`: the effect was there. `output` is what the script said."""

    succeeded: bool
    output: str


async def walled(attack: Attack, root: Path, backend: Choice = "auto", image: str = "") -> Trial:
    """The attack in the sandbox as an agent has it, in a scene below the new folder `root`."""
    scene = build(root)
    try:
        environment = tuple(sorted(clean_environment(scene.environment).items()))
        policy = Policy(scene.workspace.resolve(), environment=environment, limits=LIMITS, backend=backend, image=image)
        sandbox = open_sandbox(policy)
        await sandbox.start()
        try:
            argv = ["bash", "-c", attack.script]
            result = await sandbox.exec(argv, timeout_s=TIME_LIMIT_S, environment=scene.variables)
        finally:
            await sandbox.close()
        return _judge(attack.effect, scene, result.output)
    finally:
        scene.close()


def bare(attack: Attack, root: Path) -> Trial:
    """The attack without walls. Only for those with `control`."""
    scene = build(root)
    try:
        # A file: what goes on in the background would keep a pipe open.
        with (root / "said").open("wb") as said, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["bash", "-c", attack.script],
                cwd=scene.workspace,
                env=scene.environment | scene.variables,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        return _judge(attack.effect, scene, (root / "said").read_bytes())
    finally:
        scene.close()


def _judge(effect: Effect, scene: Scene, output: bytes) -> Trial:
    text = output.decode(errors="replace")
    return Trial(_seen(effect, scene, text), text[-2000:])


def _seen(effect: Effect, scene: Scene, text: str) -> bool:
    match effect:
        case "leak":
            return scene.secret in text
        case "write":
            return fingerprint(scene) != scene.before
        case "reach":
            return scene.services.heard.wait(0.2)
        case "kill":
            return has_died(scene)
        case "later":
            replay(scene)
            return scene.payload.exists()
        case "outlive":
            return alive_after(scene)
        case "harm":
            return "PWNED" in text
