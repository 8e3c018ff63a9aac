"""The hosts of a run: a hostfile or a list of names comes in, hosts in the order of their ranks go out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizer_tools.command import UserError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
FORM = "write one host a line as name, name:port or user@name:port (of its sshd); # begins a comment"
HOST = re.compile(
    r"(?:(?P<user>[^@\s:]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^@\s:\[\],=/]+))(?::(?P<port>\d+))?"
)


@dataclass(frozen=True)
class Host:
    """A machine: the name by which the others reach it, and how ssh gets in where that is not ssh's own default."""

    name: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def has_local_name(self) -> bool:
        """Whether this name means another machine on every machine."""
        return self.name.lower() in LOCAL_NAMES


def named_hosts(hostfile: Path | None, names: str | None) -> list[Host]:
    """The hosts of --hostfile or --host; this machine without either. Raises UserError for both, and for wrong ones."""
    if hostfile is not None and names is not None:
        raise UserError("--host and --hostfile: both name hosts; give one of them")
    if hostfile is not None:
        return read_hostfile(hostfile)
    return [Host("localhost")] if names is None else parse_hosts(names)


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of a file, one a line; blank lines and comments (#) are left out.

    Raises UserError, which names every line that is at fault, if the file cannot be read, names no host, names one
    twice, or names this machine (localhost) beside others.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--hostfile {path}: {error.strerror}; name a file with one host name a line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--hostfile {path}: not UTF-8 at byte {error.start}; save it as plain text") from None
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return _hosts([(f"{path}:{number}", line) for number, line in lines if line], f"--hostfile {path}")


def parse_hosts(names: str) -> list[Host]:
    """--host h0,h1: as `read_hostfile`, with commas for lines."""
    return _hosts([("--host", name.strip()) for name in names.split(",") if name.strip()], f"--host {names}")


def _hosts(entries: Sequence[tuple[str, str]], source: str) -> list[Host]:
    """(where it stands, entry) of every entry that is not blank -> hosts."""
    problems: list[str] = []
    hosts: list[Host] = []
    seen: dict[str, str] = {}
    for place, entry in entries:
        host = _host(entry)
        if host is None:
            problems.append(f"{place}: {entry!r} is no host; {FORM}")
        elif host.name.lower() in seen:
            problems.append(f"{place}: {host} is named again, first at {seen[host.name.lower()]}; leave one of them")
        else:
            seen[host.name.lower()] = place
            hosts.append(host)
    if len(hosts) > 1:
        problems += [
            f"{seen[host.name.lower()]}: {host} is another machine for each of the hosts; write this machine's name"
            for host in hosts
            if host.has_local_name
        ]
    if not hosts and not problems:
        problems.append(f"{source}: names no host; {FORM}")
    if problems:
        raise UserError("; ".join(problems))
    return hosts


def _host(entry: str) -> Host | None:
    match = HOST.fullmatch(entry)
    if match is None or (match["port"] and not 0 < int(match["port"]) < 2**16) or entry.startswith("-"):
        return None
    return Host(match["v6"] or match["name"], match["user"], int(match["port"]) if match["port"] else None)
