"""What would run on this very machine, against what is really loaded."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from colossal_llama.hosts.software import (
    CODE_DIR,
    code_hashes,
    launcher_finding,
    needed_packages,
    package_versions,
)


def test_code_is_every_file_of_the_packages_and_train() -> None:
    hashes = code_hashes()
    assert {"train.py", "colossal_llama/hosts/software.py", "data_tools/bins.py"} <= set(hashes)
    assert not any(name.startswith(("tests/", "runs/", ".venv/")) for name in hashes)
    digest = hashlib.sha256((CODE_DIR / "train.py").read_bytes()).hexdigest()
    assert hashes["train.py"] == digest[: len(hashes["train.py"])]


def test_torch_is_told_with_its_cuda_without_being_imported() -> None:
    versions = package_versions()
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == version("transformers")


def test_what_training_needs_is_told_from_what_lies_beside_it() -> None:
    needed = needed_packages()
    assert {"torch", "colossalai", "transformers", "safetensors", "tokenizers", "numpy", "sympy"} <= needed
    assert not {"mypy", "hypothesis", "colossal-llama-pretrain"} & needed
    assert needed <= set(package_versions())


def test_colossalai_run_has_to_be_the_projects_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert launcher_finding() is None, "none is there"
    script = tmp_path / "colossalai"
    script.write_text("from colossal_llama.launch import main\n")
    assert launcher_finding() is None
    script.write_text("from colossalai.cli import cli\n")
    finding = launcher_finding()
    assert finding is not None and finding.is_fault and str(script) in finding.what
