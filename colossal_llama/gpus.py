"""What is known of devices: a name comes in, peaks by number format and memory go out. No torch.

A driver's name ("NVIDIA A800-SXM4-80GB") leads to the peak, for the MFU of a run; a short name ("A800-80G") to a
catalogue of devices that a plan can be made for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tokenizer_tools.command import UserError

GIBI = 2**30
DATASHEET_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    # dense, as the makers' datasheets have them; the first pattern found in a device's name counts
    (r"\bH[12]00 NVL\b", {"bf16": 835, "fp16": 835}),
    (r"\bH[18]00 PCIe\b", {"bf16": 756, "fp16": 756}),
    (r"\bH[128]00\b", {"bf16": 989, "fp16": 989}),
    (r"\bH20\b", {"bf16": 148, "fp16": 148}),
    (r"\bA[18]00\b", {"bf16": 312, "fp16": 312}),
    (r"\bL40S\b", {"bf16": 362, "fp16": 362}),
    (r"\bRTX 4090$", {"bf16": 165, "fp16": 165}),
    (r"\bA10$", {"bf16": 125, "fp16": 125}),
    (r"\bV100-SXM", {"fp16": 125}),
    (r"\bV100-PCIE", {"fp16": 112}),
    (r"\bMI300X\b", {"bf16": 1307, "fp16": 1307}),
    (r"\bMI250X\b", {"bf16": 191.5, "fp16": 191.5}),  # 383 for the package, whose halves are two devices
)


def datasheet_tflops(device_name: str) -> Mapping[str, float]:
    """{"bf16": ..., "fp16": ...} of a device by its driver's name; {} where it is not known. A slice of a device (MIG)
    is not the device."""
    if "MIG" in device_name:
        return {}
    return next((by_type for pattern, by_type in DATASHEET_TFLOPS if re.search(pattern, device_name)), {})


@dataclass(frozen=True)
class Gpu:
    """One device as a rank has it. A package that shows up as two devices is two of them."""

    name: str
    device_name: str
    """As its driver says it: the key to its peak."""
    memory_gib: float
    """Of its datasheet; GDDR cards keep 1/16 of it for error correction, which is taken off here."""

    @property
    def memory_bytes(self) -> int:
        """All of the device's memory."""
        return round(self.memory_gib * GIBI)

    @property
    def tflops(self) -> Mapping[str, float]:
        """Dense peak in TFLOP/s by number format."""
        return datasheet_tflops(self.device_name)


CATALOGUE = (
    Gpu("A100-40G", "NVIDIA A100-SXM4-40GB", 40),
    Gpu("A100-80G", "NVIDIA A100-SXM4-80GB", 80),
    Gpu("A800-40G", "NVIDIA A800-SXM4-40GB", 40),
    Gpu("A800-80G", "NVIDIA A800-SXM4-80GB", 80),
    Gpu("H100-SXM", "NVIDIA H100 80GB HBM3", 80),
    Gpu("H100-PCIe", "NVIDIA H100 PCIe", 80),
    Gpu("H100-NVL", "NVIDIA H100 NVL", 94),
    Gpu("H800-SXM", "NVIDIA H800", 80),
    Gpu("H800-PCIe", "NVIDIA H800 PCIe", 80),
    Gpu("H200", "NVIDIA H200", 141),
    Gpu("H200-NVL", "NVIDIA H200 NVL", 141),
    Gpu("H20", "NVIDIA H20", 96),
    Gpu("L40S", "NVIDIA L40S", 45),
    Gpu("RTX4090", "NVIDIA GeForce RTX 4090", 24),
    Gpu("A10", "NVIDIA A10", 22.5),
    Gpu("V100-16G", "Tesla V100-SXM2-16GB", 16),
    Gpu("V100-32G", "Tesla V100-SXM2-32GB", 32),
    Gpu("MI250X-GCD", "AMD Instinct MI250X", 64),
    Gpu("MI300X", "AMD Instinct MI300X", 192),
)


def find_gpu(name: str) -> Gpu | None:
    """The catalogue's device that `name` means, in any spelling ("a800 80gb"); None if there is none.

    Raises UserError if it could be several.
    """
    wanted = _letters(name)
    candidates = [gpu for gpu in CATALOGUE if _letters(gpu.name).startswith(wanted)]
    exact = [gpu for gpu in candidates if _letters(gpu.name) == wanted]
    if len(exact or candidates) > 1:
        raise UserError(f"GPU {name}: could be {' or '.join(gpu.name for gpu in candidates)}; name one of them")
    return next(iter(exact or candidates), None)


def _letters(name: str) -> str:
    """NVIDIA A800-80GB -> a80080g"""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"(\d)gb$", r"\1g", re.sub("^(nvidia|amd|tesla|instinct|geforce)+", "", plain))
