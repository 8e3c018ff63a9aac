"""Several hosts on this machine: each with its own network, address, name, processes and sshd, in Linux namespaces.

`Lab(2)` has the hosts h0 and h1 and a third, `login`, from which a user starts things. They see the same files. All
of it lives in one process namespace that ends with a pipe which this process holds: the system clears up by itself.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

CHECKOUT = Path(__file__).parent.parent
LOGIN = "login"
NETWORK = "10.77.0"
START_SECONDS = 20
RUN_SECONDS = 240
NEEDED = ("unshare", "nsenter", "ip", "tc", "ssh", "ssh-keygen", "sshd")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

SSHD_CONFIG = """
HostKey {lab}/hostkey
AuthorizedKeysFile {lab}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100:30:200
SetEnv PYTHONPATH={checkout}
"""
SSH_CONFIG = """
Host *
  IdentityFile {lab}/key
  UserKnownHostsFile {lab}/known_hosts
"""
# $1: the host's name, $2: the folder of the lab
INIT = """
set -e
hostname "$1"
ip link set lo up
mount --bind "$2/hosts.$1" /etc/hosts
mount --bind "$2/empty" /etc/resolv.conf
mount --bind "$2/ssh_config" /etc/ssh/ssh_config
mount -t tmpfs tmpfs /run
mount -t tmpfs -o size=2g tmpfs /dev/shm
mkdir /run/sshd
touch "$2/ready.$1"
exec "$(command -v sshd)" -D -e -f "$2/sshd_config" 2>"$2/sshd.$1.log"
"""


def why_not() -> str | None:
    """Why this machine cannot hold a lab; None if it can."""
    path = f"{os.environ['PATH']}:{SBIN}"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian's openssh-server and iproute2)"
    done = subprocess.run(["unshare", "-n", "-u", "-i", "-m", "-p", "-f", "true"], capture_output=True, text=True)
    return f"namespaces are not allowed here: {done.stderr.strip()}" if done.returncode else None


class Lab:
    """`num_hosts` hosts h0, h1, ... and `login`. Made by `lab_of`.

    With `debian_names` every host's own name is 127.0.1.1 to itself, as Debian's installer writes it.
    """

    def __init__(self, directory: Path, num_hosts: int, debian_names: bool = False) -> None:
        self.directory = directory
        self.hosts = [f"h{index}" for index in range(num_hosts)]
        self._addresses = {name: f"{NETWORK}.{10 + index}" for index, name in enumerate([*self.hosts, LOGIN])}
        self._write_files(debian_names)
        self._path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{SBIN}"
        words = ["unshare", "-n", "-p", "-f", "--kill-child", "cat"]
        self._init = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._lab_pid = _descendant(self._init.pid, 1)
        self._in_lab("ip link add br0 type bridge forward_delay 0; ip link set br0 up")
        self._pids: dict[str, int] = {}
        for name in self._addresses:
            self.start(name)

    def start(self, name: str) -> None:
        """Boot a host, again if it was killed."""
        address = self._addresses[name]
        ready = self.directory / f"ready.{name}"
        ready.unlink(missing_ok=True)
        inner = ["unshare", "-n", "-u", "-i", "-m", "-p", "-f", "--kill-child", "--mount-proc"]
        words = ["nsenter", "-t", str(self._lab_pid), "-p", "--", *inner, "bash", "-c", INIT, "init", name]
        environment = {**os.environ, "PATH": self._path}
        process = subprocess.Popen([*words, str(self.directory)], env=environment, stderr=subprocess.DEVNULL)
        pid = self._pids[name] = _descendant(process.pid, 2)
        _until(ready.exists)
        number = address.rpartition(".")[2]
        link = f"v{number}"
        subprocess.run(
            f"nsenter -t {self._lab_pid} -n ip link del {link} 2>/dev/null; "
            f"ip link add {link} netns {self._lab_pid} type veth "
            f"peer name eth0 address 02:00:00:00:00:{int(number):02x} netns {pid} && "
            f"nsenter -t {self._lab_pid} -n ip link set {link} master br0 up && "
            f"nsenter -t {pid} -n ip addr add {address}/24 dev eth0 && nsenter -t {pid} -n ip link set eth0 up",
            shell=True,
            check=True,
            env={**os.environ, "PATH": self._path},
        )
        _until(lambda: "listening" in (self.directory / f"sshd.{name}.log").read_text())

    def address(self, name: str) -> str:
        """Its IPv4 address."""
        return self._addresses[name]

    def popen(
        self, name: str, *words: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None, **how: Any
    ) -> subprocess.Popen[str]:
        """Start a command on a host as a user there would, in a session of its own, with a short environment."""
        variables = {
            "PATH": self._path,
            "HOME": str(self.directory / "home"),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(CHECKOUT),  # these tests' own, wherever the environment's packages are
            **(environment or {}),
        }
        enter = ["nsenter", "-t", str(self._pids[name]), "-n", "-u", "-i", "-m", "-p", f"--wd={cwd or Path.cwd()}"]
        settings = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
            **how,
        }
        return subprocess.Popen(
            [*enter, "--", "env", "-i", *(f"{key}={value}" for key, value in variables.items()), *words], **settings
        )

    def run(
        self, name: str, *words: str, timeout_seconds: float = RUN_SECONDS, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """`popen`, to the end. Kills the command's whole session when the time is over."""
        process = self.popen(name, *words, **how)
        try:
            stdout, stderr = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate(timeout=START_SECONDS)
            raise TimeoutError(f"{shlex.join(words)[:200]}:\n{stdout[-3000:]}\n{stderr[-3000:]}") from None
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    @staticmethod
    def send(process: subprocess.Popen[str], number: int, to_group: bool = False) -> None:
        """A signal to a command that `popen` has started; `to_group`, as a terminal does, also to its children."""
        command = psutil.Process(_descendant(process.pid, 1))
        children = command.children(recursive=True) if to_group else []
        for one in [command, *(child for child in children if os.getpgid(child.pid) == process.pid)]:
            one.send_signal(number)

    def shell(self, name: str, script: str) -> str:
        """What a shell script prints on a host. Raises CalledProcessError if it fails."""
        done = self.run(name, "bash", "-c", script, timeout_seconds=START_SECONDS)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, script, done.stdout, done.stderr)
        return done.stdout

    def processes(self, name: str, text: str) -> list[str]:
        """Command lines on a host that hold `text`, as its own process table has them."""
        script = 'for f in /proc/[0-9]*/cmdline; do tr "\\0" " " <"$f" 2>/dev/null && echo; done; true'
        return [line for line in self.shell(name, script).splitlines() if text in line]

    def kill(self, name: str) -> None:
        """A host dies: all of its processes end, its connections break."""
        os.kill(self._pids[name], signal.SIGKILL)
        _until(lambda: not Path(f"/proc/{self._pids[name]}/root").exists())

    def cut(self, name: str) -> None:
        """The network takes nothing more from a host and gives it nothing; nobody is told."""
        self._in_lab(f"ip link set {self._link(name)} nomaster")

    def mend(self, name: str) -> None:
        """The end of `cut`."""
        self._in_lab(f"ip link set {self._link(name)} master br0")

    def slow(self, name: str, rate: str) -> None:
        """Let a host get no more than `rate` (tc's words, such as 64kbit) from the network."""
        self._in_lab(f"tc qdisc replace dev {self._link(name)} root tbf rate {rate} burst 16kbit latency 400ms")

    def speed_up(self, name: str) -> None:
        """The end of `slow`."""
        self._in_lab(f"tc qdisc del dev {self._link(name)} root")

    def own_disk(self, name: str, directory: Path, size: str = "64m") -> None:
        """From now on `directory`, which exists, is an empty disk of this host's own."""
        self._in_host(name, f"mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(directory))}")

    def close(self) -> None:
        """End all hosts."""
        assert self._init.stdin is not None
        self._init.stdin.close()
        self._init.wait(timeout=START_SECONDS)

    def _link(self, name: str) -> str:
        return f"v{self._addresses[name].rpartition('.')[2]}"

    def _in_lab(self, script: str) -> None:
        self._in(f"-t {self._lab_pid} -n", script)

    def _in_host(self, name: str, script: str) -> None:
        self._in(f"-t {self._pids[name]} -n -m", script)

    def _in(self, where: str, script: str) -> None:
        environment = {**os.environ, "PATH": self._path}
        subprocess.run(["nsenter", *where.split(), "--", "bash", "-ec", script], check=True, env=environment)

    def _write_files(self, debian_names: bool) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "home").mkdir()
        (self.directory / "empty").touch()
        for key in ("key", "hostkey"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / key)]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        (self.directory / "sshd_config").write_text(SSHD_CONFIG.format(lab=self.directory, checkout=CHECKOUT))
        (self.directory / "ssh_config").write_text(SSH_CONFIG.format(lab=self.directory))
        for own in self._addresses:
            lines = ["127.0.0.1 localhost"]
            for name, address in self._addresses.items():
                lines.append(f"{'127.0.1.1' if debian_names and name == own else address} {name}")
            (self.directory / f"hosts.{own}").write_text("\n".join(lines) + "\n")


