"""`colossalai run`, made safe: the same flags, hosts and ranks, but nothing is lost, left running or passed over.

This project's `colossalai` command stands in front of Colossal-AI's own: `run` is this room, all else is handed on.
Each host gets an agent over ssh (`hosts/agent.py`); words and environment travel as data, never as a line for a shell.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from simple_parsing import field

from colossal_llama.hosts.hostfile import Host, named_hosts
from colossal_llama.hosts.job import Attempt, Job
from colossal_llama.hosts.output import Output
from tokenizer_tools.command import UserError, command

RESTART_SECONDS = 3.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""They reach every rank. One that was ignored when the launcher began, as nohup does with SIGHUP, still is."""
HOSTS_OWN = ("_", "SHLVL", "PWD", "OLDPWD", "HOSTNAME", "DISPLAY", "TERM", "XDG_RUNTIME_DIR", "XDG_SESSION_ID", "TMUX")
HOSTS_OWN_PREFIXES = ("SSH_", "TORCHELASTIC_", "DBUS_")
"""Variables that say where a process runs, not what it is to do: each host keeps its own."""
EXTRA = "--extra_launch_args"


@dataclass(frozen=True)
class LaunchConfig:
    """Run a script on one or many hosts, N processes each: colossalai run [flags] train.py [its flags].

    A failure anywhere ends the job everywhere; the first rank that failed is named with its host and its own words.
    Ctrl-C and SIGTERM reach every rank, which saves and leaves; a second one ends all at once.
    Exit codes: 0 done; 75 stopped as asked and saved; 2 your input is at fault; 130 interrupted; 1 anything else.
    """

    nproc_per_node: int
    """Processes on each host: one a GPU."""
    hostfile: Path | None = None
    """One host a line: name, name:port or user@name:port; # begins a comment. Ranks are numbered in this order."""
    host: str | None = field(default=None, alias=["-H"])
    """The same as a list with commas, in place of --hostfile; without either: this machine."""
    include: str | None = None
    """Of the hosts, only these: h0,h1."""
    exclude: str | None = None
    """Of the hosts, all but these."""
    num_nodes: int | None = None
    """Of the hosts, the first so many."""
    master_addr: str | None = None
    """Where rank 0 is reached by the others; default: the first host's name."""
    master_port: int = 29500
    """A free port of the first host, at which the ranks meet."""
    ssh_port: int | None = field(default=None, alias=["--ssh-port"])
    """Port of the hosts' sshd where the hostfile and ~/.ssh/config say nothing else."""
    max_restarts: int = 0
    """After a failure, start again so many times, without the hosts that do not answer any more; train.py goes on from
    its newest checkpoint. A mistake of yours (exit code 2) is not tried again."""
    extra_launch_args: str | None = None
    """Colossal-AI's way to say max_restarts=N. torchrun, which other words were for, is not used here."""


def main(argv: Sequence[str] | None = None) -> int:
    """The `colossalai` command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != ["run"]:
        from colossalai.cli import cli

        cli(words)
    flags, script = split(words[1:])
    return command(LaunchConfig)(lambda config: launch(config, script))(flags)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the launcher's flags, the script and its flags). Each flag has one value; `-m module` is a script, too."""
    place = 0
    while place < len(words) and words[place].startswith("-") and words[place] != "-m":
        place += 1 if "=" in words[place] or words[place] in ("-h", "--help") else 2
    return list(words[:place]), list(words[place:])


def launch(config: LaunchConfig, script: Sequence[str]) -> None:
    """Run `script` to its end. Raises UserError for the user's faults, SystemExit with any other exit code but 0."""
    problems = _problems(config, script)
    if problems:
        raise UserError("; ".join(problems))
    if "--rehearse" in script:  # one process here takes the place of all of them
        os.execv(sys.executable, [sys.executable, *script])
    hosts = chosen_hosts(config)
    job = Job(
        words=list(script),
        ranks_per_node=config.nproc_per_node,
        master_port=config.master_port,
        master_addr=config.master_addr,
        run_id=uuid.uuid4().hex,
        environment=environment_of(os.environ),
    )
    output = Output()
    try:
        code = _run(job, hosts, max(config.max_restarts, _extra_restarts(config)), output)
    finally:
        is_written = output.close()
    if not is_written:  # a terminal that takes nothing: the interpreter would wait for it
        os._exit(code)
    raise SystemExit(code)


