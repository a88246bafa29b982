"""Two runs over the same instances: what changed, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kcode_bench.swe.measures import Share, sign_test
from kcode_bench.swe.results import State, pass_rates

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """`first` and `second` are pass@k for each k over `common`, the instances that both finished; `ungraded` has the others."""

    common: tuple[str, ...]
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    both: int
    ungraded: dict[str, str]
    elsewhere: tuple[str, ...]
    first: dict[int, Share]
    second: dict[int, Share]
    p_value: float

    @property
    def test(self) -> str:
        """Of the instances that changed; with several attempts their shares are compared, which McNemar's test does not do."""
        return "exact McNemar test" if {*self.first, *self.second} <= {1} else "exact sign test"

    def document(self) -> dict[str, object]:
        return {
            "common": len(self.common),
            "both_resolved": self.both,
            "gained": list(self.gained),
            "lost": list(self.lost),
            "pass_at": {run: {str(k): rate.document() for k, rate in rates.items()} for run, rates in self._runs()},
            "test": f"{self.test}, two-sided",
            "p_value": round(self.p_value, 6),
            "significant": self.p_value < SIGNIFICANT,
            "not_compared": self.ungraded,
            "other_environment": list(self.elsewhere),
        }

    def _runs(self) -> tuple[tuple[str, dict[int, Share]], ...]:
        return ("a", self.first), ("b", self.second)

    def text(self) -> str:
        lines = [f"{run}  pass@{k} {rate}" for run, rates in self._runs() for k, rate in rates.items()]
        lines += [
            f"{len(self.common)} compared: {len(self.gained)} resolved by b more often than by a, {len(self.lost)} less often, "
            f"{self.both} by both in every attempt",
        ]
        lines += [f"  + {name}" for name in self.gained]
        lines += [f"  - {name}" for name in self.lost]
        word = "more than chance explains" if self.p_value < SIGNIFICANT else "within what chance explains"
        lines.append(f"{self.test}: p = {self.p_value:.4f}, {word} (at {SIGNIFICANT:g})")
        lines += [f"not compared: {name}: {why}" for name, why in self.ungraded.items()]
        lines += [f"graded in different environments: {name}" for name in self.elsewhere]
        return "\n".join(lines)


def compare(first: Mapping[str, tuple[State, ...]], second: Mapping[str, tuple[State, ...]]) -> Comparison:
    """Each run as the states of an instance's attempts. What one of them did not finish is named and not compared."""
    ungraded: dict[str, str] = {}
    for name in sorted({*first, *second}):
        faults = [f"{run}: {fault}" for run, states in (("a", first), ("b", second)) if (fault := _fault(states.get(name, ())))]
        if faults:
            ungraded[name] = "; ".join(faults)
    common = tuple(name for name in sorted({*first, *second}) if name not in ungraded)
    before = {name: rate(first[name]) for name in common}
    after = {name: rate(second[name]) for name in common}
    gained = tuple(name for name in common if after[name] > before[name])
    lost = tuple(name for name in common if after[name] < before[name])
    return Comparison(
        common,
        gained,
        lost,
        sum(before[name] == after[name] == 1 for name in common),
        ungraded,
        tuple(name for name in common if _environments(first[name]) != _environments(second[name])),
        pass_rates({name: first[name] for name in common}),
        pass_rates({name: second[name] for name in common}),
        sign_test(len(gained), len(lost)),
    )


def rate(states: tuple[State, ...]) -> float:
    """The share of the finished attempts that resolved the instance; there is one at least."""
    done = [state.resolved for state in states if state.outcome == "done"]
    return sum(done) / len(done)


def _fault(states: tuple[State, ...]) -> str:
    """Why an instance has no result, "" when an attempt was finished."""
    if any(state.outcome == "done" for state in states):
        return ""
    return states[0].outcome if states else "not run"


def _environments(states: tuple[State, ...]) -> set[tuple[object, ...]]:
    # A graded empty patch needed none.
    return {
        tuple(state.environment.get(name) for name in ("kind", "python", "freeze_sha")) for state in states if state.environment
    }
