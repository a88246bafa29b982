"""`kcode serve`: the engine for other programs, over TCP or a Unix socket, in the foreground."""

from __future__ import annotations

import os
import sys

import click

from kcode.commands.models import installed_model
from kcode.errors import StartError
from kcode.paths import find_paths

KEY_VARIABLE = "KCODE_SERVE_KEY"
"""How a key from our command line reaches the engine."""


@click.command()
@click.argument("model", required=False, default="")
@click.option("--host", default="127.0.0.1", show_default=True, help="Any address but this machine's own needs a key.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--socket", metavar="PATH", help="A Unix socket (mode 0600) instead of a port.")
@click.option("--api-key-env", metavar="NAME", help="Ask clients for the key in this environment variable.")
@click.option("--api-key", metavar="KEY", help="The same with the key itself, which stays in the history of your shell.")
@click.option("--context", type=click.IntRange(min=1), metavar="N", help="Most tokens of prompt and answer together.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Compute threads; by default all cores.")
@click.option("--kv", type=click.Choice(["f16", "int8", "int4"]), help="Numbers of the cache of keys and values.")
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(min=0),
    metavar="S",
    default=30.0,
    show_default=True,
    help="Seconds that answers may go on after Ctrl+C; a second Ctrl+C ends them.",
)
def command(
    model: str,
    host: str,
    port: int,
    socket: str | None,
    api_key_env: str | None,
    api_key: str | None,
    context: int | None,
    threads: int | None,
    kv: str | None,
    shutdown_timeout: float,
) -> None:
    """Serve MODEL (a catalogue name, a .gguf file or a folder of safetensors) over the OpenAI protocol until it is stopped."""
    file = installed_model(model, find_paths().models)
    name = file.name.removesuffix(".gguf")
    arguments = ["--model", str(file), "--name", name]
    arguments += ["--socket", os.path.abspath(socket)] if socket else ["--host", host, "--port", str(port)]
    if api_key_env is not None:
        if not os.environ.get(api_key_env, ""):
            raise StartError(f"--api-key-env {api_key_env}: there is no such environment variable, or it is empty")
    elif api_key:
        api_key_env = KEY_VARIABLE
        os.environ[KEY_VARIABLE] = api_key
    if api_key_env is not None:
        # Only the variable's name: every user of the machine can read command lines.
        arguments += ["--api-key-env", api_key_env]
    if not socket:
        _check_address(host, port, keyed=api_key_env is not None)
    arguments += ["--shutdown-timeout", f"{shutdown_timeout:g}"]
    for name, value in (("--context", context), ("--threads", threads), ("--kv", kv)):
        if value is not None:
            arguments += [name, str(value)]
    click.echo(f"serving {name} at {socket or f'http://{host}:{port}/v1'}; stop with Ctrl+C", err=True)
    # The engine takes this process's place, so signals and the exit code are its own.
    os.execv(sys.executable, [sys.executable, "-m", "kcode_backend.server", *arguments])


def _check_address(host: str, port: int, *, keyed: bool) -> None:
    """Raises StartError before anything is said about a server that could not be there."""
    from kcode_backend.http.bind import CannotListen, is_loopback, listen_tcp

    if not keyed and not is_loopback(host):
        raise StartError(f"--host {host} can be reached by others; give --api-key-env NAME or use 127.0.0.1")
    try:
        listen_tcp(host, port, keyed=True).close()
    except CannotListen as error:
        raise StartError(str(error)) from error
