"""Manifests of tokenizers and models name what they were made from, and every file that was swapped since."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizer_tools.test_init_model import make_model
from tests.tokenizer_tools.test_init_model import run as grow
from tests.tokenizer_tools.test_init_tokenizer import change_settings, only_error, write_pieces
from tests.tokenizer_tools.test_init_tokenizer import run as expand
from tokenizer_tools import init_model, lineage
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import files_of, fingerprints_behind, hash_files, refuse_swapped, seal_model, sha256_of
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer

HUGE_BYTES = 2**40  # a file without blocks on the disk; reading it takes far longer than a test may
Directories = dict[str, Path]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())


def rewrite(directory: Path, manifest: dict[str, Any]) -> None:
    (directory / "manifest.json").write_text(json.dumps(manifest))


def make_chain(root: Path, tokenizer_dir: Path) -> Directories:
    """A source model, pieces, the expanded tokenizer and the grown model, all below `root`."""
    pieces = write_pieces(root / "pieces.jsonl", ["人工智能", "深度学习"])
    chain = {"source": make_model(root / "source", tokenizer_dir), "pieces": pieces}
    chain |= {"tokenizer": root / "tokenizer", "model": root / "model"}
    assert expand(tokenizer_dir, chain["tokenizer"], pieces) == 0
    assert grow(chain["source"], chain["tokenizer"], chain["model"]) == 0
    return chain


@pytest.fixture(scope="module")
def made(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Directories:
    return make_chain(tmp_path_factory.mktemp("made"), tiny_tokenizer_dir)


@pytest.fixture
def chain(made: Directories, tmp_path: Path) -> Directories:
    """The same in a copy that a test may change."""
    root = shutil.copytree(made["source"].parent, tmp_path / "chain")
    return {name: root / path.name for name, path in made.items()}


def test_hashes_are_those_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "BLOCK_BYTES", 64)
    paths = [tmp_path / str(size) for size in (0, 1, 63, 64, 65, 128, 1000)]
    for path in paths:
        path.write_bytes(os.urandom(int(path.name)))
    assert hash_files(paths, num_threads=3) == [sha256(path) for path in paths]


def huge_file(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)
    return path


@pytest.mark.timeout(60)
def test_one_unreadable_file_ends_the_hashing_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: Is a directory; every file that goes into a run"):
        hash_files([tmp_path / "folder", huge_file(tmp_path / "huge")], num_threads=2)


@pytest.mark.timeout(60)
def test_ctrl_c_ends_the_hashing(tmp_path: Path) -> None:
    paths = [huge_file(tmp_path / name) for name in ("one", "two", "three")]

    def press() -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        hash_files(paths, num_threads=2)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: No such file or directory; every file that goes into a run"):
        sha256_of(tmp_path / "nothing")


def test_manifests_name_what_was_made_of_what(made: Directories, tiny_tokenizer_dir: Path) -> None:
    tokenizer, model = manifest_of(made["tokenizer"]), manifest_of(made["model"])
    for directory, manifest in ((made["tokenizer"], tokenizer), (made["model"], model)):
        others = {"manifest.json", "tokenizer_report.md"}
        assert manifest["sha256"] == {p.name: sha256(p) for p in directory.iterdir() if p.name not in others}
        assert manifest["sizes_bytes"] == {name: (directory / name).stat().st_size for name in manifest["sha256"]}
    pieces = made["pieces"]
    assert tokenizer["made_from"]["pieces"]["sha256"] == {"pieces.jsonl": sha256(pieces)}
    assert tokenizer["made_from"]["pieces"]["sizes_bytes"] == {"pieces.jsonl": pieces.stat().st_size}
    source_tokenizer = tokenizer["made_from"]["source_tokenizer"]
    assert source_tokenizer["sha256"] == {path.name: sha256(path) for path in tiny_tokenizer_dir.iterdir()}
    assert source_tokenizer["tokenizer_fingerprint"] == fingerprint(load_tokenizer(tiny_tokenizer_dir))
    assert model["made_from"]["tokenizer"] == tokenizer
    source_model = model["made_from"]["source_model"]
    assert source_model["sha256"] == {path.name: sha256(path) for path in made["source"].iterdir()}
    assert source_model["kind"] == "plain model"


def test_the_chain_goes_on_through_a_grown_model_that_grows_again(chain: Directories, tmp_path: Path) -> None:
    pieces = write_pieces(tmp_path / "more.jsonl", ["机器学习"])
    assert expand(chain["tokenizer"], tmp_path / "second", pieces) == 0
    assert grow(chain["model"], tmp_path / "second", tmp_path / "grown") == 0
    first = manifest_of(chain["tokenizer"])
    made_from = manifest_of(tmp_path / "grown")["made_from"]
    assert made_from["tokenizer"]["made_from"]["source_tokenizer"]["sha256"] == first["sha256"]
    assert made_from["source_model"]["made_from"]["tokenizer"]["made_from"]["pieces"] == first["made_from"]["pieces"]
    assert "intermediates" in made_from["tokenizer"]
    assert "intermediates" not in made_from["source_model"]["made_from"]["tokenizer"], "what lies deeper is shortened"


def test_same_inputs_give_the_same_manifests_wherever_they_lie(
    made: Directories, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    again = make_chain(tmp_path / "elsewhere", tiny_tokenizer_dir)
    for name in ("tokenizer", "model"):
        first, second = ((chain[name] / "manifest.json").read_bytes() for chain in (made, again))
        assert first == second
        assert str(made["source"].parent).encode() not in first


def test_a_model_from_a_config_names_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = tiny_model_dir.parent / "config.json"
    manifest = manifest_of(tiny_model_dir)
    assert manifest["made_from"]["config"]["sha256"] == {"config.json": sha256(config)}
    assert manifest["made_from"]["tokenizer"]["kind"] == "plain tokenizer"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_swapped_tokenizer_is_named_by_every_command_that_reads_it(
    chain: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = chain["tokenizer"]
    before = sha256(tokenizer / "tokenizer_config.json")
    change_settings(tokenizer, model_max_length=7)
    now = sha256(tokenizer / "tokenizer_config.json")
    for read in (
        lambda: grow(chain["source"], tokenizer, tmp_path / "target"),
        lambda: expand(tokenizer, tmp_path / "target", chain["pieces"]),
    ):
        assert read() == 2
        error = only_error(capsys)
        named = f"{tokenizer / 'tokenizer_config.json'}: sha256 {now[:16]}, but"
        assert named in error
        assert f"{tokenizer / 'manifest.json'} says {before[:16]}: the file was swapped or edited" in error
        assert "put the right one back, or make the directory again (init_tokenizer --overwrite)" in error
        assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (flip_a_byte, "model.safetensors", "the file was swapped or edited; put the right one back"),
        (lambda path: path.write_text("{}"), "config.json", "the file was swapped or edited"),
        (lambda path: path.unlink(), "generation_config.json", "missing, but"),
        (lambda path: path.write_text("{{ x }}"), "chat_template.jinja", "names no such file; remove it"),
        (lambda path: path.write_bytes(b"x"), "model-00002-of-00002.safetensors", "names no such file; remove it"),
    ],
    ids=["weights", "config", "missing", "template", "shard"],
)
def test_a_swapped_file_of_a_model_is_named(
    chain: Directories, change: Callable[[Path], None], name: str, words: str
) -> None:
    path = chain["model"] / name
    change(path)
    with pytest.raises(UserError) as caught:
        refuse_swapped(chain["model"], "model")
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "or make the directory again (init_model --overwrite)" in str(caught.value)
    if path.is_file():
        assert f"sha256 {sha256(path)[:16]}, but" in str(caught.value)


def test_init_model_refuses_a_swapped_source(
    chain: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expand(chain["tokenizer"], tmp_path / "second", write_pieces(tmp_path / "more.jsonl", ["机器学习"])) == 0
    flip_a_byte(chain["model"] / "model.safetensors")
    assert grow(chain["model"], tmp_path / "second", tmp_path / "grown") == 2
    assert f"{chain['model'] / 'model.safetensors'}: sha256" in only_error(capsys)
    assert not (tmp_path / "grown").exists()


def test_weights_that_transformers_does_not_load_are_left_alone(chain: Directories) -> None:
    (chain["model"] / "pytorch_model.bin").write_bytes(b"an older model's")
    refuse_swapped(chain["model"], "model")
    assert "pytorch_model.bin" not in files_of(chain["model"], "model")
    (chain["source"] / "model.safetensors").unlink()
    (chain["source"] / "pytorch_model.bin").write_bytes(b"the only ones")
    assert "pytorch_model.bin" in files_of(chain["source"], "model")


def test_weights_beside_a_tokenizer_of_ours_are_hashed_all_the_same(made: Directories, tmp_path: Path) -> None:
    beside = make_model(tmp_path / "beside", made["tokenizer"], vocab_size=600)
    assert expand(made["tokenizer"], tmp_path / "next", write_pieces(tmp_path / "more.jsonl", ["机器学习"])) == 0
    assert grow(beside, tmp_path / "next", tmp_path / "grown") == 0
    record = manifest_of(tmp_path / "grown")["made_from"]["source_model"]
    assert record["kind"] == "plain model"
    assert record["sha256"]["model.safetensors"] == sha256(beside / "model.safetensors")
    assert record["made_from"]["tokenizer"]["sha256"] == manifest_of(made["tokenizer"])["sha256"]


def test_the_tokenizer_of_another_model_is_refused(
    chain: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the very pieces of the one that was expanded, at the same ids, but cuts text in another way."""
    change_settings(chain["source"], add_prefix_space=False)
    own = fingerprint(load_tokenizer(chain["source"]))
    expanded = manifest_of(chain["tokenizer"])["source_tokenizer_fingerprint"]
    assert own != expanded
    assert grow(chain["source"], chain["tokenizer"], tmp_path / "grown") == 2
    error = only_error(capsys)
    assert f"{chain['source']}: its tokenizer is {own[:16]}" in error
    assert f"was expanded from {expanded[:16]}; expand this model's own tokenizer with init_tokenizer" in error


