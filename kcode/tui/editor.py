"""Writing a message in the editor of one's choice."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from textual.app import App, SuspendNotSupported

from kcode.errors import ConfigError


def edited(app: App[None], text: str) -> str:
    """What $VISUAL or $EDITOR (else vi) made of `text`; the screen is the editor's meanwhile. Raises ConfigError."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="kcode-") as folder:
        file = Path(folder, "message.md")
        file.write_text(text, encoding="utf-8")
        try:
            with app.suspend():
                ended = subprocess.run([*shlex.split(command), str(file)])
        except (OSError, ValueError) as error:
            raise ConfigError(f"the editor {command!r} cannot be started ({error}); set VISUAL or EDITOR") from error
        except SuspendNotSupported as error:
            raise ConfigError("this terminal cannot be lent to an editor") from error
        if ended.returncode != 0:
            raise ConfigError(f"the editor {command!r} ended with {ended.returncode}; the message is as it was")
        return file.read_text(encoding="utf-8", errors="replace").rstrip("\n")
