"""The same plan on a Ray cluster of two nodes on this machine: the same bytes, the same words for a fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_tools import prepare_pretrain_dataset
from data_tools.workers import run_tasks
from tests.data_tools.conftest import make_documents, write_documents
from tests.data_tools.test_resume import files_of
from tokenizer_tools.command import UserError

CHECKOUT = Path(prepare_pretrain_dataset.__file__).parent.parent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head and a second node, with one processor each and their own worker processes."""
    import ray
    from ray.cluster_utils import Cluster

    environment = {"env_vars": {"PYTHONPATH": str(CHECKOUT)}}
    cluster = Cluster()
    for number in (1, 2):
        cluster.add_node(num_cpus=1, resources={f"node{number}": 1}, object_store_memory=10**8)
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def node_of(number: int) -> str:
    import time

    import ray

    time.sleep(0.2)
    return ray.get_runtime_context().get_node_id()


def fail(number: int) -> None:
    raise UserError(f"{number} is wrong; choose another")


def test_both_nodes_work(cluster: Any) -> None:
    assert len(set(dict(run_tasks(node_of, range(12), 1, cluster.address)).values())) == 2


def test_the_fault_of_a_task_is_heard_as_it_is(cluster: Any) -> None:
    with pytest.raises(UserError, match=r"^0 is wrong; choose another$"):
        list(run_tasks(fail, range(1), 1, cluster.address))


def test_same_bytes_as_on_one_machine(cluster: Any, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    for index in range(4):
        write_documents(tmp_path / "corpus" / f"{index}.jsonl", make_documents(40, seed=index))
    words = ["--data_input_dirs", tmp_path / "corpus", "--tokenizer_dir", tiny_tokenizer_dir, "--max_length", 128]
    words = [str(word) for word in [*words, "--num_spliced_dataset_bins", 3, "--data_arrow_output_dir"]]
    assert prepare_pretrain_dataset.main([*words, str(tmp_path / "here")]) == 0
    assert prepare_pretrain_dataset.main([*words, str(tmp_path / "ray"), "--ray_address", cluster.address]) == 0
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")


def test_no_cluster_is_told_in_words() -> None:
    import ray

    ray.shutdown()
    with pytest.raises(UserError, match=r"--ray_address 127.0.0.1:1: no Ray cluster answers .* `ray start --head`"):
        list(run_tasks(fail, range(1), 1, "127.0.0.1:1"))
