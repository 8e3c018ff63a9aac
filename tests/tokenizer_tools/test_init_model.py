"""The command as users run it: weights read back by transformers, against a mean taken row by row."""

from __future__ import annotations

import errno
import json
import shutil
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.conftest import TINY_MODEL_CONFIG, write_jsonl
from tests.tokenizer_tools.test_init_tokenizer import PIECES, change_settings, only_error
from tests.tokenizer_tools.test_parts import grow_byte_level
from tokenizer_tools import init_model, init_tokenizer
from tokenizer_tools.spelling import spell_bytes

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
        seen: set[tuple[tuple[int, Fraction], ...]] = set()
        for k, piece in enumerate(pieces):
            ids = processor.encode("\n" + piece.replace("▁", " "))[2:]
            mean = tensor[ids].float().mean(0).to(tensor.dtype)
            shares = tuple(sorted((i, Fraction(ids.count(i), len(ids))) for i in set(ids)))
            has_noise = shares in seen or len(shares) == 1
            seen.add(shares)
            near = {"rtol": 0, "atol": 0.05 * tensor.float().std().item()} if has_noise else {}
            torch.testing.assert_close(new[name][512 + k], mean, **near)
        assert len(new[name].unique(dim=0)) == len(new[name])


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
    assert manifest["made_from"]["tokenizer"] == tokenizer_manifest
    assert manifest["tokenizer_fingerprint"] == tokenizer_manifest["tokenizer_fingerprint"]
    assert manifest["source_tokenizer_fingerprint"] == tokenizer_manifest["source_tokenizer_fingerprint"]
    assert manifest["vocab_size"] == tokenizer_manifest["vocab_size"]
    assert (manifest["initialiser"], manifest["noise"], manifest["seed"]) == ("mean", 0.01, 0)
    tensors = read_tensors(tmp_path / "target")
    assert manifest["rows_initialised"] == len(tensors[MATRICES[0]]) - 512
    assert manifest["identical_starting_rows"] == 0
    assert list(manifest["matrices"]) == list(MATRICES)
    for name, matrix in manifest["matrices"].items():
        assert matrix["identical_starting_rows"] == 0
        assert matrix["rows_with_noise"] > 0  # 上海 and 海上 at least
        assert matrix["rows_dropped"] == 0
        for kind, rows in (("old", tensors[name][:512]), ("new", tensors[name][512:])):
            norms = rows.float().norm(dim=1)
            assert matrix[f"norm_of_{kind}_rows"]["max"] == pytest.approx(norms.max().item(), abs=1e-5)
            assert matrix[f"norm_of_{kind}_rows"]["median"] == pytest.approx(norms.quantile(0.5).item(), abs=1e-5)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "target" / name).read_bytes() == (expanded / name).read_bytes()


def test_ids_of_control_tokens_come_from_the_tokenizer(source: Path, tmp_path: Path, expanded: Path) -> None:
    tokenizer = shutil.copytree(expanded, tmp_path / "tokenizer")
    change_settings(tokenizer, pad_token="</s>")
    (tokenizer / "manifest.json").unlink()  # it would tell that the settings were changed by hand
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
    assert json.loads(once["manifest.json"])["made_from"]["tokenizer"]["kind"] == "tokenizer"

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
    assert "would replace" in only_error(capsys)
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


def test_without_noise_equal_means_stay_equal(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, expanded, tmp_path / "target", "--noise", "0") == 0
    new = read_tensors(tmp_path / "target")[MATRICES[0]]
    manifest = json.loads((tmp_path / "target" / "manifest.json").read_text())
    assert manifest["identical_starting_rows"] == len(new) - len(new.unique(dim=0)) > 0
    assert f"new rows equal to an earlier row: {manifest['identical_starting_rows']}\n" in capsys.readouterr().out


def test_the_report_says_what_the_manifest_says(
    tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, vocab_size=520)
    assert run(source, expanded, tmp_path / "target", "--output_initialiser", "zero") == 0
    matrix = json.loads((tmp_path / "target" / "manifest.json").read_text())["matrices"]["lm_head.weight"]
    assert matrix["rows_dropped"] == 8
    printed = capsys.readouterr().out
    noisy = matrix["rows_with_noise"]
    assert f"lm_head.weight (zero): 8 padding rows dropped, {noisy} new rows told apart by noise\n" in printed
    assert f"norm of new rows: min 0.0000  5% {matrix['norm_of_new_rows']['5%']:.4f}" in printed


@pytest.mark.parametrize("initialiser", ["mean", "position_mean", "normal", "zero", "copy"])
def test_each_initialiser_by_name_and_seed(source: Path, tmp_path: Path, expanded: Path, initialiser: str) -> None:
    """The same seed gives the same bytes, and old rows are never touched."""
    for name, seed in (("one", "1"), ("same", "1"), ("other", "2")):
        assert run(source, expanded, tmp_path / name, "--initialiser", initialiser, "--seed", seed) == 0
    old = read_tensors(source)
    one, same, other = (read_tensors(tmp_path / name) for name in ("one", "same", "other"))
    for name in MATRICES:
        assert torch.equal(one[name], same[name])
        assert not torch.equal(one[name], other[name])  # repeats get other noise
        assert torch.equal(one[name][:512], old[name])
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert (manifest["initialiser"], manifest["seed"], manifest["identical_starting_rows"]) == (initialiser, 1, 0)


