"""How a command gets to a host: over the system's ssh, or as it is where the host is this machine."""

from __future__ import annotations

import ipaddress
import shlex
import socket
import sys
from collections.abc import Sequence

import psutil

from colossal_llama.hosts.hostfile import Host

CONNECT_SECONDS = 10
ALIVE_SECONDS = 10
OPTIONS = {
    "BatchMode": "yes",  # never a question: a password prompt would wait for ever
    "StrictHostKeyChecking": "accept-new",  # a host that is new is taken down, one that has changed is refused
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ServerAliveInterval": str(ALIVE_SECONDS),
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
}
SSH_FAILED = 255
"""ssh's exit code where it could not reach or enter a host."""


def words_on(host: Host, words: Sequence[str]) -> list[str]:
    """`words`, a command and its arguments, as they are to be started here so that they run on `host`.

    They arrive unchanged: ssh hands one line to a shell, for which each word is quoted.
    """
    if is_local(host):
        return list(words)
    options = [part for name, value in OPTIONS.items() for part in ("-o", f"{name}={value}")]
    port = [] if host.port is None else ["-p", str(host.port)]
    target = host.name if host.user is None else f"{host.user}@{host.name}"
    return ["ssh", "-T", *options, *port, "--", target, f"exec {shlex.join(words)}"]


def python_on(host: Host, module: str) -> list[str]:
    """The words that run `python -m module` of this very environment's path on `host`."""
    return words_on(host, [sys.executable, "-m", module])


def is_local(host: Host) -> bool:
    """Whether `host` is this machine: by its addresses, and if nothing is said of a user or a port of its sshd."""
    if host.user is not None or host.port is not None:
        return False
    if host.has_local_name:
        return True
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host.name, None)}
    except OSError:
        return False  # an alias of ~/.ssh/config, or a name that nobody knows: ssh will say it
    own = {address.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for address in addresses}
    return bool(found & own) or any(ipaddress.ip_address(address).is_loopback for address in map(str, found))
