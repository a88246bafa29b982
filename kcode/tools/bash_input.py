"""`bash_input`: keys for a program that runs in the session's shell, and what it answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.outputs import Outputs
from kcode.tools.refusal import Refusal, settle
from kcode.tools.tool import Access, Emit, Outcome
from kcode.tools.truncate import plain
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import Sandbox, ShellResult

DEFAULT_WAIT_S = 2.0
MAX_WAIT_S = 120.0
KEYS = {
    "enter": "\n",
    "tab": "\t",
    "esc": "\x1b",
    "space": " ",
    "backspace": "\x7f",
    "delete": "\x1b[3~",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "home": "\x1b[H",
    "end": "\x1b[F",
    "pageup": "\x1b[5~",
    "pagedown": "\x1b[6~",
}
ALIASES = {
    "return": "enter",
    "escape": "esc",
    "bspace": "backspace",
    "page_up": "pageup",
    "page_down": "pagedown",
    "del": "delete",
}


class BashInputArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str = Field(default="", description="Text to type, as it is; a newline in it is Enter.", max_length=50_000)
    keys: list[str] = Field(
        default_factory=list,
        description="Keys pressed after the text: Enter, Tab, Esc, Up, Down, Left, Right, Backspace, PageDown, C-c, C-d, …",
        max_length=200,
    )
    job: str = Field(default="", description="The job that gets them; the newest when left out.", max_length=100)
    wait_s: float = Field(default=DEFAULT_WAIT_S, description="How long to wait for output.", ge=0, le=MAX_WAIT_S)


class BashInputTool:
    name: str = "bash_input"
    access: Access = "execute"
    arguments: type[BashInputArguments] = BashInputArguments

    def __init__(self, sandbox: Sandbox, outputs: Outputs) -> None:
        self.sandbox = sandbox
        self.outputs = outputs

    def summary(self, arguments: BashInputArguments) -> str:
        typed = repr(arguments.text[:80]) if arguments.text else ""
        return (
            " ".join(["type", *filter(None, [typed, *arguments.keys[:8]])]) if typed or arguments.keys else "look at the program"
        )

    async def run(self, arguments: BashInputArguments, emit: Emit) -> Outcome:
        return await settle(self.send(arguments))

    async def send(self, arguments: BashInputArguments) -> Outcome:
        typed = arguments.text + "".join(key_code(key) for key in arguments.keys)
        shell = await self.sandbox.shell()
        try:
            result = await shell.send(typed, arguments.wait_s, arguments.job)
        except FileError as error:
            if error.code != "ESRCH":
                raise
            raise Refusal(str(error)) from error
        output = plain(result.output.decode(errors="replace")).strip("\n")
        text = await self.outputs.bounded(output, "input")
        full = f"{text}\n{state(result)}".lstrip("\n")
        return Outcome(full, PlainDisplay(full))


def key_code(key: str) -> str:
    """What a terminal sends for a key named as people name it: Enter, C-c, M-x, or one character."""
    name = key.strip() or key
    plain_name = name.lower()
    if (code := KEYS.get(ALIASES.get(plain_name, plain_name))) is not None:
        return code
    if len(name) > 1 and plain_name.startswith(("c-", "^", "ctrl-", "ctrl+")):
        letter = name[-1].upper()
        if "@" <= letter <= "_":
            return chr(ord(letter) - 64)
    if plain_name.startswith(("m-", "alt-")) and len(name.rpartition("-")[2]) == 1:
        return "\x1b" + name[-1]
    if len(name) == 1:
        return name
    raise Refusal(f"there is no key {key!r}; the keys are {', '.join(KEYS)}, C-a to C-z, and single characters")


def state(result: ShellResult) -> str:
    """Whether the program still runs."""
    if result.exit_code is None:
        return f"[{result.job_id} is running]"
    return f"[it ended with exit code {result.exit_code}]"
