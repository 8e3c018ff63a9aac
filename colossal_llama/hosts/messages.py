"""What a launcher and the agents on its hosts say to each other: JSON lines over the stdin and stdout of an agent.

launcher -> agent: {"echo": ballast}, an `Order`, {"beat": true} every BEAT_SECONDS, {"signal": number}, {"kill": true}
agent -> launcher: {"ready": host name}, {"echo": ballast}, {"beat": true}, {"rank", "stream", "text"} for each line of
a rank, {"rank", "code", "error", ...} when it has ended, {"refused": reason} if none was started. It closes after that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

BEAT_SECONDS = 2.0
LOST_SECONDS = 30.0
"""Either side counts the other as lost if nothing comes for so long; a link that is cut for a moment survives."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """What the ranks of one host are to be."""

    words: list[str]
    """What python is started with: a script, or -m and a module, and its arguments."""
    directory: str
    environment: dict[str, str]
    run_id: str
    attempt: int
    """0, and one more with every restart."""
    node_rank: int
    num_nodes: int
    ranks_per_node: int
    master_addr: str
    master_port: int

    @property
    def first_rank(self) -> int:
        """The rank of the first process of this host."""
        return self.node_rank * self.ranks_per_node

    def variables_of(self, local_rank: int) -> dict[str, str]:
        """torchrun's environment variables of a rank."""
        return {
            "RANK": str(self.first_rank + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.num_nodes * self.ranks_per_node),
            "LOCAL_WORLD_SIZE": str(self.ranks_per_node),
            "GROUP_RANK": str(self.node_rank),
            "GROUP_WORLD_SIZE": str(self.num_nodes),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
            "TORCHELASTIC_RUN_ID": self.run_id,
            "TORCHELASTIC_RESTART_COUNT": str(self.attempt),
        }


def encode(message: Mapping[str, Any] | Order) -> bytes:
    """One line. Bytes of the environment that are no UTF-8 travel as surrogates."""
    plain = asdict(message) if isinstance(message, Order) else message
    return json.dumps(plain).encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """A message; None for a line that is none, such as a greeting that a login shell prints."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
