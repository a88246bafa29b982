"""kcode installed in the container: `harbor run -a kcode_bench.harbor.installed:KcodeInstalled -m MODEL --ak base_url=URL`.

The environment is the wall, so kcode's own sandbox is off in it. The model is reached by an address that the container can reach.
"""

from __future__ import annotations

import shlex
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import kcode
from kcode.export import write_export
from kcode.transcript import active_records, read_records
from kcode_bench.bug_run import Report

if TYPE_CHECKING:
    from pydantic import BaseModel as InstalledAgentOptions

    from kcode_bench.harbor.shapes import Context, Environment
    from kcode_bench.harbor.shapes import InstalledBase as BaseInstalledAgent
else:
    BaseInstalledAgent = import_module("harbor.agents.installed.base").BaseInstalledAgent
    InstalledAgentOptions = import_module("harbor.agents.options").InstalledAgentOptions
_capabilities = import_module("harbor.agents.capabilities")

PLACE = "/installed-agent"
SESSION = "/logs/agent/session"


class KcodeOptions(InstalledAgentOptions):
    """Given with --ak NAME=VALUE. `wheel`: a file of this machine to install; `model`: kcode's own name where -m does not fit."""

    wheel: str | None = None
    base_url: str | None = None
    model: str | None = None
    profile: str | None = None
    max_turns: int | None = None


class KcodeInstalled(BaseInstalledAgent):
    """Headless kcode in the environment's working folder."""

    capabilities = _capabilities.AgentCapabilities(atif=True)
    options_model = KcodeOptions

    @staticmethod
    def name() -> str:
        return "kcode"

    def get_version_command(self) -> str | None:
        return "kcode --version"

    def parse_version(self, stdout: str) -> str:
        return stdout.strip().removeprefix("kcode ")

    async def install(self, environment: Environment) -> None:
        """The wheel, or what is there already, or the published package."""
        options = self._chosen
        if options.wheel is not None:
            wheel = f"{PLACE}/{Path(options.wheel).name}"
            await environment.upload_file(options.wheel, wheel)
            await self.exec_as_agent(environment, f"uv tool install --python 3.12 {shlex.quote(wheel)}")
            return
        package = f"kcode-agent=={kcode.__version__}"
        await self.exec_as_agent(environment, f"command -v kcode || uv tool install --python 3.12 {package}")

    async def run(self, instruction: str, environment: Environment, context: Context) -> None:
        """A turn that ends at a limit is an answer; any other failure raises Harbor's NonZeroAgentExitCodeError."""
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".md") as file:
            file.write(self.render_instruction(instruction))
            file.flush()
            await environment.upload_file(file.name, f"{PLACE}/instruction.md")
        await self.exec_as_agent(environment, f"{self._command} || {{ code=$?; [ $code -eq 3 ] || exit $code; }}")

    def populate_context_post_run(self, context: Context) -> None:
        """Tokens from result.json, and trajectory.json made of the transcript, both as far as the run came."""
        folder = self.logs_dir / "session"
        transcript = folder / "transcript.jsonl"
        if transcript.is_file():
            write_export(active_records(read_records(transcript)), self.logs_dir / "trajectory.json", "atif")
        try:
            report = Report.model_validate_json((folder / "result.json").read_bytes())
        except (OSError, ValueError) as error:
            self.logger.warning(f"kcode left no result: {error}")
            return
        context.n_input_tokens = report.usage.prompt
        context.n_cache_tokens = report.usage.cached
        context.n_output_tokens = report.usage.completion
        context.metadata = {"status": report.status, "turns": report.turns, "reason": report.reason}

    @property
    def _chosen(self) -> KcodeOptions:
        assert isinstance(self.options, KcodeOptions)
        return self.options

    @property
    def _command(self) -> str:
        options = self._chosen
        words = ["kcode", "--prompt-file", f"{PLACE}/instruction.md", "--output-format", "stream-json", "--output-dir", SESSION]
        words += ["--sandbox", "danger-full-access", "--approval-mode", "auto"]
        model = options.model or self.model_name
        given = {"--model": model, "--base-url": options.base_url, "--profile": options.profile, "--max-turns": options.max_turns}
        words += [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
        written = "> /logs/agent/kcode.jsonl 2> /logs/agent/kcode.log"
        return f"export KCODE_HOME={PLACE}/home; mkdir -p /logs/agent; {shlex.join(words)} {written}"
