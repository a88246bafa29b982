"""`kcode mcp`: the user's own tool servers, in config.toml with its comments kept."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kcode.errors import ConfigError, StartError
from kcode.mcp.config import NAME, ServerConfig, find_servers, ignored, parsed
from kcode.paths import Paths, check_workspace, find_paths, make_private

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


@click.group()
def command() -> None:
    """Tool servers (MCP) whose tools a session offers to its model. Those that are programs run outside the sandbox."""


@command.command("list")
def list_command() -> None:
    """List the servers that a session in this folder has."""
    paths, workspace = find_paths(), check_workspace(Path())
    servers = find_servers(paths, workspace)
    for name, config in sorted(servers.items()):
        click.echo(f"{name:<20} {_what(config)}")
    for notice in ignored(paths, workspace):
        click.echo(notice.text, err=True)
    if not servers:
        click.echo("no tool servers; kcode mcp add NAME COMMAND [ARGUMENT...] adds one", err=True)


@command.command("add", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("target", metavar="COMMAND_OR_URL")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Of the program; ${NAME} in VALUE is one of your environment.")
@click.option("--header", multiple=True, metavar="NAME=VALUE", help="Of the requests to a URL.")
@click.option("--access", type=click.Choice(["read", "write", "execute"]), help="What its tools count as for approval.")
def add(
    name: str, target: str, arguments: tuple[str, ...], env: tuple[str, ...], header: tuple[str, ...], access: str | None
) -> None:
    """Add a server to your own configuration, by the command that runs it or by its http(s) URL.

    Options of the command come after it; options of kcode before NAME.
    """
    if not NAME.fullmatch(name):
        raise StartError(f"a server's name has up to 32 letters, digits and hyphens, not {name!r}")
    is_url = target.startswith(("http://", "https://"))
    if is_url and (arguments or env):
        raise StartError(f"{target} is a URL: it takes --header, no arguments and no --env")
    if header and not is_url:
        raise StartError(f"{target} is a command: it takes --env, no --header")
    entry: dict[str, object] = {"url": target} if is_url else {"command": target}
    if arguments:
        entry["args"] = list(arguments)
    for key, pairs in (("env", env), ("headers", header)):
        if pairs:
            entry[key] = dict(_pair(pair) for pair in pairs)
    if access:
        entry["access"] = access
    paths = find_paths()
    document = _document(paths)
    table = _servers(document, paths)
    if name in table:
        raise StartError(f"there is a server {name} already; kcode mcp remove {name} removes it")
    table[name] = entry
    parsed({name: entry}, paths.config_file)
    _write(document, table, paths)
    click.echo(f"added; kcode mcp test {name} asks it for its tools")


@command.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Remove a server from your own configuration."""
    paths = find_paths()
    document = _document(paths)
    table = _servers(document, paths)
    if name not in table:
        raise StartError(f"there is no server {name} in {paths.config_file}")
    del table[name]
    _write(document, table, paths)
    click.echo(f"{name} is removed")


@command.command("test")
@click.argument("name")
def test_command(name: str) -> None:
    """Connect to a server as a session would and list its tools."""
    paths, workspace = find_paths(), check_workspace(Path())
    servers = find_servers(paths, workspace)
    if name not in servers:
        raise StartError(f"there is no server {name}; there are: {', '.join(sorted(servers)) or 'none'}")
    for line in asyncio.run(_tools(name, servers[name], workspace, paths)):
        click.echo(line)


async def _tools(name: str, config: ServerConfig, workspace: Path, paths: Paths) -> list[str]:
    from kcode.mcp.connection import Connection, ServerFailed

    connection = Connection(name, config, workspace, paths.logs)
    try:
        tools = await connection.tools()
    except ServerFailed as error:
        raise StartError(str(error)) from error
    finally:
        await connection.close()
    return [f"{tool.name:<28} {' '.join((tool.description or '').split())[:90]}".rstrip() for tool in tools]


def _what(config: ServerConfig) -> str:
    return config.url or " ".join((config.command, *config.args))


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise StartError(f"{text!r} is not NAME=VALUE")
    return name, value


def _document(paths: Paths) -> TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    file = paths.config_file
    try:
        return tomlkit.parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return tomlkit.document()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise ConfigError(f"cannot read {file}: {error}; fix it or remove it") from error


def _servers(document: TOMLDocument, paths: Paths) -> dict[str, object]:
    table = document.unwrap().get("mcp", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{paths.config_file}: mcp is no table of servers; fix it")
    return table


def _write(document: TOMLDocument, servers: dict[str, object], paths: Paths) -> None:
    """Only what differs of the table is written, so that comments stay."""
    import tomlkit

    if "mcp" not in document:
        document["mcp"] = tomlkit.table(is_super_table=True)
    table = document["mcp"]
    assert isinstance(table, dict)
    for name in [name for name in table if name not in servers]:
        del table[name]
    for name in [name for name in servers if name not in table]:
        table[name] = servers[name]
    file = paths.config_file
    try:
        make_private(file.parent)
        # Of a link, as tools for dotfiles make it, the target is written, and it keeps its mode.
        target = file.resolve()
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_text(tomlkit.dumps(document), encoding="utf-8")
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error}") from error
