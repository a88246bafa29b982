"""`kcode serve`: the engine for other programs, over TCP or a Unix socket, in the foreground."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from kcode.commands.models import installed_model
from kcode.errors import StartError
from kcode.paths import find_paths
from kcode.settings import load_settings

KEY_VARIABLE = "KCODE_SERVE_KEY"
"""How a key from our command line reaches the engine."""


@click.command()
@click.argument("model", required=False, default="")
@click.option("-m", "--model", "named", metavar="MODEL", default="", help="The same as MODEL, as every other command has it.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Any address but this machine's own needs a key.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--socket", metavar="PATH", help="A Unix socket (mode 0600) instead of a port.")
@click.option("--api-key-env", metavar="NAME", help="Ask clients for the key in this environment variable.")
@click.option("--api-key", metavar="KEY", help="The same with the key itself, which stays in the history of your shell.")
@click.option("--name", default="", help="The model's id for clients; by default the file's name.")
@click.option("--context", type=click.IntRange(min=1), metavar="N", help="Most tokens of prompt and answer together.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Compute threads; by default all cores.")
@click.option("--kv", type=click.Choice(["f16", "int8", "int4"]), help="Numbers of the cache of keys and values.")
@click.option(
    "--kv-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PATH",
    help="Where computed contexts outlive a restart; by default in kcode's cache folder.",
)
@click.option("--kv-disk-gb", type=click.FloatRange(min=0), metavar="N", help="Most gigabytes of them; 0 keeps none.")
@click.option(
    "--expert-ram",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Memory for experts; those that do not fit are read when they are chosen.",
)
@click.option("--expert-lock", type=click.FloatRange(min=0), metavar="GB", default=0.0, help="Of it, never swapped out.")
@click.option(
    "--idle-timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="End after so long without a request."
)
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
    named: str,
    host: str,
    port: int,
    socket: str | None,
    api_key_env: str | None,
    api_key: str | None,
    name: str,
    context: int | None,
    threads: int | None,
    kv: str | None,
    kv_dir: Path | None,
    kv_disk_gb: float | None,
    expert_ram: float | None,
    expert_lock: float,
    idle_timeout: float | None,
    shutdown_timeout: float,
) -> None:
    """Serve MODEL (a catalogue name, a .gguf file or a folder of safetensors) over the OpenAI protocol until it is stopped.

    What is not said here and in the settings (threads, kv, kv_disk_gb) is the engine's own choice.
    """
    paths = find_paths()
    # A key may be in a variable that begins as our settings do.
    environment = {name: value for name, value in os.environ.items() if name not in (api_key_env, KEY_VARIABLE)}
    settings = load_settings(paths.config_file, environment, {})
    file = installed_model(_one_of(model, named), paths.models)
    name = name or file.name.removesuffix(".gguf")
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
    arguments += _kept(kv_dir or paths.contexts, settings.kv_disk_gb if kv_disk_gb is None else kv_disk_gb)
    arguments += ["--expert-counts", str(paths.expert_counts)]
    experts = {"--expert-ram": int((expert_ram or settings.expert_ram_gb) * 1e9), "--expert-lock": int(expert_lock * 1e9)}
    chosen = {"--context": context, "--threads": threads or settings.threads, "--kv": kv or settings.kv}
    for flag, value in {**chosen, **experts, "--idle-timeout": idle_timeout}.items():
        if value:
            arguments += [flag, str(value)]
    click.echo(f"serving {name} at {socket or f'http://{host}:{port}/v1'}; stop with Ctrl+C", err=True)
    # The engine takes this process's place, so signals and the exit code are its own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "kcode_backend.server", *arguments])


def _kept(folder: Path, gigabytes: float) -> list[str]:
    """The engine's options for contexts on disk."""
    size = int(gigabytes * 1e9)
    return ["--kv-dir", os.path.abspath(folder), "--kv-disk-budget", str(size)] if size else []


def _check_address(host: str, port: int, *, keyed: bool) -> None:
    """Raises StartError before anything is said about a server that could not be there."""
    from kcode_backend.http.bind import CannotListen, is_loopback, listen_tcp

    if not keyed and not is_loopback(host):
        raise StartError(f"--host {host} can be reached by others; give --api-key-env NAME or use 127.0.0.1")
    try:
        listen_tcp(host, port, keyed=True).close()
    except CannotListen as error:
        raise StartError(str(error)) from error


def _one_of(model: str, named: str) -> str:
    """The model that was given in one of two ways. Raises click.UsageError when they differ."""
    if model and named and model != named:
        raise click.UsageError(f"two models: {model} and -m {named}")
    return model or named
