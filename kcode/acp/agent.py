"""kcode as an agent of the Agent Client Protocol: an editor is the screen, over standard input and output."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from acp import RequestError, helpers
from acp.schema import (
    AgentCapabilities,
    AllowedOutcome,
    Implementation,
    InitializeResponse,
    ListSessionsResponse,
    LoadSessionResponse,
    NewSessionResponse,
    PermissionOption,
    PermissionOptionKind,
    PromptCapabilities,
    PromptResponse,
    SessionCapabilities,
    SessionInfo,
    SessionListCapabilities,
    SessionMode,
    SessionModeState,
    SetSessionModeResponse,
)

from kcode import __version__
from kcode.acp.prompts import Block, prompt_text
from kcode.acp.updates import Updates, arguments_of, kind_of, locations_of, past, replacement_of, stop_reason
from kcode.approval import Answer, ApprovalMode, Asker, Question, Reply
from kcode.errors import KcodeError
from kcode.events import TurnFinished
from kcode.opening import Sessions
from kcode.paths import Paths, check_workspace
from kcode.session import Session
from kcode.settings import Settings

if TYPE_CHECKING:
    from acp.interfaces import Client
    from acp.schema import ClientCapabilities

PROTOCOL_VERSION = 1
MODES = {"plan": "Only reads", "ask": "Asks before it changes or runs something", "auto": "Does what the sandbox allows"}
log = logging.getLogger(__name__)


class Agent:
    """The sessions of one client. Method and parameter names are the protocol's, as its SDK wants them."""

    def __init__(self, settings: Settings, paths: Paths) -> None:
        self._settings = settings
        self._paths = paths
        self._client: Client | None = None
        self._sessions: dict[str, tuple[Session, Path]] = {}

    def on_connect(self, conn: Client) -> None:
        self._client = conn

    async def initialize(
        self,
        protocol_version: int,
        client_capabilities: ClientCapabilities | None = None,
        client_info: Implementation | None = None,
        **meta: object,
    ) -> InitializeResponse:
        return InitializeResponse(
            protocol_version=PROTOCOL_VERSION,
            agent_info=Implementation(name="kcode", version=__version__),
            agent_capabilities=AgentCapabilities(
                load_session=True,
                prompt_capabilities=PromptCapabilities(embedded_context=True),
                session_capabilities=SessionCapabilities(list=SessionListCapabilities()),
            ),
        )

    async def new_session(
        self,
        cwd: str,
        additional_directories: list[str] | None = None,
        mcp_servers: Sequence[object] | None = None,
        **meta: object,
    ) -> NewSessionResponse:
        session = await self._open(cwd, None, additional_directories)
        return NewSessionResponse(session_id=session.id, modes=_modes(session))

    async def load_session(
        self,
        cwd: str,
        session_id: str,
        mcp_servers: Sequence[object] | None = None,
        additional_directories: list[str] | None = None,
        **meta: object,
    ) -> LoadSessionResponse:
        if session_id in self._sessions:
            await self._sessions.pop(session_id)[0].close()
        session = await self._open(cwd, session_id, additional_directories)
        for update in past(session.messages):
            await self._connected.session_update(session.id, update)
        return LoadSessionResponse(modes=_modes(session))

    async def list_sessions(self, cwd: str | None = None, cursor: str | None = None, **meta: object) -> ListSessionsResponse:
        if cwd is None:
            return ListSessionsResponse(sessions=[])
        try:
            found = await Sessions(self._settings, check_workspace(Path(cwd)), self._paths, "ask").past()
        except KcodeError as error:
            raise RequestError(-32602, str(error)) from error
        return ListSessionsResponse(sessions=[SessionInfo(session_id=one.id, cwd=cwd, title=one.title) for one in found])

    async def set_session_mode(self, session_id: str, mode_id: str, **meta: object) -> SetSessionModeResponse:
        session, _ = self._session(session_id)
        if mode_id not in MODES:
            raise RequestError(-32602, f"there is no mode {mode_id!r}; there are {', '.join(MODES)}")
        session.set_approval_mode(cast("ApprovalMode", mode_id))
        return SetSessionModeResponse()

    async def prompt(self, session_id: str, prompt: Sequence[Block], **meta: object) -> PromptResponse:
        session, workspace = self._session(session_id)
        if session.is_busy:
            raise RequestError(-32600, "a turn is running in this session; cancel it or wait for its end")
        finished: TurnFinished | None = None
        updates = Updates(workspace)
        try:
            async with aclosing(session.submit(prompt_text(prompt))) as events:
                async for event in events:
                    for update in updates.of(event):
                        await self._connected.session_update(session_id, update)
                    if isinstance(event, TurnFinished):
                        finished = event
        except KcodeError as error:
            raise RequestError(-32603, str(error)) from error
        assert finished is not None
        if finished.status == "error":
            raise RequestError(-32603, finished.reason)
        if finished.status in {"limit", "loop"}:
            await self._connected.session_update(session_id, helpers.update_agent_message_text(f"\n[{finished.reason}]"))
        return PromptResponse(stop_reason=stop_reason(finished))

    async def cancel(self, session_id: str, **meta: object) -> None:
        if session_id in self._sessions:
            self._sessions[session_id][0].interrupt()

    async def close(self) -> None:
        """End all sessions."""
        sessions = [session for session, _ in self._sessions.values()]
        self._sessions.clear()
        await asyncio.gather(*(session.close() for session in sessions))

    @property
    def _connected(self) -> Client:
        assert self._client is not None
        return self._client

    def _session(self, session_id: str) -> tuple[Session, Path]:
        if session_id not in self._sessions:
            raise RequestError(-32602, f"there is no open session {session_id!r}; load it first")
        return self._sessions[session_id]

    async def _open(self, cwd: str, resume: str | None, more: list[str] | None) -> Session:
        settings = self._settings
        if more:
            settings = replace(settings, add_dir=":".join(filter(None, (settings.add_dir, *more))))
        named: list[str] = []
        try:
            workspace = check_workspace(Path(cwd))
            session = await Sessions(settings, workspace, self._paths, "ask").open(resume, None, self._asker(named, workspace))
        except KcodeError as error:
            raise RequestError(-32603, str(error)) from error
        named.append(session.id)
        self._sessions[session.id] = (session, workspace)
        return session

    def _asker(self, named: list[str], workspace: Path) -> Asker:
        """`named` holds the session's id once it is open; nothing is asked before."""

        async def ask(question: Question) -> Reply:
            options = [PermissionOption(option_id=answer, name=name, kind=kind) for answer, name, kind in _options(question)]
            call = helpers.update_tool_call(
                question.call.id,
                title=f"{question.summary} ({question.reason})",
                kind=kind_of(question.call.name, question.access),
                status="pending",
                locations=locations_of(question.call, workspace),
                raw_input=arguments_of(question.call),
                content=replacement_of(question.call, question.before, workspace),
            )
            try:
                response = await self._connected.request_permission(named[0], call, options)
            except RequestError as error:
                log.warning("the client did not answer a question: %s", error)
                return Reply("deny")
            outcome = response.outcome
            if isinstance(outcome, AllowedOutcome) and outcome.option_id in get_args(Answer):
                return Reply(cast("Answer", outcome.option_id))
            return Reply("deny")

        return ask


def _options(question: Question) -> list[tuple[str, str, PermissionOptionKind]]:
    if question.is_grant:
        return [
            ("allow", "Open it for this turn", "allow_once"),
            ("allow-session", "Open it for this session", "allow_always"),
            ("allow-always", "Open it always in this folder", "allow_always"),
            ("deny", "Do not open it", "reject_once"),
        ]
    return [
        ("allow", "Run it", "allow_once"),
        ("allow-session", f"Run it, and {question.call.name} for this session", "allow_always"),
        ("deny", "Do not run it", "reject_once"),
    ]


def _modes(session: Session) -> SessionModeState:
    modes = [SessionMode(id=name, name=name.capitalize(), description=text) for name, text in MODES.items()]
    return SessionModeState(current_mode_id=session.approval_mode, available_modes=modes)
