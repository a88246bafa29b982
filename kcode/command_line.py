"""What may be said on the command line. Nothing heavy is imported before it is known what to do."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kcode import __version__
from kcode.errors import KcodeError, StartError

if TYPE_CHECKING:
    from kcode.attempts import Plan
    from kcode.headless import Format
    from kcode.paths import Paths
    from kcode.settings import Settings, Value

log = logging.getLogger(__name__)

COMMANDS = {
    "acp": "be the agent of an editor (Agent Client Protocol)",
    "ci": "turn a failing test command or an issue into a verified patch",
    "export": "a session as markdown, HTML page or ATIF trajectory",
    "doctor": "what this machine offers and what is missing",
    "mcp": "list, add, remove and test tool servers",
    "models": "list, pull, show and remove models",
    "replay": "find the first step at which a model leaves a recorded session",
    "sessions": "list the sessions of this folder",
    "sandbox": "explain the sandbox, or run a command in it",
    "serve": "serve a model over the OpenAI protocol",
    "swebench": "work on the tasks of SWE-bench, and grade patches",
    "terminal-bench": "work on the tasks of Terminal-Bench and Harbor",
    "trust": "let a folder's own configuration count",
    "verify-tools": "measure how reliably a model calls tools",
}
# Commands of packages that are built on kcode.
ELSEWHERE = {"swebench": "kcode_bench.swe.command", "terminal-bench": "kcode_bench.terminal_bench.command"}
# The mark keeps click from running the lines together.
EPILOG = "\b\nCommands:\n" + "\n".join(f"  kcode {name:<12} {text}" for name, text in COMMANDS.items())


class LazyGroup(click.Group):
    """Imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = ELSEWHERE.get(cmd_name, f"kcode.commands.{cmd_name.replace('-', '_')}")
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup)
def commands() -> None:
    """kcode's other commands."""


def _log_to_stderr(context: click.Context, parameter: click.Parameter, debug: bool) -> None:
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="kcode: %(message)s", stream=sys.stderr)


def _flags(context: click.Context) -> dict[str, Value]:
    """The settings that were given as options."""
    flags: dict[str, Value] = context.meta.setdefault("kcode.flags", {})
    return flags


def _keep_flag(context: click.Context, option: click.Parameter, given: str | tuple[str, ...] | None) -> None:
    if option.name and given is not None and given != ():
        _flags(context)[option.name] = ":".join(given) if isinstance(given, tuple) else given


