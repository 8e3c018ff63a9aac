"""The command as users run it: weights read back by transformers, against a mean taken row by row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.conftest import TINY_MODEL_CONFIG, write_jsonl
from tests.tokenizer_tools.test_init_tokenizer import PIECES, change_settings, only_error
from tokenizer_tools import init_model, init_tokenizer

MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


def run(source: Path, tokenizer: Path, target: Path, *more: str) -> int:
    flags = {
        "source_model_and_tokenizer_path": source,
        "target_tokenizer_path": tokenizer,
        "target_model_path": target,
    }
    return init_model.main([*(part for name, value in flags.items() for part in (f"--{name}", str(value))), *more])


def make_model(
    directory: Path, tokenizer_dir: Path, dtype: torch.dtype = torch.bfloat16, shards: str = "5GB", **config: Any
) -> Path:
    """A small random Llama with the tokenizer's files beside it."""
    torch.manual_seed(3)
    settings = TINY_MODEL_CONFIG | {"vocab_size": 512, "num_hidden_layers": 2} | config
    LlamaForCausalLM(LlamaConfig(**settings)).to(dtype).save_pretrained(directory, max_shard_size=shards)
    for file in tokenizer_dir.iterdir():
        shutil.copy(file, directory)
    return directory


@pytest.fixture(scope="module")
def expanded(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small tokenizer with PIECES."""
    directory = tmp_path_factory.mktemp("expanded")
    file = write_jsonl(directory / "pieces.jsonl", [{"piece": piece} for piece in [*PIECES, "上海", "海上"]])
    flags = ["--source_tokenizer_dir", str(tiny_tokenizer_dir), "--expand_tokens_file", str(file)]
    assert init_tokenizer.main([*flags, "--target_tokenizer_dir", str(directory / "target")]) == 0
    return directory / "target"


@pytest.fixture
def source(tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    return make_model(tmp_path / "source", tiny_tokenizer_dir)


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def assert_grown(source: Path, target: Path, expanded: Path) -> None:
    """Every tensor: old rows and all else bit for bit, new rows the mean of the old rows of the piece's own text."""
    old, new = read_tensors(source), read_tensors(target)
    assert old.keys() == new.keys()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    pieces = AutoTokenizer.from_pretrained(expanded).convert_ids_to_tokens(range(512, new[MATRICES[0]].shape[0]))
    for name, tensor in old.items():
        assert new[name].dtype == tensor.dtype
        if name not in MATRICES:
            assert torch.equal(new[name], tensor)
            continue
        assert torch.equal(new[name][:512], tensor[:512])
        for k, piece in enumerate(pieces):
            ids = processor.encode("\n" + piece.replace("▁", " "))[2:]
            torch.testing.assert_close(new[name][512 + k], tensor[ids].float().mean(0).to(tensor.dtype))


@pytest.mark.parametrize(
    ("dtype", "shards", "config"),
    [
        (torch.bfloat16, "5GB", {}),
        (torch.float32, "200KB", {}),
        (torch.float16, "100KB", {"tie_word_embeddings": True}),
        (torch.bfloat16, "5GB", {"vocab_size": 576}),  # padded to a multiple of 64
    ],
)
def test_rows_and_everything_else(
    tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path, dtype: torch.dtype, shards: str, config: dict[str, Any]
) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, dtype, shards, **config)
    target = tmp_path / "target"
    assert run(source, expanded, target) == 0
    assert_grown(source, target, expanded)
    assert {file.name for file in source.glob("model*")} == {file.name for file in target.glob("model*")}
    for file in target.glob("*.safetensors"):
        with safe_open(file, "pt") as grown, safe_open(source / file.name, "pt") as original:
            assert grown.metadata() == original.metadata() == {"format": "pt"}
    size = len(AutoTokenizer.from_pretrained(target))
    model, notes = AutoModelForCausalLM.from_pretrained(target, torch_dtype="auto", output_loading_info=True)
    assert not any(notes.values())
    assert (model.dtype, model.config.vocab_size, model.get_input_embeddings().num_embeddings) == (dtype, size, size)


