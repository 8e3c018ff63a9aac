"""Before a run of many hosts: is each of them there, the same, and able to talk? `python -m colossal_llama.preflight`.

A hostfile and the run's own flags come in; one table, a line for each fault with its cure, and an exit code go out.
`hosts/survey.py` asks the hosts, `hosts/host_findings.py` and `hosts/shared_findings.py` judge what they say.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from simple_parsing import flag

from colossal_llama.hosts.facts import Question
from colossal_llama.hosts.finding import Finding, listed, merged
from colossal_llama.hosts.host_findings import Own, Wanted, host_findings
from colossal_llama.hosts.hostfile import Host, named_hosts
from colossal_llama.hosts.preflight_table import as_json, print_preflight
from colossal_llama.hosts.shared_findings import MEGABIT_BYTES, shared_findings
from colossal_llama.hosts.software import CODE_DIR, code_hashes, launcher_finding, needed_packages, package_versions
from colossal_llama.hosts.survey import Request, Survey, survey
from tokenizer_tools.command import UserError, command

TALK = ("NCCL_", "GLOO_", "UCX_", "FI_", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
"""How the names of the variables begin that decide how ranks talk, and with which devices."""


@dataclass(frozen=True)
class PreflightConfig:
    """Check the hosts of a run before it starts, with the run's own flags.

    Every host in one table, every fault in one line with its cure. Takes a few seconds and leaves nothing on the hosts.
    Exit code 0: ready; 2: not.
    """

    hostfile: Path | None = None
    """One host a line: name, name:port or user@name:port. Without this and --host: this machine alone."""
    host: str | None = None
    """The hosts in one word, with commas between them, in place of --hostfile."""
    nproc_per_node: int = 1
    """Processes of each host: one for each of its GPUs."""
    master_port: int = 29500
    """The port at which all ranks meet on the first host."""
    pretrained: Path | None = None
    """As for train.py: has to be the same on all hosts."""
    dataset: list[Path] = field(default_factory=list)
    """As for train.py: has to be the same on all hosts, on one disk or as a copy on each."""
    load_checkpoint: Path | None = None
    """As for train.py: has to be the same on all hosts."""
    save_dir: Path = Path("checkpoints")
    """As for train.py: has to lie on one file system that all hosts share."""
    hash: bool = flag(default=False)
    """Read large files of model and data whole (a minute for about 100 GB on fast disks), not in three places."""
    min_mbit_per_second: float = 100
    """A slower line between two hosts is a fault; so is one with a quarter of what most have."""
    json: bool = flag(default=False)
    """Print one JSON document instead of the table."""


@command(PreflightConfig)
def main(config: PreflightConfig) -> None:
    """Ask, judge, print. Raises UserError if the hosts are not ready."""
    hosts = named_hosts(config.hostfile, config.host)
    request = request_of(config, hosts)
    own = Own(
        python=sys.version.split()[0],
        code_dir=str(CODE_DIR),
        code=code_hashes(),
        packages=package_versions(),
        needed=frozenset(needed_packages()),
    )
    found = survey(hosts, request)
    findings = judge(found, request, own, config.min_mbit_per_second * MEGABIT_BYTES)
    launcher = launcher_finding()
    if launcher is not None:
        findings.insert(0, launcher)
    if config.json:
        print(json.dumps(as_json(found, findings), indent=1))
    else:
        print_preflight(found, findings, own)
    faults = [finding for finding in findings if finding.is_fault]
    if faults:
        sys.stdout.flush()
        places = listed(dict.fromkeys(place for finding in faults for place in finding.places))
        raise UserError(
            f"not ready: {_counted(len(faults), 'fault')} at {places}; each is named on stdout with its cure"
        )
    if not config.json:
        print(f"ready: {_counted(len(hosts), 'host')}, {_counted(len(findings), 'warning')}")


def request_of(config: PreflightConfig, hosts: list[Host]) -> Request:
    """What is asked of the hosts. Raises UserError for numbers that no run can have."""
    if config.nproc_per_node < 1:
        raise UserError(f"--nproc_per_node {config.nproc_per_node}: a host has at least 1 process; write how many GPUs")
    if not 0 < config.master_port < 2**16:
        raise UserError(f"--master_port {config.master_port}: a port is 1 to 65535; 29500 is usual")
    named = [("--pretrained", config.pretrained), ("--load_checkpoint", config.load_checkpoint)]
    named += [("--dataset", path) for path in config.dataset]
    question = Question(
        master=hosts[0].name,
        save_dir=str(config.save_dir),
        inputs={f"{name} {path}": str(path.absolute()) for name, path in named if path is not None},
        reads_all=config.hash,
        temporary_dir=os.environ.get("TMPDIR"),
    )
    return Request(
        question=question,
        directory=str(Path.cwd()),
        environment={name: value for name, value in os.environ.items() if name.startswith(TALK)},
        num_ranks=config.nproc_per_node,
        master_port=config.master_port,
    )


def judge(found: Survey, request: Request, own: Own, least_bytes_per_second: float) -> list[Finding]:
    """Every finding, faults first, the same of several hosts as one."""
    wanted = Wanted(
        num_ranks=request.num_ranks,
        world_size=len(found.hosts) * request.num_ranks,
        save_dir=request.question.save_dir,
        environment=request.environment,
    )
    return merged(
        [
            *found.gone.values(),
            *host_findings(found.facts, own, wanted),
            *shared_findings(found, request.question, least_bytes_per_second),
        ]
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