def test_output_rows_may_start_otherwise(source: Path, tmp_path: Path, expanded: Path) -> None:
    flags = ["--initialiser", "copy", "--output_initialiser", "zero", "--noise", "0"]
    assert run(source, expanded, tmp_path / "target", *flags) == 0
    new, old = read_tensors(tmp_path / "target"), read_tensors(source)
    piece = AutoTokenizer.from_pretrained(expanded).convert_tokens_to_ids("▁xylophonist")
    last = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model")).encode("xylophonist")[-1]
    assert torch.equal(new[MATRICES[0]][piece], old[MATRICES[0]][last])
    assert not new[MATRICES[1]][512:].any()
    matrices = json.loads((tmp_path / "target" / "manifest.json").read_text())["matrices"]
    assert [matrices[name]["initialiser"] for name in MATRICES] == ["copy", "zero"]


def test_output_rows_copy_the_first_part(source: Path, tmp_path: Path, expanded: Path) -> None:
    assert run(source, expanded, tmp_path / "target", "--initialiser", "copy", "--noise", "0") == 0
    new, old = read_tensors(tmp_path / "target"), read_tensors(source)
    piece = AutoTokenizer.from_pretrained(expanded).convert_tokens_to_ids("▁xylophonist")
    ids = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model")).encode("xylophonist")
    for name, part in zip(MATRICES, (ids[-1], ids[0]), strict=True):
        assert torch.equal(new[name][piece], old[name][part])


@pytest.mark.parametrize("shards", ["5GB", "100KB"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_bin_weights_come_out_as_safetensors(
    tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path, shards: str, is_tied: bool
) -> None:
    """A tied matrix, stored under both names, goes out once; an untied one that shares memory goes out twice."""
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, shards=shards, tie_word_embeddings=is_tied)
    expected = read_tensors(source)
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype="auto")
    if not is_tied:
        model.lm_head.weight = model.model.embed_tokens.weight
        expected[MATRICES[1]] = expected[MATRICES[0]]
    for file in source.glob("model*"):
        file.unlink()
    model.save_pretrained(source, safe_serialization=False, max_shard_size=shards)
    assert (len(list(source.glob("pytorch_model*.bin"))) > 1) == (shards == "100KB")
    assert run(source, expanded, tmp_path / "target") == 0
    assert not list((tmp_path / "target").glob("*.bin*"))
    new = read_tensors(tmp_path / "target")
    assert new.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(new[name][: len(tensor)], tensor)
    if not is_tied:
        assert torch.equal(new[MATRICES[0]], new[MATRICES[1]])
    if shards == "100KB":
        index = json.loads((tmp_path / "target" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == new.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in new.values())
    grown, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "target", output_loading_info=True)
    assert not any(notes.values())
    assert torch.equal(grown.lm_head.weight, new[MATRICES[0 if is_tied else 1]].float())


def test_tied_matrices_stored_twice_stay_the_same(tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, tie_word_embeddings=True)
    tensors = read_tensors(source)
    save_file(tensors | {MATRICES[1]: tensors[MATRICES[0]].clone()}, source / "model.safetensors", {"format": "pt"})
    assert run(source, expanded, tmp_path / "target", "--initialiser", "position_mean", "--noise", "0.1") == 0
    new = read_tensors(tmp_path / "target")
    assert torch.equal(new[MATRICES[0]], new[MATRICES[1]])
    assert len(new[MATRICES[0]]) > 512


def test_a_tied_model_has_no_output_rows_of_its_own(
    tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, tie_word_embeddings=True)
    assert run(source, expanded, tmp_path / "target", "--output_initialiser", "zero") == 2
    assert "--output_initialiser zero: this model's output matrix is its input matrix" in only_error(capsys)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("shards", ["5GB", "100KB"])
def test_the_same_tokenizer_gives_the_same_model(tmp_path: Path, tiny_tokenizer_dir: Path, shards: str) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, shards=shards)
    assert run(source, tiny_tokenizer_dir, tmp_path / "target") == 0
    old, new = read_tensors(source), read_tensors(tmp_path / "target")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    manifest = json.loads((tmp_path / "target" / "manifest.json").read_text())
    assert (manifest["rows_initialised"], manifest["identical_starting_rows"]) == (0, 0)


def test_byte_level_models_grow(tmp_path: Path, byte_level_tokenizer_dir: Path) -> None:
    source = make_model(tmp_path / "source", byte_level_tokenizer_dir, torch.float32, vocab_size=768)
    string = spell_bytes("世界龘")
    expanded = grow_byte_level(byte_level_tokenizer_dir, tmp_path / "expanded", [string])
    assert run(source, expanded, tmp_path / "target", "--noise", "0") == 0
    old, new = read_tensors(source), read_tensors(tmp_path / "target")
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer.encode("世界龘", add_special_tokens=False)
    for name in MATRICES:
        assert torch.equal(new[name][:703], old[name][:703])
        grown = new[name][AutoTokenizer.from_pretrained(expanded).convert_tokens_to_ids(string)]
        torch.testing.assert_close(grown, old[name][ids].mean(0))