setting = partial(click.option, callback=_keep_flag, expose_value=False)
"""An option that is one of the settings, of the same name."""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt", required=False)
@click.option("-p", "--print", "print_prompt", metavar="TEXT", help="Run headless with this prompt; - reads standard input.")
@click.option("--prompt-file", metavar="FILE", help="Run headless with the prompt in FILE.")
@click.option("--output-format", type=click.Choice(["text", "json", "stream-json"]), default="text", help="Of a headless run.")
@click.option("--output-dir", metavar="DIR", help="Write result.json, transcript.jsonl and diff.patch there (headless).")
@click.option("-c", "--continue", "resume_last", is_flag=True, help="Go on with the last session of this folder.")
@click.option("-r", "--resume", "resume_id", metavar="ID", help="Go on with the session whose id begins with ID.")
@click.option("--fork", "fork_id", metavar="ID", help="Go on with a copy of that session; the session itself stays as it is.")
@setting("-m", "--model", metavar="NAME", help="A model's name (see kcode models list), a .gguf file or a folder of safetensors.")
@setting("--base-url", metavar="URL", help="An OpenAI-style server instead of kcode's own engine.")
@click.option("-C", "--cd", "folder", metavar="DIR", default=".", help="Work in DIR.")
@setting("--sandbox", metavar="MODE", help="read-only, workspace-write (default) or danger-full-access.")
@setting(
    "--sandbox-backend", metavar="NAME", help="auto (default), bubblewrap, the weaker landlock (no namespaces), docker or podman."
)
@setting("--sandbox-image", metavar="NAME", help="The container image that docker or podman is to use; it needs Python.")
@setting("--network", metavar="off|on|HOSTS", help="What commands may reach (default off); HOSTS: a.org,*.b.net:8443.")
@setting("--add-dir", metavar="DIR", multiple=True, help="Another folder that commands may write.")
@setting("--read-dir", metavar="DIR", multiple=True, help="Another folder that commands may read.")
@setting("--approval-mode", metavar="MODE", help="plan, ask or auto (default: ask on a screen, auto headless).")
@click.option("-y", "--yolo", is_flag=True, help="The same as --approval-mode auto.")
@setting("--profile", metavar="NAME", help="auto (default), kimi, generic or small: how the model is driven.")
@setting("--effort", metavar="LEVEL", help="low, medium or high: how long the model may work and think.")
@setting("--max-turns", metavar="N", help="Stop after N model calls.")
@setting("--max-tokens", metavar="N", help="Stop after N tokens written by the model.")
@setting("--time-limit", "time_limit_s", metavar="SECONDS", help="Stop after so long.")
@setting("--context-limit", metavar="N", help="Use at most N tokens of context.")
@setting("--temperature", metavar="T", help="Sampling temperature.")
@setting("--seed", metavar="N", help="Seed of the sampler.")
@click.option(
    "--attempts", metavar="N", type=int, help="Up to N attempts, each in a copy; the first that passes the tests counts."
)
@click.option("--all-attempts", is_flag=True, help="Make all N; of those that pass, the smallest diff counts.")
@click.option("--keep-best", is_flag=True, help="Keep the best attempt even when none passes.")
@click.option("--plain", is_flag=True, help="No full screen: lines one after another, as screen readers need them.")
@click.option("--debug", is_flag=True, help="Say more on standard error.", callback=_log_to_stderr, expose_value=False)
@click.version_option(__version__, "-v", "-V", "--version", message="kcode %(version)s")
def agent(
    prompt: str | None,
    print_prompt: str | None,
    prompt_file: str | None,
    output_format: Format,
    output_dir: str | None,
    resume_last: bool,
    resume_id: str | None,
    fork_id: str | None,
    folder: str,
    yolo: bool,
    attempts: int | None,
    all_attempts: bool,
    keep_best: bool,
    plain: bool,
) -> int:
    """A coding agent in the terminal. Without -p it opens the screen, with PROMPT as the first message.

    Exit codes of a headless run: 0 finished, 1 could not start, 2 the model or the sandbox failed, 3 stopped by a limit, going
    in circles or without an attempt that passes, 4 stopped by the user.
    """
    flags = _flags(click.get_current_context())
    if yolo:
        flags["approval_mode"] = "auto"
    headless_prompt = _headless_prompt(prompt, print_prompt, prompt_file)
    resume = "" if resume_last and resume_id is None else resume_id
    if fork_id is not None:
        resume = _fork(fork_id, folder)
    plan = _plan(attempts, run_all=all_attempts, keep_best=keep_best, is_headless=headless_prompt is not None)
    if headless_prompt is None:
        return _show_screen(prompt or "", resume, folder, flags, plain=plain or os.environ.get("TERM") == "dumb")
    return _run_headless(headless_prompt, resume, folder, flags, output_format, output_dir, plan)


