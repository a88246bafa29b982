"""How a class of model is driven: the tools it is offered, its prompt, its limits, and whether it is led by the hand."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field, replace
from typing import Literal

from kcode.model import SEEDS, Sampling
from kcode.settings import Settings
from kcode.turn import Limits

SMALL_BILLIONS = 7.9
SMALL_FILE_BYTES = 7 << 30
# "1.5b" in qwen2.5-coder-1.5b-instruct, "30b" in qwen3-30b-a3b: a number and a b, standing alone.
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)
_KIMI = re.compile(r"(?<![a-z])kimi[-_ ]?(?:k2|k3|latest|dev)|(?<![a-z0-9])k2[-_.p]?(?:\d|thinking|instruct)", re.IGNORECASE)
_INSTRUCT = re.compile(r"instruct|(?<![a-z0-9])0[79]\d\d(?!\d)", re.IGNORECASE)
_SIGHT = re.compile(
    r"k2[-_]?[.p]?[5-9](?!\d)|k3(?!\d)|(?<![a-z])(?:[a-z]*vl|vision|llava|pixtral|omni)(?![a-z])|gemma-?[34]|claude|gemini|gpt-(?:4o|4\.1|5)",
    re.IGNORECASE,
)

_TOOLS = (
    *("read", "grep", "glob", "repo_map", "str_replace", "insert", "create", "bash", "bash_input", "run_tests", "git", "todo"),
    *("view_image", "request_grant", "finish"),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """`prompt` names the system text; `guided` gives the turn to the small models' driver instead of the free loop.

    `brief` offers the tools with the arguments that matter most and no others. `efforts` are the limits of low, medium and
    high effort.
    """

    name: str
    tools: tuple[str, ...]
    edit_tool: str
    prompt: str
    limits: Limits
    efforts: tuple[Limits, Limits, Limits]
    sampling: Sampling = field(default_factory=Sampling)
    guided: bool = False
    brief: bool = False


GENERIC = Profile(
    name="generic",
    tools=_TOOLS,
    edit_tool="str_replace",
    prompt="system",
    limits=Limits(steps=500),
    efforts=(Limits(steps=100, answer_tokens=8192), Limits(steps=500), Limits(steps=1000)),
)

# Answers of a thinking model include its thinking: the budgets are those its makers evaluate it with.
KIMI = Profile(
    name="kimi",
    tools=_TOOLS,
    edit_tool="str_replace",
    prompt="system",
    limits=Limits(steps=500),
    efforts=(
        Limits(steps=150, answer_tokens=16_384),
        Limits(steps=500, answer_tokens=32_768),
        Limits(steps=1000, answer_tokens=98_304),
    ),
)
THINKING_SAMPLING = Sampling(temperature=1.0, top_p=0.95)
INSTANT_SAMPLING = Sampling(temperature=0.6, top_p=0.95)

SMALL = Profile(
    name="small",
    tools=("read", "grep", "rewrite_function", "str_replace", "create", "run_tests"),
    edit_tool="rewrite_function",
    prompt="small",
    limits=Limits(steps=40, answer_tokens=2048),
    efforts=(
        Limits(steps=20, answer_tokens=2048),
        Limits(steps=40, answer_tokens=2048),
        Limits(steps=80, answer_tokens=2048),
    ),
    sampling=Sampling(temperature=0.0),
    guided=True,
    brief=True,
)

# "standard" is what `generic` was called in settings and transcripts.
PROFILES = {"kimi": KIMI, "generic": GENERIC, "standard": GENERIC, "small": SMALL}


def model_billions(name: str) -> float | None:
    """Parameters as the name tells them: the largest figure, since a mixture also names its active ones."""
    sizes = [float(size) for size in _SIZE.findall(name)]
    return max(sizes) if sizes else None


def is_kimi(name: str) -> bool:
    """Whether the name is one of the Kimi K2 family's; of a path the last part counts."""
    return _KIMI.search(_last_part(name)) is not None


def thinks(name: str) -> bool:
    """Whether a Kimi model of this name thinks unless told not to: all but the Instruct ones."""
    return is_kimi(name) and _INSTRUCT.search(_last_part(name)) is None


def sees(name: str) -> bool:
    """Whether a model of this name is known to look at pictures.

    By the name alone: the tools on offer stand at the head of the prompt, and a resumed session knows the name before the model
    has started.
    """
    return _SIGHT.search(_last_part(name)) is not None


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def thinking_for(settings: Settings, model_name: str) -> Literal["", "on", "off"]:
    """What the settings say, else what the effort means for the Kimi models that can do both."""
    if settings.thinking or not settings.effort or not thinks(model_name):
        return settings.thinking
    return "off" if settings.effort == "low" else "on"


def choose_profile(
    settings: Settings, model_name: str, *, local: bool, file_bytes: int = 0, before: str = "", pictures: bool | None = None
) -> Profile:
    """The profile the settings ask for; "auto" takes `before`, the one of the resumed session, where there is one.

    Else `kimi` by the name, `small` for a local model of at most 7B by its name, else by its file. `pictures` overrides what
    the name says of the model's sight.
    """
    wanted = before if settings.profile == "auto" and before in PROFILES else settings.profile
    if wanted == "auto":
        wanted = "kimi" if is_kimi(model_name) else "small" if local and _is_small(model_name, file_bytes) else "generic"
    profile = PROFILES[wanted]
    if settings.effort:
        profile = replace(profile, limits=profile.efforts[("low", "medium", "high").index(settings.effort)])
    if profile.name == KIMI.name:
        is_instant = thinking_for(settings, model_name) == "off" or not thinks(model_name)
        profile = replace(profile, sampling=INSTANT_SAMPLING if is_instant else THINKING_SAMPLING)
    if not (sees(model_name) if pictures is None else pictures):
        profile = replace(profile, tools=tuple(tool for tool in profile.tools if tool != "view_image"))
    return profile


def _is_small(model_name: str, file_bytes: int) -> bool:
    billions = model_billions(model_name)
    return billions <= SMALL_BILLIONS if billions is not None else file_bytes <= SMALL_FILE_BYTES


def limits_for(profile: Profile, settings: Settings) -> Limits:
    """The profile's limits where the settings name none."""
    limits = profile.limits
    return Limits(
        steps=settings.max_turns or limits.steps,
        tokens=settings.max_tokens or limits.tokens,
        time_s=settings.time_limit_s or limits.time_s,
        answer_tokens=settings.max_answer_tokens or limits.answer_tokens,
    )


def sampling_for(profile: Profile, settings: Settings, *, draw_seed: bool = False) -> Sampling:
    """The profile's sampling where the settings name none; with `draw_seed` there is a seed in any case, to ask again with."""
    sampling = profile.sampling
    seed = settings.seed if settings.seed >= 0 else sampling.seed
    varies = draw_seed and seed is None
    return Sampling(
        temperature=settings.temperature if settings.temperature >= 0 else sampling.temperature,
        top_p=settings.top_p if settings.top_p >= 0 else sampling.top_p,
        top_k=settings.top_k if settings.top_k >= 0 else sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=secrets.randbelow(SEEDS) if varies else seed,
        max_tokens=sampling.max_tokens,
        varies=varies,
    )
