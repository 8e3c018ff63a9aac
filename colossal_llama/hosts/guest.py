"""The pre-flight's guest on a host: questions come in on stdin, answers go out on stdout, one JSON object a line.

Started over ssh or beside the pre-flight as `python -m colossal_llama.hosts.guest`. It ends, and leaves no process, no
port and no file behind, as soon as its stdin closes or nothing has come for STAY_SECONDS: the visitor is gone then.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import Any

from colossal_llama.hosts.facts import Question, disk_of, facts_of, listener_words
from colossal_llama.hosts.interface import GLOO, interface_to, interface_variables
from colossal_llama.hosts.messages import decode, encode
from colossal_llama.hosts.ranks import add_up_on_ranks
from colossal_llama.hosts.wire import Listener, dial
from tokenizer_tools.command import UserError

STAY_SECONDS = 60.0
MARKER_SECONDS = 5.0
"""For a network file system to show on one host what another has just written."""
RETRY_SECONDS = 0.2

Answer = dict[str, Any]


class Guest:
    """What the answers leave behind on this host is on `self._left`, and goes with it."""

    def __init__(self) -> None:
        self._left = ExitStack()
        self._listeners: dict[str, Listener] = {}
        self._questions: Queue[dict[str, Any]] = Queue()
        self._is_busy = False

    def run(self) -> None:
        """Answer until the visitor is gone."""
        threading.Thread(target=self._answer_all, daemon=True).start()
        with self._left:
            heard, rest = time.monotonic(), b""
            while time.monotonic() - heard < STAY_SECONDS or self._is_busy:
                if not select.select([sys.stdin.fileno()], [], [], RETRY_SECONDS)[0]:
                    continue
                data, heard = os.read(sys.stdin.fileno(), 2**16), time.monotonic()
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for question in filter(None, map(decode, lines)):
                    self._questions.put(question)

    def _answer_all(self) -> None:
        while True:
            question = self._questions.get()
            self._is_busy = True
            sys.stdout.buffer.write(encode(self._answer(question)))
            sys.stdout.buffer.flush()
            self._is_busy = False

    def _answer(self, question: Mapping[str, Any]) -> Answer:
        """{"error": ...} where the disk or the network refuses; whatever else goes wrong, too: the visitor waits."""
        answers: dict[str, Callable[..., Answer]] = {
            "arrive": _arrive,
            "clock": lambda: {"seconds": time.time()},
            "facts": lambda **words: asdict(facts_of(Question(**words))),
            "route": _route,
            "mark": self._mark,
            "look": _look,
            "listen": self._listen,
            "hang_up": self._hang_up,
            "dial": lambda **words: dict(dial(**words)),
            "add_up": lambda **words: add_up_on_ranks(self._left, **words),
        }
        name, words = question["ask"], question["words"]
        try:
            return answers[name](**words)
        except (OSError, UserError) as error:
            return {"error": " ".join(str(error).split())}
        except Exception as error:
            return {"error": f"{name}: {error!r}"}

    def _mark(self, save_dir: str) -> Answer:
        """Leave a file with a random name and content where `save_dir` is or will be."""
        path = Path(disk_of(Path(save_dir))["path"], f".preflight-{secrets.token_hex(8)}")
        content = secrets.token_hex(16)
        self._left.callback(path.unlink, missing_ok=True)
        path.write_text(content)
        return {"path": str(path), "content": content}

    def _listen(self, name: str, port: int) -> Answer:
        """Answer on `port`, 0 for any; {"port"}, or {"error"} if another program has it."""
        try:
            listener = self._listeners[name] = Listener(port)
        except OSError as error:
            return {"error": f"{port}: {os.strerror(error.errno or 0)}{listener_words(port)}"}
        self._left.callback(listener.close)
        return {"port": listener.port}

    def _hang_up(self) -> Answer:
        for listener in self._listeners.values():
            listener.close()
        return {}


def _arrive(directory: str) -> Answer:
    try:
        os.chdir(directory)
    except OSError as error:
        return {"error": f"{directory}: {error.strerror}"}
    return {}


def _route(master: str, address: str, environment: dict[str, str]) -> Answer:
    """The interface that ranks will talk over, and the one by which `address`, the first host's, is really reached."""
    chosen = {**environment, **interface_variables(master, environment)}
    return {"interface": chosen.get(GLOO), "way": interface_to(address)}


def _look(path: str, content: str) -> Answer:
    """Whether the marker of another host is here too."""
    deadline = time.monotonic() + MARKER_SECONDS
    while time.monotonic() < deadline:
        try:
            if Path(path).read_text() == content:
                return {"is_seen": True}
        except FileNotFoundError:
            pass
        time.sleep(RETRY_SECONDS)
    return {"is_seen": False}


def main() -> None:
    """Until the visitor is gone. Ctrl-C in the visitor's terminal is the visitor's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit())
    Guest().run()
    sys.stderr.flush()
    os._exit(0)  # a question that is still being answered is of no use any more


if __name__ == "__main__":
    main()
