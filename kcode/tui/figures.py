"""Numbers in words that a person reads at a glance."""

from __future__ import annotations

BAR = " ▏▎▍▌▋▊▉█"


def quantity(number: int, noun: str) -> str:
    """ "1 line", "1,204 lines"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration_text(seconds: float) -> str:
    """ "0.3 s", "42 s", "3:07 min", "1:02:09 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02} h"


def clock_text(seconds: float) -> str:
    """ "0:07", "12:40", "1:02:09"."""
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def size_text(size_bytes: int) -> str:
    """ "1.1 GB" in powers of ten, as disks and downloads are sold."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit in {"B", "kB"} else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def bar_text(done: float, total: float, cells: int) -> str:
    """A bar of `cells` cells; empty when nothing is known."""
    share = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
    eighths = round(share * cells * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (BAR[rest] if rest else "")).ljust(cells, "░")[:cells]
