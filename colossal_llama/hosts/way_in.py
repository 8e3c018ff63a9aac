"""Why a host could not be entered: ssh's exit code and words come in, the fault and its cure go out."""

from __future__ import annotations

import re

from colossal_llama.hosts.finding import Finding, fault
from colossal_llama.hosts.hostfile import Host
from colossal_llama.hosts.software import CODE_DIR
from colossal_llama.hosts.ssh import CONNECT_SECONDS, SSH_FAILED

SSH_WORDS = (
    (
        r"Could not resolve hostname",
        "nobody here knows a machine of this name",
        "correct it in the hostfile, or add it to DNS, /etc/hosts or ~/.ssh/config",
    ),
    (
        r"Connection refused",
        "it is there, but nothing listens on its ssh port",
        "start sshd there, or write the port into the hostfile as {name}:PORT",
    ),
    (
        r"timed out|No route to host|is unreachable|Network is down",
        f"no answer to ssh within {CONNECT_SECONDS} s",
        "is it switched on, and its ssh port open to this machine? If not, take it out of the hostfile",
    ),
    (
        r"HOST IDENTIFICATION HAS CHANGED|Host key verification failed",
        "its host key is not the one that ssh has noted",
        "if it was set up anew: ssh-keygen -R {name}; if not, ask who answers in its place",
    ),
    (
        r"Permission denied|Too many authentication failures",
        "ssh does not get in without a password",
        "ssh-copy-id {target}, with a key that has no passphrase or is in ssh-agent, until `ssh {target} true` asks "
        "nothing",
    ),
)
NO_PYTHON = (126, 127)
"""A shell's exit codes for a command that is not there."""
NO_MODULE = r"No module named '?\w+|cannot import name '\w+'"


def why_not(host: Host, code: int, said: str, python: str) -> Finding:
    """`said` is what came on stderr. `python`: the interpreter that was to be started there."""
    last = (said.strip().splitlines() or ["without a word"])[-1].strip()
    if code == SSH_FAILED:
        target = host.name if host.user is None else f"{host.user}@{host.name}"
        for words, what, cure in SSH_WORDS:
            if re.search(words, said):
                return fault(host.name, what, cure.format(name=host.name, target=target))
        if not said.strip():
            return fault(host.name, "the connection to it was lost", "look at its network, and whether it still runs")
        return fault(host.name, f"ssh: {last}", f"`ssh -v {target} true` says more")
    if code in NO_PYTHON:
        return fault(host.name, f"no python at {python}", "every host needs this environment at this path")
    missing = re.search(NO_MODULE, said)
    if missing:
        cure = f"put the checkout at {CODE_DIR} there too, and run `pip install --no-deps -e .` in it"
        return fault(host.name, f"its python has not this project ({missing[0]})", cure)
    return fault(host.name, f"python ended with exit code {code}: {last}", f"try {python} -V there")
