"""What would run on a host: its Python, the packages of its environment and the project's own code. No torch here."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

CODE_DIR = Path(__file__).resolve().parents[2]
"""The checkout, or the directory that the packages are installed in."""
CODE = ("train.py", "colossal_llama/**/*.py", "data_tools/**/*.py", "tokenizer_tools/**/*.py")
PROJECT = "colossal-llama-pretrain"
WITH_IT = ("colossalai", "torch", "transformers", "peft", "safetensors", "numpy", "pyarrow", "flash-attn")
"""Looked at in any case; what they need in turn belongs to it."""
DIGITS = 16
CUDA_BUILD = re.compile(r"^__version__ = '([^']+)'", re.MULTILINE)
NAME = re.compile(r"[A-Za-z0-9._-]+")


def code_hashes() -> dict[str, str]:
    """{path from the checkout's root: the first digits of its sha256} of the project's own Python files."""
    paths = sorted({path for pattern in CODE for path in CODE_DIR.glob(pattern)})
    return {
        str(path.relative_to(CODE_DIR)): hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]
        for path in paths
        if path.is_file()
    }


def package_versions() -> dict[str, str]:
    """{name: version} of every package of this environment; torch's with the CUDA that it was built for."""
    found = {_plain(one.metadata["Name"]): one.version for one in distributions() if one.metadata["Name"]}
    if "torch" in found:
        found["torch"] = _torch_build(distribution("torch")) or found["torch"]
    return found


def needed_packages() -> set[str]:
    """The names of what training needs: the project's requirements, and theirs, as far as they are installed."""
    needed: set[str] = set()
    waiting = [PROJECT, *WITH_IT]
    while waiting:
        name = _plain(waiting.pop())
        if name in needed:
            continue
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # of another system, or an extra that nobody has asked for
        needed.add(name)
        waiting += [match[0] for one in requirements if "extra ==" not in one and (match := NAME.match(one))]
    return needed - {PROJECT}


def _torch_build(torch: Distribution) -> str | None:
    """2.5.1+cu124; its own version file says it, so that nothing of it has to be imported."""
    try:
        match = CUDA_BUILD.search(Path(str(torch.locate_file("torch/version.py"))).read_text())
    except OSError:
        return None
    return match[1] if match else None


def _plain(name: str) -> str:
    """One spelling for all: PyYAML, pyyaml; a_b, a.b, a-b."""
    return re.sub(r"[-_.]+", "-", name).lower()