SLURM_CONFIG = """
ClusterName=lab
SlurmctldHost=h0
AuthType=auth/none
CredType=cred/none
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
KillWait=30
SlurmctldPidFile={lab}/slurmctld.pid
SlurmdPidFile={lab}/slurmd.%n.pid
StateSaveLocation={lab}/slurm_state
SlurmdSpoolDir={lab}/slurmd_spool.%n
SlurmctldLogFile={lab}/slurmctld.log
SlurmdLogFile={lab}/slurmd.%n.log
NodeName={nodes} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


def start_slurm(lab: Lab) -> dict[str, str]:
    """Slurm over all hosts of a lab; the environment in which its commands find it. Skips the test where it is not."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:{SBIN}") is None:
        pytest.skip("needs Debian's slurmctld, slurmd and slurm-client")
    config = lab.directory / "slurm.conf"
    (lab.directory / "slurm_state").mkdir()
    config.write_text(SLURM_CONFIG.format(lab=lab.directory, nodes=",".join(lab.hosts)))
    environment = {"SLURM_CONF": str(config)}
    quiet = {"environment": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    lab.popen(lab.hosts[0], "slurmctld", "-D", **quiet)
    for host in lab.hosts:
        (lab.directory / f"slurmd_spool.{host}").mkdir()
        lab.popen(host, "slurmd", "-D", "-N", host, **quiet)
    words = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
    _until(lambda: lab.run(lab.hosts[0], *words, environment=environment).stdout.strip() == str(len(lab.hosts)))
    return environment


@contextmanager
def lab_of(directory: Path, num_hosts: int, **how: Any) -> Iterator[Lab]:
    """A lab for as long as this is open. Skips the test, with the reason, where the machine allows none."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    lab = Lab(directory, num_hosts, **how)
    try:
        yield lab
    finally:
        lab.close()


def _descendant(pid: int, generations: int) -> int:
    """The process so many children below `pid`, once it is there. Each has one child."""
    for _ in range(generations):
        children = Path(f"/proc/{pid}/task/{pid}/children")
        _until(lambda children=children: bool(children.read_text().split()))
        pid = int(children.read_text().split()[0])
    return pid


def _until(condition: Any) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _holds(condition):
        if time.monotonic() > deadline:
            raise TimeoutError("the lab did not come up")
        time.sleep(0.02)


def _holds(condition: Any) -> bool:
    try:
        return bool(condition())
    except OSError:
        return False
