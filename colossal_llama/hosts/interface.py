"""The network interface that leads from this machine to another one: for gloo and NCCL, which guess it from names."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping

import psutil

ANY_PORT = 9  # nothing is sent to it
GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def interface_to(address: str) -> str | None:
    """The interface by which this machine reaches the host of that name or address.

    None if there is no way there, or only the loopback: then it is this machine by a name that means it alone, such as
    Debian's `127.0.1.1 <hostname>`.
    """
    try:
        found = socket.getaddrinfo(address, ANY_PORT, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, target in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)  # asks the routing table
                own = str(probe.getsockname()[0])
        except OSError:
            continue
        if not ipaddress.ip_address(own.partition("%")[0]).is_loopback:
            return _interface_of(own)
    return None


def only_interface() -> str | None:
    """The one interface beside the loopback that is up and has an IPv4 address; None if there are several, or none."""
    states = psutil.net_if_stats()
    names = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if states[name].isup
        and any(one.family == socket.AF_INET and not one.address.startswith("127.") for one in addresses)
    ]
    return names[0] if len(names) == 1 else None


def interface_variables(master: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What to set for gloo and NCCL so that they talk over the interface that leads to `master`, the host of rank 0.

    What `environment` says already stays. NCCL is left alone where it would choose an InfiniBand interface.
    """
    name = interface_to(master) or only_interface()
    if name is None:
        return {}
    has_infiniband = any(other.startswith("ib") for other in psutil.net_if_stats())
    wanted = {GLOO: name} | ({} if has_infiniband else {NCCL: f"={name}"})  # "=": this name, not all that begin so
    return {variable: value for variable, value in wanted.items() if variable not in environment}


def _interface_of(own: str) -> str | None:
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == own.partition("%")[0] for one in addresses):
            return name
    return None