def test_a_model_may_skip_a_step_of_the_expansion(made: Directories, tmp_path: Path) -> None:
    assert expand(made["tokenizer"], tmp_path / "second", write_pieces(tmp_path / "more.jsonl", ["机器学习"])) == 0
    assert len(fingerprints_behind(manifest_of(tmp_path / "second"))) == 3
    assert grow(made["source"], tmp_path / "second", tmp_path / "grown") == 0


def test_an_older_manifest_is_accepted_with_a_warning(
    chain: Directories, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = {key: value for key, value in manifest_of(chain["tokenizer"]).items() if key not in NEW_KEYS}
    rewrite(chain["tokenizer"], old | {"version": 1})
    assert grow(chain["source"], chain["tokenizer"], tmp_path / "grown") == 0
    assert "version 1, written by an older checkout, names no sha256" in caplog.text
    named = manifest_of(tmp_path / "grown")["made_from"]["tokenizer"]["sha256"]
    assert named == {name: sha256(chain["tokenizer"] / name) for name in files_of(chain["tokenizer"], "tokenizer")}


NEW_KEYS = ("sizes_bytes", "sha256", "made_from")


def test_another_tokenizer_beside_an_older_manifest_is_refused(
    chain: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {key: value for key, value in manifest_of(chain["tokenizer"]).items() if key not in NEW_KEYS}
    rewrite(chain["tokenizer"], old | {"version": 1, "tokenizer_fingerprint": "f00d" * 16})
    assert grow(chain["source"], chain["tokenizer"], tmp_path / "grown") == 2
    assert "but its manifest.json says f00df00df00df00d; put the tokenizer back" in only_error(capsys)


@pytest.mark.parametrize("version", [3, None, "2"])
def test_a_newer_manifest_is_refused(
    chain: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str], version: object
) -> None:
    rewrite(chain["tokenizer"], manifest_of(chain["tokenizer"]) | {"version": version})
    assert grow(chain["source"], chain["tokenizer"], tmp_path / "grown") == 2
    error = only_error(capsys)
    assert f"manifest.json: version {version!r}, this checkout reads up to 2; take the checkout that wrote it" in error


@pytest.mark.parametrize("content", [{"kind": "dataset", "version": 9}, {"name": "a web app"}])
def test_a_manifest_of_another_program_says_nothing(
    chain: Directories, tmp_path: Path, content: dict[str, Any]
) -> None:
    rewrite(chain["tokenizer"], content)
    assert grow(chain["source"], chain["tokenizer"], tmp_path / "grown") == 0
    assert manifest_of(tmp_path / "grown")["made_from"]["tokenizer"]["kind"] == "plain tokenizer"


def test_half_a_manifest_is_named(chain: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (chain["tokenizer"] / "manifest.json").write_text('{"kind": "tokeni')
    assert grow(chain["source"], chain["tokenizer"], tmp_path / "grown") == 2
    error = only_error(capsys)
    assert f"{chain['tokenizer'] / 'manifest.json'}: not valid JSON" in error
    assert "expected the manifest of init_tokenizer, init_model or export" in error


def test_a_folder_whose_parent_names_its_files_is_held_to_them(chain: Directories, tmp_path: Path) -> None:
    """As a checkpoint names those of `modeling/`."""
    modeling = shutil.copytree(chain["model"], tmp_path / "checkpoint" / "modeling")
    (modeling / "manifest.json").unlink()
    digests = {f"modeling/{name}": sha256(modeling / name) for name in files_of(modeling, "model")}
    rewrite(modeling.parent, {"version": 3, "sha256": digests | {"lr_scheduler": "0" * 64}})
    (modeling.parent / "lineage.json").write_text('{"kind": "run", "made_from": {}}')
    linked = tmp_path / "link"
    linked.symlink_to(modeling)
    for directory in (modeling, linked):
        record = lineage.input_record(directory, "model", "f" * 64)
        assert record["made_from"] == {"run": {"kind": "run", "made_from": {}}}
    flip_a_byte(modeling / "model.safetensors")
    with pytest.raises(UserError, match="export it or copy it anew"):
        refuse_swapped(modeling, "model")


def test_a_sealed_model_is_held_to_its_seal(chain: Directories, tmp_path: Path) -> None:
    (chain["source"] / "manifest.json").unlink(missing_ok=True)
    run = {"version": 1, "kind": "run", "made_from": {"data": []}}
    seal_model(chain["source"], run, "f" * 64)
    record = lineage.input_record(chain["source"], "model", "f" * 64)
    assert (record["kind"], record["made_from"]) == ("model", {"run": run})
    flip_a_byte(chain["source"] / "config.json")
    with pytest.raises(UserError, match=r"config.json: sha256 .* the file was swapped or edited"):
        refuse_swapped(chain["source"], "model")


def test_a_model_serves_as_the_tokenizer_it_was_grown_to(chain: Directories, tmp_path: Path) -> None:
    shutil.rmtree(chain["tokenizer"])
    settings = init_model.main(
        [
            *("--from_config", str(chain["source"] / "config.json"), "--seed", "1"),
            *("--target_tokenizer_path", str(chain["model"]), "--target_model_path", str(tmp_path / "new")),
        ]
    )
    assert settings == 0
    inside = manifest_of(chain["model"])["made_from"]["tokenizer"]
    assert manifest_of(tmp_path / "new")["made_from"]["tokenizer"] == inside
