"""The environment of commands: what they need to find programs and speak the user's language, and nothing secret.

An allow-list, never a deny-list: a token can have any name.
"""

from __future__ import annotations

from collections.abc import Mapping

ALLOWED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "COLORTERM", "NO_COLOR", "CI"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYENV_ROOT", "PYENV_VERSION", "UV_PYTHON_INSTALL_DIR"),
        *("NVM_DIR", "NVM_BIN", "VOLTA_HOME", "FNM_DIR", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"),
        *("GOROOT", "GOPATH", "GOTOOLCHAIN", "JAVA_HOME", "SDKMAN_DIR", "RBENV_ROOT", "ASDF_DATA_DIR", "MISE_DATA_DIR"),
        *("PYTHONHASHSEED", "PYTHONUTF8", "PYTHONIOENCODING", "SOURCE_DATE_EPOCH"),
    }
)
ALLOWED_PREFIXES = ("LC_",)
# Programs that would wait for a key a model cannot know it has to press get their quiet form.
DEFAULTS = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "TERM": "xterm-256color",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "true",
    "GIT_TERMINAL_PROMPT": "0",
    "DEBIAN_FRONTEND": "noninteractive",
}


def clean_environment(environ: Mapping[str, str], extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The harmless variables of `environ`, defaults for what is missing, and `extra` as it is (the user's own words)."""
    kept = {name: value for name, value in environ.items() if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)}
    return DEFAULTS | kept | dict(extra or {})
