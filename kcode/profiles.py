"""How a class of model is driven: the tools it is offered, its prompt, its limits, and whether it is led by the hand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kcode.model import Sampling
from kcode.settings import Settings
from kcode.steps import Limits

SMALL_BILLIONS = 7.9
SMALL_FILE_BYTES = 7 << 30
# "1.5b" in qwen2.5-coder-1.5b-instruct, "30b" in qwen3-30b-a3b: a number and a b, standing alone.
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Profile:
    """`prompt` names the system text; `guided` gives the turn to the small models' driver instead of the free loop."""

    name: str
    tools: tuple[str, ...]
    edit_tool: str
    prompt: str
    limits: Limits
    sampling: Sampling = field(default_factory=Sampling)
    guided: bool = False


STANDARD = Profile(
    name="standard",
    tools=(
        *("read", "grep", "glob", "str_replace", "insert", "create", "bash", "bash_input", "run_tests", "git", "todo"),
        *("view_image", "request_grant", "finish"),
    ),
    edit_tool="str_replace",
    prompt="system",
    limits=Limits(steps=500),
)

SMALL = Profile(
    name="small",
    tools=("read", "grep", "rewrite_function", "str_replace", "create", "run_tests"),
    edit_tool="rewrite_function",
    prompt="small",
    limits=Limits(steps=40, answer_tokens=2048),
    sampling=Sampling(temperature=0.0),
    guided=True,
)


def model_billions(name: str) -> float | None:
    """Parameters as the name tells them: the largest figure, since a mixture also names its active ones."""
    sizes = [float(size) for size in _SIZE.findall(name)]
    return max(sizes) if sizes else None


def choose_profile(settings: Settings, model_name: str, *, local: bool, file_bytes: int = 0) -> Profile:
    """The profile the settings ask for; "auto" takes `small` for a local model of at most 7B by its name, else by its file."""
    if settings.profile != "auto":
        return SMALL if settings.profile == "small" else STANDARD
    if not local:
        return STANDARD
    billions = model_billions(model_name)
    is_small = billions <= SMALL_BILLIONS if billions is not None else file_bytes <= SMALL_FILE_BYTES
    return SMALL if is_small else STANDARD


def limits_for(profile: Profile, settings: Settings) -> Limits:
    """The profile's limits where the settings name none."""
    limits = profile.limits
    return Limits(
        steps=settings.max_turns or limits.steps,
        tokens=settings.max_tokens or limits.tokens,
        time_s=settings.time_limit_s or limits.time_s,
        answer_tokens=settings.max_answer_tokens or limits.answer_tokens,
    )


def sampling_for(profile: Profile, settings: Settings) -> Sampling:
    """The profile's sampling where the settings name none."""
    sampling = profile.sampling
    return Sampling(
        temperature=settings.temperature if settings.temperature >= 0 else sampling.temperature,
        top_p=settings.top_p if settings.top_p >= 0 else sampling.top_p,
        top_k=settings.top_k if settings.top_k >= 0 else sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=settings.seed if settings.seed >= 0 else sampling.seed,
        max_tokens=sampling.max_tokens,
    )
