"""Log lines look like this: `2024-05-01T12:00:03 ERROR payment card declined for order 17`."""

from collections import Counter
from datetime import datetime

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class Entry:
    def __init__(self, time, level, component, message):
        self.time = time
        self.level = level
        self.component = component
        self.message = message


def parse_line(line):
    """One line as an Entry; None for lines that are not log lines, such as tracebacks."""
    parts = line.strip().split(" ")
    if len(parts) < 4 or parts[1] not in LEVELS:
        return None
    try:
        time = datetime.fromisoformat(parts[0])
    except ValueError:
        return None
    return Entry(time, parts[1], parts[2], parts[3])


def parse(text):
    """All entries of a log, in order."""
    entries = [parse_line(line) for line in text.splitlines()]
    return [entry for entry in entries if entry is not None]


def count_levels(entries):
    return Counter(entry.level for entry in entries)


def errors_by_component(entries):
    """How many errors each component had, the worst first."""
    counts = Counter(entry.component for entry in entries if entry.level == "ERROR")
    return counts.most_common()


def most_common_error(entries):
    """The message that occurs most often among the errors; None without errors."""
    counts = Counter(entry.message for entry in entries if entry.level == "ERROR")
    return counts.most_common(1)[0][0] if counts else None