def test_a_missing_shard_is_refused(
    tmp_path: Path, tiny_tokenizer_dir: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model(tmp_path / "source", tiny_tokenizer_dir, torch.float32, "200KB")
    next(source.glob("model-00002*")).unlink()
    assert run(source, expanded, tmp_path / "target") == 2
    assert "no such file, but model.safetensors.index.json names it (1 of" in only_error(capsys)
    assert not (tmp_path / "target").exists()


def replace_tensors(source: Path, **tensors: torch.Tensor) -> None:
    """Change or add tensors, `__` for a dot."""
    changed = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(read_tensors(source) | changed, source / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (
            {"lm_head__weight": torch.zeros(600, 64)},
            {"vocab_size": 512},
            "config.json says vocab_size 512, but lm_head.weight has the shape [600, 64]; fetch both from the same",
        ),
        (
            {"lm_head__weight": torch.zeros(512, 32)},
            {},
            "config.json says hidden_size 64, but lm_head.weight has the shape [512, 32]",
        ),
        ({}, {"vocab_size": 513}, "config.json says vocab_size 513, but model.embed_tokens.weight has the shape [512"),
        ({}, {"hidden_size": 128}, "config.json says hidden_size 128, but model.embed_tokens.weight has the shape [5"),
        ({"lm_head__weight": torch.zeros(512)}, {}, "lm_head.weight is a F32 tensor of the shape [512], no matrix of"),
        (
            {"model__embed_tokens__weight": torch.zeros(512, 64, dtype=torch.int8)},
            {},
            "model.embed_tokens.weight is a I8 tensor of the shape [512, 64], no matrix of F64, F32, F16, BF16; quant",
        ),
        (
            {"lm_head__weight": torch.zeros(600, 64)},
            {"vocab_size": None},
            "lm_head.weight has the shape [600, 64], but model.embed_tokens.weight [512, 64]; fetch the model again",
        ),
    ],
)
def test_tensors_of_the_wrong_shape_are_refused(
    source: Path,
    tmp_path: Path,
    expanded: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace_tensors(source, **tensors)
    settings = json.loads((source / "config.json").read_text()) | config
    settings = {key: value for key, value in settings.items() if value is not None}
    (source / "config.json").write_text(json.dumps(settings))
    assert run(source, expanded, tmp_path / "target") == 2
    assert message in only_error(capsys)
    assert not (tmp_path / "target").exists()


def test_a_model_without_its_output_matrix_is_refused(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read_tensors(source)
    del tensors["lm_head.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert run(source, expanded, tmp_path / "target") == 2
    assert "has no tensor lm_head.weight, and its config.json does not tie the output to the inpu" in only_error(capsys)


def test_a_full_disk_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=150_000))
    assert run(source, expanded, tmp_path / "target") == 2
    assert "GB, 0.00015 GB are free; free some or" in only_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_fills_up_leaves_nothing(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tokenizer_tools.weight_files.copy_bytes", fail)
    assert run(source, expanded, tmp_path / "target") == 2
    assert "no space left on this disk; free some or choose another one" in only_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_another_architecture_is_refused(
    source: Path, tmp_path: Path, expanded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        (["--source_model_and_tokenizer_path", "a", "--dtype", "float32"], "--dtype goes with --from_config only"),
        (["--source_model_and_tokenizer_path", "a", "--noise", "-1"], "--noise -1.0: must be 0 or more standard"),
        (["--source_model_and_tokenizer_path", "a", "--noise", "nan"], "--noise nan: must be 0 or more standard"),
        (["--source_model_and_tokenizer_path", "a", "--initialiser", "best"], "--initialiser"),
        (["--from_config", "b", "--seed", "1", "--initialiser", "zero"], "go with --source_model_and_tokenizer_path"),
        (["--from_config", "b", "--seed", "1", "--output_initialiser", "zero"], "every row is random"),
        (["--from_config", "b", "--seed", "1", "--noise", "0"], "every row is random"),
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
        ({"model_type": "llama", "torch_dtype": "int8"}, "gives no model"),
        ({"model_type": "llama", "torch_dtype": 16}, "gives no model"),
        ({"model_type": "t5"}, "gives no model"),
        ({"model_type": "llama", "hidden_size": "many"}, "gives no model"),
        ({"model_type": "llama", "hidden_size": -64}, "gives no model"),
        ({"model_type": "llama", "num_attention_heads": 0}, "gives no model"),
        ({"model_type": ["llama"]}, "gives no model"),
    ],
)
def test_a_bad_config_is_refused(
    tmp_path: Path, tiny_tokenizer_dir: Path, config: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert start(tiny_tokenizer_dir, tmp_path / "new", tmp_path / "config.json", "--seed", "1") == 2
    assert message in only_error(capsys)
    assert not (tmp_path / "new").exists()
