# SPDX-License-Identifier: Apache-2.0
"""Whether other machines are served without a key, which somebody must have wanted."""

from ipaddress import ip_address

from vllm_gateway.configuration.settings import Server


def open_to_others(server: Server, host: str) -> str | None:
    """What is wrong with listening on `host`, a name or an address; None: nothing."""
    if server.api_keys or server.open or is_loopback(host):
        return None
    reached = f"others reach {host}" if host else "an empty host is every address, which others reach"
    return (
        f"without API keys the gateway serves this machine alone, and {reached}; "
        "set `server.api_keys` (or VLLM_GATEWAY_API_KEYS), or, to serve all who can reach it, "
        "add the line `open: true` under `server:` (or VLLM_GATEWAY_OPEN=true)"
    )


def is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
