"""What a server tells about itself, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from kcode_backend.engine.histogram import FIRST_TOKEN_BOUNDS_S, Histogram

if TYPE_CHECKING:
    from kcode_backend.engine.engine import Engine
    from kcode_backend.weights.expert_store import ExpertStore

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Endpoint = Literal["chat", "completions"]
Outcome = Literal["ok", "refused", "failed", "cancelled"]
ENDPOINTS: tuple[Endpoint, ...] = ("chat", "completions")
OUTCOMES: tuple[Outcome, ...] = ("ok", "refused", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one request took."""

    prompt: int
    cached: int
    """Of the prompt, found in the cache."""
    generated: int


@dataclass(slots=True)
class RequestCounts:
    """Totals of the requests since the start; used on the event loop's thread alone."""

    outcomes: Counter[tuple[Endpoint, Outcome]] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_S))

    def refused(self, endpoint: Endpoint) -> None:
        """Nothing was computed."""
        self.outcomes[endpoint, "refused"] += 1

    def ended(self, endpoint: Endpoint, outcome: Outcome, tokens: Tokens, first_token_s: float | None) -> None:
        self.outcomes[endpoint, outcome] += 1
        self.prompt_tokens += tokens.prompt
        self.cached_tokens += tokens.cached
        self.generated_tokens += tokens.generated
        if first_token_s is not None:
            self.first_token.observe(first_token_s)


def metrics_text(active: int, counts: RequestCounts, engine: Engine | None) -> str:
    """`engine` is None while the model loads; its metrics are left out then."""
    lines = [
        *_metric("kcode_http_requests_active", "gauge", "HTTP requests under way, but for /health.", [("", active)]),
        *_metric("kcode_requests_total", "counter", "Requests for an answer, by how they ended.", _outcomes(counts)),
        *_metric("kcode_prompt_tokens_total", "counter", "Tokens of prompts.", [("", counts.prompt_tokens)]),
        *_metric("kcode_prompt_tokens_cached_total", "counter", "Of them, found in the cache.", [("", counts.cached_tokens)]),
        *_metric("kcode_generated_tokens_total", "counter", "Tokens of answers.", [("", counts.generated_tokens)]),
        *_histogram("kcode_time_to_first_token_seconds", "From the request to its first token.", counts.first_token),
    ]
    if engine:
        lines += _engine_lines(engine)
    return "\n".join(lines) + "\n"


def _outcomes(counts: RequestCounts) -> list[tuple[str, float]]:
    return [
        (f'{{endpoint="{endpoint}",outcome="{outcome}"}}', counts.outcomes[endpoint, outcome])
        for endpoint in ENDPOINTS
        for outcome in OUTCOMES
    ]


def _engine_lines(engine: Engine) -> list[str]:
    counters, pool, waiting = engine.counters, engine.pool, engine.waiting
    tiers = counters.tiers
    simple = [
        ("kcode_sequences_running", "gauge", "Answers being computed.", max(0, engine.running - waiting)),
        ("kcode_sequences_waiting", "gauge", "Answers that wait for room in the cache or for their turn.", waiting),
        ("kcode_passes_total", "counter", "Forward passes of the model.", counters.passes),
        (
            "kcode_prompt_tokens_computed_total",
            "counter",
            "Tokens of prompts computed.",
            counters.prompt_tokens,
        ),
        ("kcode_tokens_sampled_total", "counter", "Tokens drawn; forced ones are not.", counters.sampled_tokens),
        ("kcode_tokens_drafted_total", "counter", "Tokens tried before they were drawn.", counters.drafted_tokens),
        ("kcode_tokens_accepted_total", "counter", "Drafted tokens that were drawn.", counters.accepted_tokens),
        ("kcode_model_seconds_total", "counter", "Time inside forward passes.", counters.model_s),
        ("kcode_busy_seconds_total", "counter", "Time of whole steps, scheduling and sampling included.", counters.busy_s),
        ("kcode_blocks_stored_total", "counter", "Blocks handed to the disk tier.", tiers.stored_blocks),
        ("kcode_blocks_dropped_total", "counter", "Blocks evicted before they could be.", tiers.dropped_blocks),
        ("kcode_blocks_fetched_total", "counter", "Blocks that came back from disk.", tiers.fetched_blocks),
        ("kcode_tokens_fetched_total", "counter", "Tokens of prompts that did.", tiers.fetched_tokens),
        ("kcode_blocks", "gauge", "Blocks of the cache.", pool.blocks),
        ("kcode_blocks_free", "gauge", "Blocks that hold nothing.", pool.free),
        ("kcode_blocks_cached", "gauge", "Blocks that nobody uses and that may be found again.", pool.cached),
        ("kcode_blocks_used", "gauge", "Blocks of requests under way.", pool.used),
    ]
    if engine.experts:
        simple += _expert_lines(engine.experts)
    lines = [line for name, kind, text, value in simple for line in _metric(name, kind, text, [("", value)])]
    return lines + _histogram("kcode_step_seconds", "A forward pass and the tokens drawn after it.", counters.steps)


def _expert_lines(store: ExpertStore) -> list[tuple[str, str, str, float]]:
    """Of a model whose experts are not all in memory."""
    traffic = store.traffic
    return [
        ("kcode_experts_kept", "gauge", "Experts that memory has room for.", store.slots),
        ("kcode_expert_hits_total", "counter", "Chosen experts that were in memory.", traffic.hits),
        ("kcode_expert_misses_total", "counter", "Chosen experts that were read from the model's files.", traffic.misses),
        ("kcode_expert_read_bytes_total", "counter", "Bytes of them.", traffic.read_bytes),
        ("kcode_expert_wait_seconds_total", "counter", "Time that nothing was computed until one was read.", traffic.waited_s),
        ("kcode_expert_pack_seconds_total", "counter", "Time of putting them into the kernels' order.", traffic.packed_s),
    ]


def _metric(name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> list[str]:
    """`samples` are suffixes (labels) and values."""
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *(f"{name}{suffix} {value}" for suffix, value in samples)]


def _histogram(name: str, text: str, histogram: Histogram) -> list[str]:
    cumulative = list(accumulate(histogram.counts))
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    samples: list[tuple[str, float]] = [
        (f'_bucket{{le="{bound}"}}', count) for bound, count in zip(bounds, cumulative, strict=True)
    ]
    return _metric(name, "histogram", text, [*samples, ("_sum", histogram.total), ("_count", cumulative[-1])])