def _run(job: Job, hosts: Sequence[Host], restarts_left: int, output: Output) -> int:
    """Attempt after attempt; the exit code of the last one, whose reason has been said."""
    signals = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup has it
    attempt = 0
    while True:
        outcome = asyncio.run(Attempt(job, hosts, attempt, output).run(signals))
        for number in signals:  # for the pause
            signal.signal(number, _interrupt)
        hosts = [host for host in hosts if str(host) not in outcome.faulty_disks]
        if outcome.code == 0 or attempt == restarts_left or not outcome.is_worth_another or not hosts:
            break
        attempt += 1
        output.show(
            f"{outcome.message}; starting again, {attempt} of {restarts_left} times, with what is saved",
            on_stdout=False,
        )
        time.sleep(RESTART_SECONDS)
    if outcome.message is not None:
        output.show(f"error: {outcome.message}", on_stdout=False)
    return outcome.code


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _problems(config: LaunchConfig, script: Sequence[str]) -> list[str]:
    problems = []
    if not script or script == ["-m"]:
        problems.append("no script: name train.py, and its flags, behind the flags of `colossalai run`")
    elif script[0] != "-m" and not Path(script[0]).is_file():
        problems.append(f"{script[0]}: no such file; name the script to run, then its flags")
    if config.nproc_per_node < 1:
        problems.append(f"--nproc_per_node {config.nproc_per_node}: must be at least 1, one process a GPU")
    if not 0 < config.master_port < 2**16:
        problems.append(f"--master_port {config.master_port}: must be a port from 1 to 65535, such as 29500")
    if config.max_restarts < 0:
        problems.append(f"--max_restarts {config.max_restarts}: must be 0 or more")
    if config.include is not None and config.exclude is not None:
        problems.append("--include and --exclude: both choose hosts; give one of them")
    return problems


def _extra_restarts(config: LaunchConfig) -> int:
    """--extra_launch_args max_restarts=2 -> 2. Raises UserError for anything else."""
    if config.extra_launch_args is None:
        return 0
    name, _, value = config.extra_launch_args.partition("=")
    if name != "max_restarts" or not value.isdigit():
        raise UserError(
            f"{EXTRA} {config.extra_launch_args}: these are torchrun's, which is not used here; leave them away, say "
            f"--max_restarts N, or start torchrun itself on every host"
        )
    return int(value)


def chosen_hosts(config: LaunchConfig) -> list[Host]:
    """The hosts that the flags name, in the order of their ranks. Raises UserError if they name none."""
    hosts = named_hosts(config.hostfile, config.host)
    for flag, names in (("--include", config.include), ("--exclude", config.exclude)):
        if names is not None:
            wanted = [name.strip() for name in names.split(",")]
            unknown = sorted(set(wanted) - {host.name for host in hosts})
            if unknown:
                raise UserError(f"{flag} {names}: {', '.join(unknown)} is none of the hosts; they are {_listed(hosts)}")
            hosts = [host for host in hosts if (host.name in wanted) == (flag == "--include")]
    if config.num_nodes is not None and not 0 < config.num_nodes <= len(hosts):
        raise UserError(f"--num_nodes {config.num_nodes}: there are {len(hosts)} hosts; give 1 to {len(hosts)}")
    if not hosts:
        raise UserError("--exclude leaves no host; leave some of them away")
    port = config.ssh_port
    return [Host(one.name, one.user, one.port if one.port else port) for one in hosts[: config.num_nodes]]


def _listed(hosts: Sequence[Host]) -> str:
    return ", ".join(map(str, hosts))


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """What of this process's environment goes to the ranks: all but what says where a process runs."""
    return {
        name: value
        for name, value in variables.items()
        if name not in HOSTS_OWN and not name.startswith(HOSTS_OWN_PREFIXES)
    }


if __name__ == "__main__":
    sys.exit(main())
