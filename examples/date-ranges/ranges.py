"""Ranges of days. Both the first and the last day belong to a range."""

from dataclasses import dataclass
from datetime import date, timedelta


@dataclass(frozen=True)
class DateRange:
    first: date
    last: date

    def __post_init__(self):
        if self.last < self.first:
            raise ValueError(f"{self.last} is before {self.first}")

    def days(self):
        """All days of the range, in order."""
        count = (self.last - self.first).days + 1
        return [self.first + timedelta(days=offset) for offset in range(count)]

    def __contains__(self, day):
        return self.first <= day <= self.last


def overlaps(one, other):
    """Whether two ranges have at least one day in common."""
    return one.first <= other.last and other.first <= one.last


def overlap_days(one, other):
    """How many days two ranges have in common."""
    first = max(one.first, other.first)
    last = min(one.last, other.last)
    return max(0, (last - first).days)


def working_days(period):
    """How many days of the range are Monday to Friday."""
    return sum(1 for day in period.days() if day.weekday() < 5)


def days_left(allowance, holidays):
    """What remains of a yearly allowance after holidays; only working days count."""
    return allowance - sum(working_days(period) for period in holidays)
