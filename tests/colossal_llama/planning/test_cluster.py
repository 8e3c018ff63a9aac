"""What stands for a cluster, in all its spellings, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colossal_llama.planning.cluster import planned_cluster
from colossal_llama.planning.plan_config import PlanConfig, count_of
from tokenizer_tools.command import UserError


def planned(**flags: Any) -> Any:
    return planned_cluster(PlanConfig(Path(), **flags))


@pytest.mark.parametrize(
    ("words", "num_gpus", "gpus_per_host", "name", "tflops"),
    [
        ("64 x A800-80G", 64, 8, "A800-80G", 312),
        ("64x nvidia a800 80GB", 64, 8, "A800-80G", 312),
        ("2 x 4 x H100-SXM", 8, 4, "H100-SXM", 989),
        ("4 x H20", 4, 4, "H20", 148),
        ("16×H800-PCIe", 16, 8, "H800-PCIe", 756),
        ("8 x MI300X", 8, 8, "MI300X", 1307),
    ],
)
def test_gpus_by_their_names(words: str, num_gpus: int, gpus_per_host: int, name: str, tflops: float) -> None:
    cluster = planned(cluster=words)
    assert (cluster.num_gpus, cluster.gpus_per_host, cluster.gpu_name) == (num_gpus, gpus_per_host, name)
    assert cluster.peak_tflops == tflops and f"{tflops} TFLOP/s ({name}" in cluster.peak_source


def test_the_hosts_of_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("# rack 7\nh0\nh1  # the loud one\n\nh2\n")
    cluster = planned(hostfile=tmp_path / "hostfile", gpu="A100-80G", gpus_per_host=4)
    assert (cluster.num_gpus, cluster.num_hosts, cluster.gpus_per_host) == (12, 3, 4)


def test_a_gpu_that_nobody_knows_is_described() -> None:
    cluster = planned(cluster="8 x Ascend-910B", gpu_memory_gib=64, peak_tflops=280.0)
    assert (cluster.memory_bytes, cluster.peak_tflops, cluster.gpu_name) == (64 * 2**30, 280.0, "Ascend-910B")


def test_some_memory_is_left_alone() -> None:
    assert planned(cluster="8 x A100-80G").usable_bytes == round((80 - 3 - 4) * 2**30)
    assert planned(cluster="8 x A100-80G", reserve_gib=0.0).usable_bytes == 80 * 2**30
    assert planned(cluster="8 x A100-80G", gpu_memory_gib=40.0).memory_bytes == 40 * 2**30


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "say which GPUs"),
        ({"cluster": "64 A800"}, "--cluster '64 A800': must be such as"),
        ({"cluster": "0 x A800-80G"}, "has no GPU"),
        ({"cluster": "8 x A100-80G", "gpu": "H20"}, "--gpu say it twice"),
        ({"cluster": "8 x A100"}, "GPU A100: could be A100-40G or A100-80G"),
        ({"cluster": "8 x TPUv4"}, "GPU TPUv4: not one of A100-40G, .*--gpu_memory_gib and --peak_tflops"),
        ({"cluster": "8 x TPUv4", "peak_tflops": 275.0}, "GPU TPUv4: not one of"),
        ({"cluster": "8 x V100-32G"}, "--mixed_precision bf16 on V100-32G: only its peak of fp16 is known"),
        ({"hostfile": Path("hosts"), "cluster": "8 x H20"}, "either --cluster"),
        ({"hostfile": Path("hosts")}, "does not say which GPUs"),
    ],
)
def test_no_cluster_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(**flags)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8.5B", 8_500_000_000),
        ("850m", 850_000_000),
        ("1e9", 10**9),
        ("1,000", 1000),
        (".5T", 5 * 10**11),
    ],
)
def test_counts_in_words(text: str, count: int) -> None:
    assert count_of(text, "--num_tokens") == count


@pytest.mark.parametrize("text", ["", "B", "-5", "0", "8.5 billion", "1e", "nan"])
def test_no_count_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--num_tokens"):
        count_of(text, "--num_tokens")
