"""A run that is killed (SIGKILL, all of it at once) goes on with the same command line and ends in the same bits.

A few kills always; `make soak` has the campaigns of docs/kills.md: random moments, and every writing call of a save.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tqdm import tqdm

from tests.colossal_llama import kill_campaigns
from tests.colossal_llama.kill_campaigns import AT_CALLS, AT_RANDOM, CAMPAIGNS, SEED, Campaign, Tally
from tests.colossal_llama.killing import End, Job, Launcher, Strike, differences, end_of, flaws_of, latest_step, until
from tests.colossal_llama.runs import free_ports
from tests.conftest import argv_of

QUICK_KILLS, QUICK_SECONDS = 4, 0.3
KILLED = -9

Flags = dict[str, Any]
Begin = Callable[[Campaign], tuple[Flags, End, float, list[list[str]]]]


@pytest.fixture
def begin(launcher: Launcher, flags: Flags, tmp_path: Path) -> Begin:
    """A run that nobody kills, in `tmp_path / "run"`, then deleted: (flags, its end, its seconds, one rank's calls).

    The killed runs have the same path: it is in the configuration that a checkpoint holds.
    """

    def run(campaign: Campaign) -> tuple[Flags, End, float, list[list[str]]]:
        all_flags = {**flags, **campaign.flags}
        start = time.monotonic()
        codes, job = launcher.run(campaign.world_size, tmp_path / "run", **all_flags)
        seconds = time.monotonic() - start
        assert codes == [0] * campaign.world_size, job.said
        assert flaws_of(tmp_path / "run") == []
        end = end_of(tmp_path / "run")
        shutil.rmtree(tmp_path / "run")
        return all_flags, end, seconds, job.calls(campaign.rank)

    return run


def finish(launcher: Launcher, world_size: int, save_dir: Path, flags: Flags, expected: End) -> None:
    """The same command line once more, which must end as the run did that nobody killed."""
    codes, job = launcher.run(world_size, save_dir, **flags)
    assert codes == [0] * world_size, job.said
    assert differences(end_of(save_dir), expected) == []
    assert flaws_of(save_dir) == []


def kill_after(seconds: float, job: Job) -> list[int]:
    """Exit codes of a job that is killed after so many seconds, if it has not ended by then."""
    time.sleep(seconds)
    return job.kill()


def test_killed_at_random_moments_a_run_ends_in_the_same_bits(launcher: Launcher, begin: Begin, tmp_path: Path) -> None:
    """One run, killed again and again, each time some moment after it has saved something new."""
    campaign = AT_RANDOM[0]
    flags, expected, _, _ = begin(campaign)
    draw, save_dir, steps = random.Random(SEED), tmp_path / "run", [0]
    for _ in range(QUICK_KILLS):
        job = launcher.start(campaign.world_size, save_dir, **flags)
        for _ in until(lambda: latest_step(save_dir) > steps[-1] or (save_dir / "modeling").exists(), 100):
            pass
        kill_after(draw.uniform(0.0, QUICK_SECONDS), job)
        assert flaws_of(save_dir) == []
        steps.append(latest_step(save_dir))
    assert steps == sorted(steps), "a checkpoint was lost"
    finish(launcher, campaign.world_size, save_dir, flags, expected)


MOMENTS = {  # the nth call of this text
    "the first file of the first checkpoint": (1, "open {run}/.epoch-0_step-1"),
    "before the first checkpoint has its name": (1, "rename {run}/epoch-0_step-1\n"),
    "before it is the latest": (1, "rename {run}/latest\n"),
    "before the second checkpoint has its name": (1, "rename {run}/epoch-0_step-2\n"),
    "while the first one makes way": (2, "{run}/.epoch-0_step-1"),
    "before the finished model has its name": (1, "rename {run}/modeling\n"),
}


def test_killed_at_the_turning_points_of_a_save(launcher: Launcher, begin: Begin, tmp_path: Path) -> None:
    campaign = AT_CALLS[0]
    flags, expected, _, _ = begin(campaign)
    save_dir = tmp_path / "run"
    for moment, (number, text) in MOMENTS.items():
        strike = Strike("kill group", number, text.format(run=save_dir))
        codes, job = launcher.run(campaign.world_size, save_dir, strike, **flags)
        assert codes == [KILLED], f"{moment}: {job.said}"
        assert flaws_of(save_dir) == [], moment
    finish(launcher, campaign.world_size, save_dir, flags, expected)


WRITES = ("write", "writev", "pwrite", "pwrite64", "sendfile64", "ftruncate64", "copy_file_range", "rename", "unlink")


def test_what_is_saved_is_on_the_disk_before_it_has_its_name(launcher: Launcher, begin: Begin, tmp_path: Path) -> None:
    """A power failure loses what was not synced: each file after its last change, and its folder, before the rename."""
    flags, expected, _, calls = begin(AT_CALLS[0])
    if launcher.shim is None:
        return  # Python's audit hook sees no fsync
    synced: dict[str, int] = {}
    names_synced: list[int] = []
    changed: dict[str, int] = {}
    renamed: dict[str, int] = {}
    for place, (call, path) in enumerate(calls):
        name = path.removeprefix(f"{tmp_path}/run/")
        if call in WRITES:
            changed[name] = changed[str(Path(name).parent)] = place
        if call == "rename":
            renamed[name] = place
        if call in ("fsync", "fdatasync"):
            synced[name] = place
            names_synced += [place] if path == str(tmp_path / "run") else []
    for final in ("epoch-0_step-2", "modeling"):
        files = [name for name in expected.hashes if name.startswith(f"{final}/")]
        assert files
        for name in files:
            aside = f".{final}.partial{name.removeprefix(final)}"
            for one in (aside, str(Path(aside).parent)):
                assert changed.get(one, 0) < synced[one] < renamed[final], one
    named, latest = renamed["epoch-0_step-2"], renamed["latest"]
    assert [place for place in names_synced if named < place < latest], "the name, before `latest` says it"
    assert [place for place in names_synced if latest < place < renamed[".epoch-0_step-1.old.partial"]], "and `latest`"


# --- the campaigns of make soak ---------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("campaign", AT_RANDOM, ids=lambda one: one.name)
def test_soak_random_moments(campaign: Campaign, launcher: Launcher, begin: Begin, tmp_path: Path) -> None:
    flags, expected, seconds, _ = begin(campaign)
    draw, save_dir, tally = random.Random(f"{SEED} {campaign.name}"), tmp_path / "run", Tally()
    for _ in tqdm(range(campaign.kills), desc=campaign.name, disable=None):
        moment = draw.uniform(0.0, 1.05) * seconds
        kill_after(moment, launcher.start(campaign.world_size, save_dir, **flags))
        look(tally, save_dir)
        finish(launcher, campaign.world_size, save_dir, flags, expected)
        shutil.rmtree(save_dir)
    kill_campaigns.record(campaign, tally)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("campaign", AT_CALLS, ids=lambda one: one.name)
def test_soak_writing_calls(campaign: Campaign, launcher: Launcher, begin: Begin, tmp_path: Path) -> None:
    assert launcher.shim is not None, "make soak needs a C compiler, cc"
    flags, expected, _, calls = begin(campaign)
    save_dir, tally = tmp_path / "run", Tally()
    first = next(number for number, (_, path) in enumerate(calls, start=1) if campaign.since in path)
    for call in tqdm(range(first, len(calls) + 1, campaign.every), desc=campaign.name, disable=None):
        strike = Strike(campaign.effect, call, rank=campaign.rank)
        codes, job = launcher.run(campaign.world_size, save_dir, strike, **flags)
        check_codes(campaign, codes, job)
        look(tally, save_dir)
        finish(launcher, campaign.world_size, save_dir, flags, expected)
        shutil.rmtree(save_dir)
    kill_campaigns.record(campaign, tally)


def check_codes(campaign: Campaign, codes: list[int], job: Job) -> None:
    """That the strike hit, and how the ranks must have ended then."""
    if codes == [0] * campaign.world_size:  # threads write in no fixed order: this run had fewer calls
        return
    if campaign.effect == "kill group":
        assert codes == [KILLED] * campaign.world_size, job.said
    elif campaign.effect == "kill process":
        assert codes[campaign.rank] == KILLED, job.said
        assert all(code in (1, 2) for rank, code in enumerate(codes) if rank != campaign.rank), f"{codes} {job.said}"
    else:
        assert codes == [2] * campaign.world_size, f"{codes} {job.said}"
        assert len(job.errors) == 1, job.said


def look(tally: Tally, save_dir: Path) -> None:
    """Count the kill, and hold that it has left nothing half-done under a good name."""
    assert flaws_of(save_dir) == []
    tally.kills += 1
    tally.in_a_save += save_dir.is_dir() and any(path.name.endswith(".partial") for path in save_dir.iterdir())
    tally.before_any_checkpoint += latest_step(save_dir) == 0


def test_table_lists_every_campaign_and_enough_strikes_of_each() -> None:
    text = kill_campaigns.DOCUMENT.read_text(encoding="utf-8")
    rows = kill_campaigns.read_table(text)
    assert kill_campaigns.write_table(text, rows) == text, "run `make soak`"
    for campaign in CAMPAIGNS:
        assert rows[campaign.name].kills >= campaign.kills, campaign.name


# --- the real command, under torchrun ---------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_soak_torchrun(flags: Flags, tmp_path: Path) -> None:
    campaign = kill_campaigns.TORCHRUN
    save_dir, tally = tmp_path / "run", Tally()
    all_flags = {**flags, **campaign.flags}
    start = time.monotonic()
    assert torchrun(campaign.world_size, save_dir, all_flags).wait() == 0
    seconds, expected, draw = time.monotonic() - start, end_of(save_dir), random.Random(f"{SEED} {campaign.name}")
    shutil.rmtree(save_dir)
    for _ in tqdm(range(campaign.kills), desc=campaign.name, disable=None):
        process = torchrun(campaign.world_size, save_dir, all_flags)
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        kill_tree(process, save_dir)
        look(tally, save_dir)
        assert torchrun(campaign.world_size, save_dir, all_flags).wait() == 0
        assert differences(end_of(save_dir), expected) == []
        shutil.rmtree(save_dir)
    kill_campaigns.record(campaign, tally)


def torchrun(world_size: int, save_dir: Path, flags: Flags) -> subprocess.Popen[bytes]:
    """The command line of docs/training.md."""
    root = Path(__file__).parent.parent.parent
    launch = ["--nproc_per_node", str(world_size), "--master_port", str(free_ports(1)[0]), str(root / "train.py")]
    words = [sys.executable, "-m", "torch.distributed.run", *launch, *argv_of(save_dir=save_dir, **flags)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def kill_tree(process: subprocess.Popen[bytes], save_dir: Path) -> None:
    """SIGKILL to the launcher and all that has its save_dir in its command line, until nothing is left."""
    while alive := list(processes_of(save_dir)):
        for one in alive:
            one.kill()
        psutil.wait_procs(alive, timeout=1)
    process.wait()


def processes_of(save_dir: Path) -> Iterator[psutil.Process]:
    """Those that still run and were started for this run."""
    for one in psutil.process_iter(["cmdline", "status"]):
        if str(save_dir) in (one.info["cmdline"] or []) and one.info["status"] != psutil.STATUS_ZOMBIE:
            yield one