def test_sharded_index_adds_up(tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, torch.float32, "200KB")
    assert run(source, expanded, tmp_path / "target") == 0
    index = json.loads((tmp_path / "target" / "model.safetensors.index.json").read_text())
    tensors = read_tensors(tmp_path / "target")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_old_text_gives_the_same_logits(tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, torch.float32)
    assert run(source, expanded, tmp_path / "target") == 0
    logits = []
    for directory in (source, tmp_path / "target"):
        ids = AutoTokenizer.from_pretrained(directory)("The assert statement", return_tensors="pt").input_ids
        with torch.no_grad():
            logits.append(AutoModelForCausalLM.from_pretrained(directory)(ids).logits[..., :512])
    assert torch.equal(*logits)


def test_manifest_config_and_tokenizer_files(source: Path, tmp_path: Path, expanded: Path) -> None:
    assert run(source, expanded, tmp_path / "target") == 0
    manifest = json.loads((tmp_path / "target" / "manifest.json").read_text())
    tokenizer_manifest = json.loads((expanded / "manifest.json").read_text())
    assert manifest["tokenizer"] == tokenizer_manifest
    assert manifest["tokenizer_fingerprint"] == tokenizer_manifest["tokenizer_fingerprint"]
    assert manifest["source_tokenizer_fingerprint"] == tokenizer_manifest["source_tokenizer_fingerprint"]
    assert manifest["vocab_size"] == tokenizer_manifest["vocab_size"]
    assert manifest["initialiser"] == "mean"
    new = read_tensors(tmp_path / "target")[MATRICES[0]][512:]
    assert manifest["rows_initialised"] == len(new)
    assert manifest["identical_starting_rows"] == len(new) - len(new.unique(dim=0)) > 0  # 上海 and 海上 at least
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "target" / name).read_bytes() == (expanded / name).read_bytes()


def test_ids_of_control_tokens_come_from_the_tokenizer(source: Path, tmp_path: Path, expanded: Path) -> None:
    tokenizer = shutil.copytree(expanded, tmp_path / "tokenizer")
    change_settings(tokenizer, pad_token="</s>")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps(settings | {"bos_token_id": 7, "eos_token_id": [2, 5], "top_p": 0.5}))
    assert run(source, tokenizer, tmp_path / "target") == 0
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((tmp_path / "target" / name).read_text())
        ids = [settings[f"{token}_token_id"] for token in ("bos", "eos", "pad")]
        assert (ids, settings["top_p"]) == ([1, [2, 5], 2], 0.5)


def test_model_joins_the_tokenizer_in_its_directory(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = shutil.copytree(expanded, tmp_path / "both")
    (both / "notes.txt").write_text("mine")
    (both / "more").mkdir()
    assert run(source, both, both) == 0
    assert_grown(source, both, expanded)
    assert (both / "notes.txt").read_text() == "mine"
    assert (both / "more").is_dir()
    once = {file.name: file.read_bytes() for file in both.iterdir() if file.is_file()}
    assert "tokenizer" in json.loads(once["manifest.json"])

    assert run(source, both, both) == 2
    assert "exists and is not empty; add --overwrite" in only_error(capsys)
    (both / "model-00001-of-00002.safetensors").write_text("an older model's")
    assert run(source, both, both, "--overwrite") == 0
    assert once == {file.name: file.read_bytes() for file in both.iterdir() if file.is_file()}


def test_existing_target_needs_overwrite(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, expanded, tmp_path / "target") == 0
    assert run(source, expanded, tmp_path / "target") == 2
    assert "exists and is not empty; add --overwrite" in only_error(capsys)
    assert run(source, expanded, tmp_path / "target", "--overwrite") == 0


@pytest.mark.parametrize("replaced", ["source", "tokenizer"])
def test_target_may_not_replace_what_is_read(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str], replaced: str
) -> None:
    tokenizer = shutil.copytree(expanded, tmp_path / "inside" / "tokenizer")
    target = source if replaced == "source" else tokenizer.parent
    assert run(source, tokenizer, target, "--overwrite") == 2
    assert "would replace the source" in only_error(capsys)
    assert (source / "model.safetensors").is_file()
    assert (tokenizer / "tokenizer.model").is_file()


def test_moved_ids_are_refused(
    source: Path, tmp_path: Path, base_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, base_tokenizer_dir, tmp_path / "target") == 2
    assert "in the target tokenizer; old ids must not move" in only_error(capsys)
    assert not (tmp_path / "target").exists()