def _headless_prompt(prompt: str | None, print_prompt: str | None, prompt_file: str | None) -> str | None:
    """The text of a headless run; None for the screen, which needs a terminal on both sides."""
    if print_prompt is not None and prompt_file is not None:
        raise StartError("give the prompt with -p or with --prompt-file, not with both")
    if print_prompt is not None and print_prompt != "-":
        return print_prompt
    try:
        if prompt_file is not None:
            return Path(prompt_file).read_text(encoding="utf-8")
        if print_prompt == "-":
            return sys.stdin.read()
        if sys.stdin.isatty() and sys.stdout.isatty():
            return None
        return prompt if prompt is not None else sys.stdin.read()
    except OSError as error:
        raise StartError(f"--prompt-file {prompt_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StartError(f"the prompt in {prompt_file or 'standard input'} is not UTF-8 text (byte {error.start})") from error


def _plan(count: int | None, *, run_all: bool, keep_best: bool, is_headless: bool) -> Plan | None:
    if count is None:
        if run_all or keep_best:
            raise StartError("--all-attempts and --keep-best go with --attempts N")
        return None
    if not is_headless:
        raise StartError("--attempts is for headless runs; give the task with -p TEXT")
    from kcode.attempts import Plan

    return Plan(count, run_all, keep_best)


def _prepare(folder: str, flags: dict[str, Value]) -> tuple[Settings, Path, Paths]:
    from kcode.paths import check_workspace, find_paths
    from kcode.settings import load_settings

    paths = find_paths()
    settings = load_settings(paths.config_file, os.environ, flags)
    return settings, check_workspace(Path(folder)), paths


def _fork(wanted: str, folder: str) -> str:
    """The id of a new session with everything of the wanted one."""
    from kcode.paths import check_workspace, find_paths
    from kcode.transcript import find_session, fork

    return fork(find_session(find_paths().sessions(check_workspace(Path(folder))), wanted)).stem


def _run_headless(
    prompt: str,
    resume: str | None,
    folder: str,
    flags: dict[str, Value],
    output_format: Format,
    output_dir: str | None,
    plan: Plan | None,
) -> int:
    import asyncio

    from kcode.headless import HeadlessRun, run
    from kcode.opening import Sessions

    settings, workspace, paths = _prepare(folder, flags)
    out = Path(output_dir) if output_dir is not None else None
    wanted = HeadlessRun(prompt, workspace, output_format, resume, out, plan)
    return asyncio.run(run(wanted, Sessions(settings, workspace, paths, "auto")))


def _show_screen(first_message: str, resume: str | None, folder: str, flags: dict[str, Value], *, plain: bool) -> int:
    import gc

    # Until the conversation is open nearly all that is made stays; looking through it costs a tenth of the start.
    gc.disable()
    from kcode.commands.screen import show

    settings, workspace, paths = _prepare(folder, flags)
    if settings.sandbox == "danger-full-access":
        _confirm_full_access()
    if not plain and not sys.stderr.isatty():
        # The screen is drawn there, so that a program that reads the output gets none of it.
        raise StartError("standard error is not a terminal (2>FILE?), and the screen is drawn there; --plain and -p do without")
    _log_to_file(paths.logs / "screen.log")
    return show(settings, workspace, paths, resume, first_message, plain=plain)


def _confirm_full_access() -> None:
    """A slip of a flag or a line in a file is not enough to go without walls."""
    click.secho("No sandbox: the model's commands may read your keys, write anywhere and use the network.", fg="red", bold=True)
    if click.prompt("Type full access to go on", default="", show_default=False).strip() != "full access":
        raise StartError("danger-full-access was not confirmed; start kcode without it, or type: full access")


def _log_to_file(file: Path) -> None:
    """While the screen is shown, a line on standard error would be written across it."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = logging.FileHandler(file, delay=True)
    except OSError as error:
        raise StartError(f"{file} cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.getLogger().level, handlers=[handler], force=True)


def run_command_line(arguments: list[str]) -> int:
    """Run with these arguments; the exit code. Every expected failure is one line on stderr, ours are a traceback and code 2."""
    command = commands if arguments and arguments[0] in COMMANDS else agent
    try:
        code = command.main(arguments, prog_name="kcode", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        print(f"kcode: {error.format_message()}", file=sys.stderr)
        return 1
    except (click.Abort, KeyboardInterrupt):
        print("kcode: stopped", file=sys.stderr)
        return 4
    except KcodeError as error:
        print(f"kcode: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except Exception:
        log.exception("kcode itself failed; please report this")
        return 2
