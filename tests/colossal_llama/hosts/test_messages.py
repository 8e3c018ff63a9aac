"""Orders on their way to an agent, and what they make of the ranks."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.hosts.messages import Order, decode, encode

ORDER = Order(["train.py"], "/runs", {}, "id", 0, 0, 1, 1, "h0", 29500)
words = st.lists(st.text(st.characters(codec=None)), max_size=4)  # surrogates too: bytes that are no UTF-8


@given(words, st.dictionaries(st.text(min_size=1), st.text(st.characters(codec=None)), max_size=3))
def test_an_order_arrives_as_it_is(sent: list[str], environment: dict[str, str]) -> None:
    order = replace(ORDER, words=sent, environment=environment)
    line = encode(order)
    assert line.endswith(b"\n") and line.count(b"\n") == 1, "a message is one line"
    message = decode(line)
    assert message is not None and Order(**message) == order


def test_what_is_no_message_is_none() -> None:
    assert [decode(line) for line in (b"Welcome to h1\n", b"3\n", b"\xff\n", b"")] == [None] * 4


@given(num_nodes=st.integers(1, 5), ranks_per_node=st.integers(1, 8))
def test_ranks_are_numbered_host_after_host(num_nodes: int, ranks_per_node: int) -> None:
    orders = [
        replace(ORDER, node_rank=node, num_nodes=num_nodes, ranks_per_node=ranks_per_node) for node in range(num_nodes)
    ]
    variables = [order.variables_of(local_rank) for order in orders for local_rank in range(ranks_per_node)]
    assert [int(one["RANK"]) for one in variables] == list(range(num_nodes * ranks_per_node))
    assert {one["WORLD_SIZE"] for one in variables} == {str(num_nodes * ranks_per_node)}
    for one in variables:
        assert int(one["RANK"]) == int(one["GROUP_RANK"]) * ranks_per_node + int(one["LOCAL_RANK"])
        assert int(one["LOCAL_RANK"]) < int(one["LOCAL_WORLD_SIZE"]) == ranks_per_node
