"""Which hosts a restart leaves out; what a job does with them is tried on real hosts in test_launch.py."""

from __future__ import annotations

import asyncio

import pytest

from colossal_llama.hosts.hostfile import Host
from colossal_llama.hosts.job import Attempt, Job
from colossal_llama.hosts.output import Output

JOB = Job(["x.py"], 1, 29500, None, "id", {})


@pytest.mark.parametrize(
    ("echoes", "waiting", "slow"),
    [
        ([0.1, 0.1], [6.0], ["h2"]),  # most are quick, one is not
        ([0.1], [6.0], ["h1"]),
        ([0.1, 0.1], [4.0], []),  # not for long enough
        ([5.5, 6.0], [9.0, 9.5], []),  # all share a slow line from here
        ([5.5, 6.0], [24.0], ["h2"]),
        ([0.1], [9.0, 9.0], []),  # most of them are slow: it is here
        ([], [9.0, 9.0], []),
    ],
)
def test_slow_is_what_is_far_slower_than_half_of_the_hosts(
    echoes: list[float], waiting: list[float], slow: list[str]
) -> None:
    hosts = [Host(f"h{index}") for index in range(len(echoes) + len(waiting))]
    attempt = Attempt(JOB, hosts, 1, Output())

    async def look() -> None:
        now = asyncio.get_running_loop().time()
        for host, seconds in zip(hosts, echoes + waiting, strict=True):
            attempt._greeted[host] = now - seconds
        for host, seconds in zip(hosts, echoes, strict=False):
            attempt._echo_seconds[host] = seconds
            attempt._ready.add(host)
        attempt._find_slow()

    asyncio.run(look())
    assert [str(host) for host in attempt._unready] == slow


def test_ranks_meet_at_the_first_host_unless_it_is_the_only_one_or_another_is_named() -> None:
    hosts = [Host("h0"), Host("h1")]
    orders = [JOB.order(hosts, index, attempt=2) for index in range(2)]
    assert [(one.node_rank, one.num_nodes, one.master_addr, one.attempt) for one in orders] == [
        (0, 2, "h0", 2),
        (1, 2, "h0", 2),
    ]
    assert JOB.order(hosts[:1], 0, 0).master_addr == "127.0.0.1"
    named = Job(["x.py"], 1, 29500, "10.0.0.9", "id", {})
    assert named.order(hosts, 1, 0).master_addr == "10.0.0.9"
