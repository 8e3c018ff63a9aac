"""Questions to guests that behave in their own way: each is a small program in place of the real one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from colossal_llama.hosts import visits
from colossal_llama.hosts.hostfile import Host
from colossal_llama.hosts.visits import ask, visits_to

ECHO = (
    "import sys\nprint('Welcome to this cluster')\nfor line in sys.stdin:\n    line.strip() and print(line, flush=True)"
)
PROGRAMS = {
    "good": ECHO,
    "late": f"import time; time.sleep(1.2)\n{ECHO}",
    "mute": "import sys; sys.stdin.read()",
    "gone": "import sys; sys.exit('ssh: Could not resolve hostname gone')",
    "stuck": "import time; time.sleep(60)",
}


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Host]]:
    """Hosts by what their guests are like."""
    monkeypatch.setattr(visits, "python_on", lambda host, module: [sys.executable, "-c", PROGRAMS[host.name]])
    monkeypatch.setattr(visits, "LEAVE_SECONDS", 0.5)
    monkeypatch.setattr(visits, "ALIVE_SECONDS", 0.2)
    return lambda *names: [Host(name) for name in names]


def test_each_host_gets_its_question_and_greetings_are_no_answers(hosts: Callable[..., list[Host]]) -> None:
    with visits_to(hosts("good", "late")) as both:
        began = time.time()
        answers = ask(both, "x", 20, {"good": {"a": 1}, "late": {"a": 2}})
        assert [answers[name]["words"] for name in ("good", "late")] == [{"a": 1}, {"a": 2}]
        assert began <= answers["good"]["asked_at"] <= answers["good"]["heard_at"] <= time.time()
        assert answers["late"]["heard_at"] - answers["late"]["asked_at"] > 1
        assert list(ask(both, "y", 20, {"good": {}})) == ["good"]


def test_who_does_not_answer_is_named_and_never_asked_again(hosts: Callable[..., list[Host]]) -> None:
    began = time.monotonic()
    with visits_to(hosts("good", "mute", "gone", "stuck")) as all_of_them:
        assert list(ask(all_of_them, "x", 2)) == ["good"]
        faults = {visit.name: str(visit.fault) for visit in all_of_them if visit.fault}
        assert list(ask(all_of_them, "x", 2)) == ["good"]
    assert time.monotonic() - began < 15
    assert set(faults) == {"mute", "gone", "stuck"}
    assert "no answer within 2 s" in faults["mute"]
    assert "exit code 1: ssh: Could not resolve" in faults["gone"]
    assert all(visit.process.poll() is not None for visit in all_of_them), "somebody was left behind"
