"""How programs inside are told of the proxy."""

from __future__ import annotations

HERE = "localhost,127.0.0.1,::1"


def proxy_variables(port: int) -> dict[str, str]:
    """How programs are told; some read one spelling, some the other. What runs inside is reached directly."""
    address = f"http://127.0.0.1:{port}"
    named = {"http_proxy": address, "https_proxy": address, "all_proxy": address, "no_proxy": HERE}
    return {**named, **{name.upper(): value for name, value in named.items()}, "NODE_USE_ENV_PROXY": "1"}
