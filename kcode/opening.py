"""Puts a session together from the settings: the one place where model, sandbox, tools and profile meet."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import kcode
from kcode.agents import with_agents
from kcode.approval import Approval, ApprovalMode, Asker
from kcode.checkpoint import Checkpoints
from kcode.context import Context
from kcode.errors import ConfigError, SandboxUnavailable
from kcode.events import Notice
from kcode.extensions import extend
from kcode.grants import Grant, Grants, standing_grants, widened
from kcode.guided.drive import Guided
from kcode.loop import work
from kcode.messages import system
from kcode.model import ChatModel
from kcode.models.http import HttpModel
from kcode.models.local import EngineOptions, LocalModel
from kcode.models.openai_wire import Writing
from kcode.models.scripted import ScriptedModel, read_script
from kcode.paths import Paths, folders_of
from kcode.profiles import Profile, choose_profile, limits_for, sampling_for, thinking_for
from kcode.project import in_project
from kcode.session import Equipment, Session, Trees
from kcode.settings import SCRIPTED, Settings
from kcode.steps import Driver
from kcode.tools.toolbox import build_specs, build_tools
from kcode.transcript import Opened, SessionInfo, Transcript, create, find_session, list_sessions, open_existing, utc_now
from kcode.trust import trust_here
from kcode_prompts.prompt import load
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.errors import SandboxError
from kcode_sandbox.policy import Policy, parse_network
from kcode_sandbox.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """`spec` is what names the model again when the session is resumed."""

    model: ChatModel
    spec: str
    local: bool
    file_bytes: int = 0


Choose = Callable[[Settings, Paths, Callable[[str], None] | None], ChosenModel]


def choose_model(settings: Settings, paths: Paths, on_redacted: Callable[[str], None] | None = None) -> ChosenModel:
    """The model the settings name. Raises StartError (ModelNotFound with the command that installs one)."""
    if settings.model.startswith(SCRIPTED):
        script = read_script(Path(settings.model.removeprefix(SCRIPTED)))
        return ChosenModel(ScriptedModel(script), settings.model, local=False)
    if settings.base_url:
        writing = Writing(thinking_for(settings, settings.model), settings.thinking_retention)
        key, variable = settings.api_key, settings.api_key_env
        model = HttpModel(
            settings.base_url,
            settings.model,
            key,
            variable,
            writing=writing,
            redaction=settings.redaction,
            on_redacted=on_redacted,
        )
        return ChosenModel(model, settings.model, local=False)
    from kcode.commands.models import installed_model

    file = installed_model(settings.model, paths.models)
    options = engine_options(file, settings, paths)
    # What is in the prompt stays there, so that nothing is computed twice.
    growing = Writing(thinking_for(settings, file.name), settings.thinking_retention or "all")
    model = LocalModel(options, paths.runtime, paths.logs, writing=growing)
    return ChosenModel(model, str(file), local=True, file_bytes=_size_bytes(file))


def _size_bytes(model: Path) -> int:
    """Of a file, or of all files of a folder."""
    files = [file for file in model.iterdir() if file.is_file()] if model.is_dir() else [model]
    return sum(file.stat().st_size for file in files)


def engine_options(file: Path, settings: Settings, paths: Paths) -> EngineOptions:
    """How the engine for a model file is started."""
    kept_bytes = int(settings.kv_disk_gb * 1e9)
    return EngineOptions(
        file,
        settings.context_limit,
        settings.threads,
        settings.engine_idle_s,
        kv_dir=paths.contexts if kept_bytes else None,
        kv_disk_bytes=kept_bytes,
        kv=settings.kv,
        expert_ram_bytes=int(settings.expert_ram_gb * 1e9),
        expert_counts=paths.expert_counts,
    )


def driver_of(profile: Profile, sandbox: Sandbox, seed: int) -> Driver:
    """The free loop, or the driver that leads a small model by the hand."""
    return Guided(sandbox, seed).drive if profile.guided else work


def policy_of(
    settings: Settings,
    workspace: Path,
    paths: Paths,
    grants: Sequence[Grant] = (),
) -> Policy:
    """What the settings and what was granted allow. Raises StartError."""
    environment = tuple(sorted(clean_environment(os.environ).items()))
    try:
        network, hosts = parse_network(settings.network)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    skills = (paths.skills.resolve(),) if paths.skills.is_dir() else ()
    policy = Policy(
        workspace,
        profile=settings.sandbox,
        network=network,
        hosts=hosts,
        readable=(*folders_of("--read-dir", settings.read_dir), *skills),
        writable=folders_of("--add-dir", settings.add_dir),
        protect=paths.own,
        environment=environment,
        backend=settings.sandbox_backend,
        image=settings.sandbox_image,
    )
    return widened(policy, grants)


async def open_policy(settings: Settings, workspace: Path, paths: Paths, grants: Sequence[Grant] = ()) -> Sandbox:
    """The started sandbox for these settings. Raises SandboxUnavailable."""
    policy = policy_of(settings, workspace, paths, grants)
    try:
        sandbox = open_sandbox(policy)
        await sandbox.start()
    except SandboxError as error:
        raise SandboxUnavailable(str(error)) from error
    return sandbox


@dataclass(frozen=True, slots=True)
class Apart:
    """Where a session works when not in the workspace itself: a started clone of it, its snapshots, a transcript of its own.

    The model is that of whoever opens it; the session only closes its own door to it.
    """

    model: ChosenModel
    sandbox: Sandbox
    tree: Trees
    transcript: Transcript
    seed: int


@dataclass(frozen=True, slots=True)
class PastSession:
    """A line of the session picker; `when` is local time."""

    id: str
    title: str
    when: str


class Sessions:
    """Opens the sessions of one workspace: an existing folder, absolute and without links in its path.

    `choose` makes the model that the settings name; a program may bring one of its own.
    """

    def __init__(
        self,
        settings: Settings,
        workspace: Path,
        paths: Paths,
        default_mode: ApprovalMode,
        choose: Choose | None = None,
    ) -> None:
        self._choose = choose or choose_model
        self.workspace = self._workspace = workspace
        self.paths = self._paths = paths
        self._settings = settings
        self._default_mode: ApprovalMode = default_mode

    async def open(self, resume_id: str | None, model: str | None, ask: Asker | None) -> Session:
        """A new session, the one whose id begins with `resume_id`, or with "" the last one used.

        `model` overrides the settings' one; a resumed session keeps its own model unless one is named. The model is not
        started yet: `Session.start` or the first turn does that.
        """
        settings = self._settings if model is None else replace(self._settings, model=model)
        folder = self._paths.sessions(self._workspace)
        transcript = None
        if resume_id is not None:
            transcript = open_existing(find_session(folder, resume_id))
            if not settings.model and not settings.base_url:
                settings = replace(settings, model=_last_model(transcript))
        try:
            return await self._assemble(settings, transcript, folder, ask)
        except BaseException:
            if transcript is not None:
                transcript.close()
            raise

    def trust(self) -> str:
        return trust_here(self._paths, self._workspace)

    async def past(self) -> Sequence[PastSession]:
        return [
            PastSession(info.session_id, info.title, _when(info)) for info in list_sessions(self._paths.sessions(self._workspace))
        ]

    async def open_apart(self, apart: Apart) -> Session:
        """A session in a clone. It owns the sandbox and the transcript, which are closed when this raises."""
        settings, notices = in_project(replace(self._settings, seed=apart.seed), self._workspace, self._paths)
        try:
            equipment = self._equip(settings, apart.model, apart.sandbox, apart.tree, None, None)
            return await self._converse(settings, replace(equipment, notices=notices), apart.model.spec, apart.transcript)
        except BaseException:
            apart.transcript.close()
            await apart.sandbox.close()
            raise

    def in_force(self) -> Settings:
        """The settings with those of the project."""
        return in_project(self._settings, self._workspace, self._paths)[0]

    def policy(self) -> Policy:
        """What a session of this workspace may do."""
        return policy_of(self.in_force(), self._workspace, self._paths, standing_grants(self._paths, self._workspace))

    async def open_sandbox(self) -> Sandbox:
        """The workspace's own, started."""
        standing = standing_grants(self._paths, self._workspace)
        return await open_policy(self.in_force(), self._workspace, self._paths, standing)

    async def _assemble(self, settings: Settings, transcript: Transcript | None, folder: Path, ask: Asker | None) -> Session:
        late: deque[str] = deque()
        settings, notices = in_project(settings, self._workspace, self._paths)
        chosen = self._choose(settings, self._paths, late.append)
        standing = standing_grants(self._paths, self._workspace)
        if standing and settings.sandbox != "danger-full-access":
            listed = ", ".join(map(str, standing))
            notices += (Notice("info", f"granted earlier for this folder: {listed}; see kcode sandbox grants"),)
        sandbox = await open_policy(settings, self._workspace, self._paths, standing)
        try:
            if not chosen.model.name:
                await chosen.model.start()
            checkpoints = Checkpoints(self._workspace, self._paths.checkpoints(self._workspace))
            equipment = replace(self._equip(settings, chosen, sandbox, checkpoints, transcript, ask), notices=notices, late=late)
            if transcript is None:
                transcript = create(folder, self._workspace, kcode.__version__)
            return await self._converse(settings, equipment, chosen.spec, transcript, agents=True)
        except BaseException:
            if transcript is not None:
                transcript.close()
            await sandbox.close()
            await chosen.model.close()
            raise

    def _equip(
        self,
        settings: Settings,
        chosen: ChosenModel,
        sandbox: Sandbox,
        trees: Trees,
        transcript: Transcript | None,
        ask: Asker | None,
    ) -> Equipment:
        profile = choose_profile(
            settings,
            chosen.model.name,
            local=chosen.local,
            file_bytes=chosen.file_bytes,
            before=_last_profile(transcript, chosen.spec),
            pictures=chosen.model.sees is True if chosen.spec.startswith(SCRIPTED) else None,
        )
        grants = Grants(sandbox, self._paths, ask, Path.home().resolve())
        tools = build_tools(sandbox, profile.tools, chosen.model, grants.decide)
        mode: ApprovalMode = settings.approval_mode or self._default_mode
        is_dirty = Checkpoints(self._workspace, self._paths.checkpoints(self._workspace)).is_dirty
        return Equipment(
            model=chosen.model,
            sandbox=sandbox,
            tools=tools,
            specs=build_specs(tools, brief=profile.brief),
            profile=profile,
            limits=limits_for(profile, settings),
            sampling=sampling_for(profile, settings, draw_seed=chosen.local),
            driver=driver_of(profile, sandbox, max(settings.seed, 0)),
            approval=Approval(mode, ask, is_dirty),
            checkpoints=trees,
            grants=grants,
        )

    async def _converse(
        self, settings: Settings, equipment: Equipment, spec: str, transcript: Transcript, *, agents: bool = False
    ) -> Session:
        profile, sandbox = equipment.profile, equipment.sandbox
        transcript.append(Opened(utc_now(), spec, profile.name, sandbox.description, equipment.sampling))
        limit = settings.context_limit or None
        context = Context(transcript, limit)
        if not context.messages:
            context.add(system(system_text(profile, self._workspace, sandbox)))
        equipment = await extend(equipment, self._paths, self._workspace, lambda: context.messages)
        if agents:
            equipment = with_agents(equipment, self._paths, self._workspace, transcript, context, limit)
        return Session(equipment, transcript, context)


def system_text(profile: Profile, workspace: Path, sandbox: Sandbox) -> str:
    """The head of the conversation: nothing in it changes while the session lives."""
    if profile.prompt == "system":
        return load("system", workspace=str(workspace), sandbox=sandbox.description)
    return load(profile.prompt)


def _last_model(transcript: Transcript) -> str:
    return next((record.model for record in reversed(transcript.records) if isinstance(record, Opened)), "")


def _last_profile(transcript: Transcript | None, spec: str) -> str:
    """The profile of the session's last opening, if that was with the same model: its tools are at the head of the prompt."""
    opened = [record for record in transcript.records if isinstance(record, Opened)] if transcript is not None else []
    return opened[-1].profile if opened and opened[-1].model == spec else ""


def _when(info: SessionInfo) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(info.modified))
