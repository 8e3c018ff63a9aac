"""A checkpoint becomes a model directory that gives the same logits, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama import export, generate, lora
from colossal_llama.model import load_lora_model, load_model
from tests.colossal_llama.runs import weights_of


@pytest.fixture
def checkpoint(zero2_run: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(zero2_run / "epoch-0_step-8", tmp_path / "epoch-0_step-8")


def logits_of(model_dir: Path) -> torch.Tensor:
    """Logits of some ids in the saved number format."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype="auto").eval()
    with torch.inference_mode():
        return model(input_ids=torch.arange(1, 60)[None]).logits


def test_exported_model_gives_the_same_logits(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    assert export.main(["--checkpoint", str(checkpoint), "--target", str(target)]) == 0
    assert torch.equal(logits_of(target), logits_of(checkpoint / "modeling"))
    before, after = weights_of(checkpoint / "modeling"), weights_of(target)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert AutoModelForCausalLM.from_pretrained(target).config.use_cache
    text = "The import statement, 你好"
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (target, checkpoint / "modeling")]
    assert tokenizers[0](text) == tokenizers[1](text)
    assert {oct(path.stat().st_mode & 0o777) for path in target.rglob("*")} == {"0o644"}
    assert oct(target.stat().st_mode & 0o777) == "0o755"


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_number_format_can_change(name: str, dtype: torch.dtype, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    assert export.main(["--checkpoint", str(checkpoint), "--target", str(target), "--dtype", name]) == 0
    before = weights_of(checkpoint / "modeling")
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    assert {name: tensor.dtype for name, tensor in weights_of(target).items()} == dict.fromkeys(before, dtype)
    assert all(torch.equal(tensor, before[name].to(dtype)) for name, tensor in weights_of(target).items())


@pytest.mark.parametrize("pattern", ["modeling/*.safetensors", "modeling/tokenizer.json", "optimizer/*.bin"])
def test_checkpoint_with_a_flipped_bit_is_refused(
    pattern: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(checkpoint.glob(pattern))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert export.main(["--checkpoint", str(checkpoint), "--target", str(tmp_path / "exported")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: not the file that was saved" in line
    assert not (tmp_path / "exported").exists()


def test_no_checkpoint_is_refused(zero2_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--checkpoint", str(zero2_run / "modeling"), "--target", str(tmp_path / "exported")]) == 2
    assert "manifest of a complete checkpoint" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_existing_target_is_kept_unless_given_away(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "exported"
    target.mkdir()
    (target / "thesis.txt").write_text("ten years of work")
    argv = ["--checkpoint", str(checkpoint), "--target", str(target)]
    assert export.main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (target / "thesis.txt").read_text() == "ten years of work"
    assert export.main([*argv, "--overwrite"]) == 0
    assert not (target / "thesis.txt").exists()
    assert torch.equal(logits_of(target), logits_of(checkpoint / "modeling"))


def test_model_that_changed_on_the_way_is_not_delivered(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof itself: a reloaded model with other logits stops the export."""
    from colossal_llama import model

    load, loaded = model.load_model, []

    def load_and_spoil(*args: object, **kwargs: object) -> torch.nn.Module:
        loaded.append(load(*args, **kwargs))  # type: ignore[arg-type]
        if len(loaded) == 2:
            loaded[-1].lm_head.weight.data[7] += 0.01
        return loaded[-1]

    monkeypatch.setattr(model, "load_model", load_and_spoil)
    with pytest.raises(RuntimeError, match="logits differ"):
        export.main(["--checkpoint", str(checkpoint), "--target", str(tmp_path / "exported")])
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


@pytest.fixture
def adapter_checkpoint(checkpoint: Path, tiny_model_dir: Path) -> Path:
    """A checkpoint as a run with --lora_rank leaves it: an adapter and the tokenizer in `modeling`."""
    settings = lora.LoraSettings(4, 8.0, ("q_proj", "down_proj"), 0.0, ("embed_tokens", "lm_head"), seed=1)
    model = load_lora_model(tiny_model_dir, torch.bfloat16, "sdpa", use_grad_checkpoint=False, settings=settings)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for name in ("config.json", "generation_config.json"):
        (checkpoint / "modeling" / name).unlink()
    for path in (checkpoint / "modeling").glob("*.safetensors*"):
        path.unlink()
    lora.save_adapter(model, checkpoint / "modeling")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"]
    manifest["sizes_bytes"] = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    manifest["sha256"] = {
        str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return checkpoint


def test_adapter_is_exported_merged(
    adapter_checkpoint: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "exported"
    assert export.main(["--checkpoint", str(adapter_checkpoint), "--target", str(target)]) == 0
    assert not lora.is_adapter(target)
    merged = load_model(adapter_checkpoint / "modeling", "auto", "sdpa", use_grad_checkpoint=False).state_dict()
    exported, base = weights_of(target), weights_of(tiny_model_dir)
    assert exported.keys() == merged.keys()
    assert all(torch.equal(exported[name], merged[name]) for name in exported)
    changed = {name for name in base if not torch.equal(base[name].bfloat16(), exported[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj", "embed_tokens", "lm_head"}
    said = []
    for directory in (target, adapter_checkpoint / "modeling"):
        capsys.readouterr()
        assert generate.main(["--model", str(directory), "--prompt", "The licence", "--max_new_tokens", "6"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
