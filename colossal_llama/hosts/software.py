"""What would run on a host: its Python, the packages of its environment and the project's own code. No torch here."""

from __future__ import annotations

import hashlib
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from colossal_llama.hosts.finding import Finding, fault

CODE_DIR = Path(__file__).resolve().parents[2]
"""The checkout, or the directory that the packages are installed in."""
CODE = ("train.py", "colossal_llama/**/*.py", "data_tools/**/*.py", "tokenizer_tools/**/*.py")
LAUNCHER = "colossalai"
PROJECT = "colossal-llama-pretrain"
WITH_IT = ("colossalai", "torch", "transformers", "peft", "safetensors", "numpy", "pyarrow", "flash-attn")
"""Looked at in any case; what they need in turn belongs to it."""
PACKAGE_DIRS = ("site-packages", "dist-packages")
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
    installed = _installed()
    versions = {name: one.version for name, one in installed.items()}
    if "torch" in installed:
        versions["torch"] = _torch_build(installed["torch"]) or versions["torch"]
    return versions


def needed_packages() -> set[str]:
    """The names of what training needs: the project's requirements, and theirs, as far as they are installed."""
    installed = _installed()
    needed: set[str] = set()
    waiting = [PROJECT, *WITH_IT]
    while waiting:
        name = _plain(waiting.pop())
        if name in needed or name not in installed:  # not installed: of another system, or an extra
            continue
        needed.add(name)
        requirements = installed[name].requires or []
        waiting += [match[0] for one in requirements if "extra ==" not in one and (match := NAME.match(one))]
    return needed - {PROJECT}


def launcher_finding() -> Finding | None:
    """What is wrong if `colossalai run` is not this project's: whichever package was installed last has the command."""
    script = Path(sys.executable).with_name(LAUNCHER)
    if not script.is_file() or "colossal_llama" in script.read_text(errors="replace"):
        return None
    return fault(
        "here",
        f"{script} is Colossal-AI's own command, which loses arguments, failures and hosts",
        f"`pip install --no-deps -e {CODE_DIR}` puts this project's in its place",
    )


def _installed() -> dict[str, Distribution]:
    """By their names, as they are found by an import: the first directory of packages that has one counts."""
    folders = [folder for folder in sys.path if Path(folder).name in PACKAGE_DIRS]
    found: dict[str, Distribution] = {}
    for one in distributions(path=folders):
        if one.metadata["Name"]:
            found.setdefault(_plain(one.metadata["Name"]), one)
    return found


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