def test_fewer_rows_than_pieces_are_refused(
    tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, vocab_size=500)
    assert run(source, expanded, tmp_path / "target") == 2
    assert "has 500 rows, but the tokenizer beside it has 512 pieces" in only_error(capsys)


def test_bin_weights_are_refused(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert run(source, expanded, tmp_path / "target") == 2
    assert "model.safetensors: no such file; .bin weights are not read (pickle)" in only_error(capsys)


def test_half_a_shard_is_refused(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert run(source, expanded, tmp_path / "target") == 2
    assert "model.safetensors: not a whole safetensors file" in only_error(capsys)


def test_a_missing_shard_is_refused(
    tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, torch.float32, "200KB")
    next(source.glob("model-00002*")).unlink()
    assert run(source, expanded, tmp_path / "target") == 2
    assert "no such file; name a complete model directory with safetensors weights" in only_error(capsys)


def test_an_index_without_files_is_refused(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "model.safetensors.index.json").write_text("{}")
    assert run(source, expanded, tmp_path / "target") == 2
    assert "names no file in its weight_map" in only_error(capsys)


def test_another_architecture_is_refused(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    save_file({"transformer.wte.weight": torch.zeros(512, 4)}, source / "model.safetensors")
    assert run(source, expanded, tmp_path / "target") == 2
    assert "has no tensor model.embed_tokens.weight; only LLaMA-style models" in only_error(capsys)


def start(tokenizer: Path, target: Path, config: Path, *more: str) -> int:
    flags = ["--from_config", str(config), "--target_tokenizer_path", str(tokenizer)]
    return init_model.main([*flags, "--target_model_path", str(target), *more])


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(TINY_MODEL_CONFIG | {"vocab_size": 7, "eos_token_id": 5}))
    return tmp_path / "config.json"


def test_new_model_is_a_function_of_the_seed(tmp_path: Path, tiny_tokenizer_dir: Path, config_file: Path) -> None:
    for name, seed in (("one", "1"), ("same", "1"), ("other", "2")):
        assert start(tiny_tokenizer_dir, tmp_path / name, config_file, "--seed", seed) == 0
    one, same, other = (read_tensors(tmp_path / name) for name in ("one", "same", "other"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one[MATRICES[0]], other[MATRICES[0]])


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [([], torch.float32), (["--dtype", "float32"], torch.float32), (["--dtype", "bfloat16"], torch.bfloat16)],
)
def test_new_model_fits_the_tokenizer(
    tmp_path: Path, tiny_tokenizer_dir: Path, config_file: Path, flags: list[str], dtype: torch.dtype
) -> None:
    assert start(tiny_tokenizer_dir, tmp_path / "new", config_file, "--seed", "1", *flags) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new", torch_dtype="auto")
    assert (model.dtype, model.config.vocab_size) == (dtype, 512)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 2, None)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "new")) == 512
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert (manifest["initialiser"], manifest["rows_initialised"]) == ("random, seed 1", 512)


def test_weights_are_readable_for_the_team(
    source: Path, tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path, config_file: Path
) -> None:
    assert run(source, expanded, tmp_path / "grown") == 0
    assert start(tiny_tokenizer_dir, tmp_path / "new", config_file, "--seed", "1") == 0
    for name in ("grown", "new"):
        assert (tmp_path / name / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either --source_model_and_tokenizer_path"),
        (["--source_model_and_tokenizer_path", "a", "--from_config", "b"], "give either"),
        (["--source_model_and_tokenizer_path", "a", "--seed", "1"], "--seed and --dtype go with --from_config only"),
        (["--from_config", "b"], "--from_config needs --seed N"),
        (["--from_config", "b", "--seed", "1", "--dtype", "int8"], "--dtype"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert init_model.main(["--target_tokenizer_path", "t", "--target_model_path", "m", *flags]) == 2
    assert message in only_error(capsys)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 64}, 'has no "model_type"; add "model_type": "llama"'),
        ({"model_type": "nix"}, "gives no model"),
        ({"model_type": "llama", "torch_dtype": "float7"}, "gives no model"),
    ],
)
def test_a_bad_config_is_refused(
    tmp_path: Path, tiny_tokenizer_dir: Path, config: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert start(tiny_tokenizer_dir, tmp_path / "new", tmp_path / "config.json", "--seed", "1") == 2
    assert message in only_error(capsys)
    assert not (tmp_path / "new").exists()
