"""Fetches one file from Hugging Face: python -m kcode_backend.hub REPOSITORY FILE FOLDER.

A process of its own, because the library cannot be interrupted and its settings are read at import. Continues an interrupted
download of the same folder. Ends with 1 and one line on stderr when the file cannot be had.
"""

from __future__ import annotations

import sys

import httpx
from huggingface_hub import constants, hf_hub_download, hf_hub_url

CONNECT_TIMEOUT_S = 4.0


def main() -> None:
    repository, file, folder = sys.argv[1:]
    problem = unreachable(repository, file)
    if problem:
        sys.exit(problem)
    try:
        hf_hub_download(repository, file, local_dir=folder)
    except (OSError, ValueError, httpx.HTTPError) as error:
        # The library's own errors are of these kinds; their first line says what happened.
        sys.exit(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)


def unreachable(repository: str, file: str) -> str:
    """Why the file cannot be had, found out within seconds (the library itself tries for half a minute); empty if it can."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        answer = httpx.head(hf_hub_url(repository, file), timeout=CONNECT_TIMEOUT_S)
    except httpx.HTTPError as error:
        return f"no connection ({str(error) or type(error).__name__})"
    return "" if answer.status_code < 400 else f"the server answers {answer.status_code} for {repository}/{file}"


if __name__ == "__main__":
    main()
