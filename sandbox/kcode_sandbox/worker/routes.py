"""How many packets found no way out of this network namespace: the kernel's own count of attempts to reach the outside."""

from __future__ import annotations


class Routes:
    """`watch` begins to count; `new` is 0 until then, so that a host's own traffic is never taken for a command's."""

    def __init__(self) -> None:
        self._watching = False
        self._resolver_is_here = False
        self._last = 0

    def watch(self) -> None:
        self._watching = True
        self._resolver_is_here = _resolver_is_here()
        self._last = self._count()

    def new(self) -> int:
        """Since the last time."""
        if not self._watching:
            return 0
        count, before = self._count(), self._last
        self._last = count
        return max(count - before, 0)

    def _count(self) -> int:
        try:
            counts = _columns("/proc/net/snmp") | _rows("/proc/net/snmp6")
        except OSError:
            return self._last
        # With a resolver on the loopback, or none at all, looking a name up ends at a port where nobody listens.
        names = ("Ip OutNoRoutes", "Ip6OutNoRoutes", *(("Udp NoPorts", "Udp6NoPorts") if self._resolver_is_here else ()))
        return sum(counts.get(name, 0) for name in names)


def _columns(path: str) -> dict[str, int]:
    """Lines in pairs: names, then values."""
    with open(path) as file:
        lines = [line.split() for line in file]
    found: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        kind = names[0].rstrip(":")
        found |= {f"{kind} {name}": int(value) for name, value in zip(names[1:], values[1:], strict=False)}
    return found


def _rows(path: str) -> dict[str, int]:
    with open(path) as file:
        return {name: int(value) for name, value in (line.split() for line in file)}


def _resolver_is_here() -> bool:
    try:
        with open("/etc/resolv.conf") as file:
            words = [line.split() for line in file]
    except OSError:
        return True
    servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return not servers or any(server.startswith("127.") or server == "::1" for server in servers)
