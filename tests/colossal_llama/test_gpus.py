"""The catalogue of devices; the peaks by a driver's name are in test_host.py."""

from __future__ import annotations

import pytest

from colossal_llama.gpus import CATALOGUE, find_gpu
from tokenizer_tools.command import UserError


def test_every_device_has_a_name_of_its_own_and_a_peak() -> None:
    assert len({gpu.name for gpu in CATALOGUE}) == len(CATALOGUE)
    for gpu in CATALOGUE:
        assert find_gpu(gpu.name) is gpu
        assert gpu.tflops and gpu.memory_bytes > 0, gpu.name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a100 80gb", "A100-80G"),
        ("H200", "H200"),
        ("NVIDIA A10", "A10"),
        ("rtx 4090", "RTX4090"),
        ("mi250x", "MI250X-GCD"),
    ],
)
def test_spellings(name: str, found: str) -> None:
    gpu = find_gpu(name)
    assert gpu is not None and gpu.name == found


def test_half_a_name_is_refused_if_it_could_be_several() -> None:
    with pytest.raises(UserError, match="H100-SXM or H100-PCIe or H100-NVL"):
        find_gpu("H100")
    assert find_gpu("Ascend910B") is None
