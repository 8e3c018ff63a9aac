"""From pieces to an export every seam is checked: a file that was swapped, edited or reordered is named and refused."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama import input_hashes, lineage, made_from
from colossal_llama.input_hashes import FileState, one_digest_a_file, read_hashed, share_out
from colossal_llama.lineage import content_sha256
from colossal_llama.made_from import changed_data
from tests.colossal_llama.runs import free_ports, outcome, stopped_copy
from tests.colossal_llama.test_refusals import check_refused
from tests.conftest import TINY_MODEL_CONFIG, argv_of
from tokenizer_tools import init_model
from tokenizer_tools.command import UserError

Ranks = Callable[..., list[Any]]
ARROW = "data-00000-of-00001.arrow"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip_a_byte(path: Path, place: int = -1) -> str:
    """Change a file in place without a trace in its size; its new sha256."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    return sha256(path)


def state(number: int, size: int) -> FileState:
    return FileState(f"/data/{number}", size, number, number, number)


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), max_size=12), min_size=1, max_size=5))
def test_each_file_is_hashed_once_by_a_rank_that_sees_it(seen: list[list[tuple[int, int]]]) -> None:
    states = [[state(number, size) for number, size in files] for files in seen]
    known = {one: "known" for files in states for one in files if one.inode == 3}
    shares = share_out(states, known)
    counts = Counter(one for share in shares for one in share)
    assert counts == Counter({one for files in states for one in files} - known.keys())
    assert all(set(share) <= set(files) for share, files in zip(shares, states, strict=True))


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 4))
def test_the_bytes_of_a_shared_disk_are_shared_out_evenly(sizes: list[int], num_ranks: int) -> None:
    files = [state(number, size) for number, size in enumerate(sizes)]
    loads = [sum(one.size_bytes for one in share) for share in share_out([files] * num_ranks, {})]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def hash_on_each_rank(paths: list[Path], disk_of_its_own: bool) -> tuple[list[str], list[str]]:
    """Every path's sha256 in order, and the names of the files that this rank has read."""
    from colossal_llama.cluster import launch

    read: list[str] = []
    look, hash_files = input_hashes.file_state, input_hashes.hash_files

    def noted(files: list[Path], *more: Any, **settings: Any) -> list[str]:
        read.extend(path.name for path in files)
        return hash_files(files, *more, **settings)

    def on_own_disk(path: Path) -> FileState:
        found = look(path)
        return FileState(found.path, found.size_bytes, found.mtime_ns, found.ctime_ns, int(os.environ["RANK"]))

    input_hashes.hash_files = noted
    if disk_of_its_own:
        input_hashes.file_state = on_own_disk
    with launch(0):
        hashed = input_hashes.hash_together(paths, {look(paths[0]): "known"})
    digests = one_digest_a_file(hashed, {})
    return [digests[path] for path in paths], read


@pytest.mark.parametrize("disk_of_its_own", [False, True])
def test_ranks_share_the_files_out_host_by_host(ranks: Ranks, tmp_path: Path, disk_of_its_own: bool) -> None:
    paths = [tmp_path / str(size) for size in (5, 4000, 3000, 2000)]
    for path in paths:
        path.write_bytes(os.urandom(int(path.name)))
    results = ranks(hash_on_each_rank, 2, paths, disk_of_its_own)
    expected = [sha256(path) for path in paths]
    if disk_of_its_own:
        assert [digests for digests, _ in results] == [expected] * 2
        assert [sorted(read) for _, read in results] == [["2000", "3000", "4000", "5"]] * 2
    else:
        assert [digests for digests, _ in results] == [["known", *expected[1:]]] * 2
        assert [read for _, read in results] == [["4000"], ["3000", "2000"]]


def test_two_files_under_one_path_are_named() -> None:
    one, other = (FileState("/data/x", 1, 1, 1, inode) for inode in (1, 2))
    words = r"/data/x: is not the same file on all hosts \(sha256 abab\w* on h0 and cdcd\w* on h7\)"
    with pytest.raises(UserError, match=words):
        one_digest_a_file({one: "ab" * 32, other: "cd" * 32}, {one: "h0", other: "h7"})


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ("ab", "ba", "the same buckets, but in another order than the run began with"),
        ("ab", "ax", "part-1 has sha256 x.*, but the run began with part-1 of b"),
        ("abc", "ab", "2 buckets, but the run began with 3"),
        ("ab", "abc", "3 buckets, but the run began with 2"),
    ],
)
def test_the_first_difference_of_data_in_words(before: str, now: str, words: str) -> None:
    first, second = ([(f"part-{i}", digest * 64) for i, digest in enumerate(text)] for text in (before, now))
    with pytest.raises(UserError, match=words):
        raise UserError(changed_data(first, second))


def test_a_broken_note_of_hashes_says_nothing(tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"files": [{"path": 1}]}', '{"files": 7}'):
        (tmp_path / "hashed_files.json").write_text(content)
        assert read_hashed(tmp_path) == {}


@pytest.fixture(scope="module")
def other_model_dir(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes of the tiny model, other weights."""
    directory = tmp_path_factory.mktemp("other_model")
    (directory / "config.json").write_text(json.dumps(TINY_MODEL_CONFIG))
    argv = argv_of(
        from_config=directory / "config.json",
        target_tokenizer_path=tiny_tokenizer_dir,
        target_model_path=directory / "model",
        seed=8,
        dtype="float32",
    )
    assert init_model.main(argv) == 0
    return directory / "model"


def test_a_swapped_input_is_named_before_anything_is_written(
    ranks: Ranks, flags: dict[str, Any], tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    def copies(name: str) -> tuple[Path, Path]:
        return shutil.copytree(tiny_model_dir, tmp_path / name / "model"), shutil.copytree(
            tiny_bins_dir, tmp_path / name / "bins"
        )

    cases: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name, file in {"weights": "model.safetensors", "config": "generation_config.json"}.items():
        model, _ = copies(name)
        found = flip_a_byte(model / file, place=-2)
        cases[name] = ({"pretrained": model}, [str(model / file), found[:16], sha256(tiny_model_dir / file)[:16]])
    model, _ = copies("tokenizer")
    settings = model / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"add_bos_token": False}))
    cases["tokenizer"] = ({"pretrained": model}, [str(settings), sha256(settings)[:16], "swapped or edited"])
    _, bins = copies("bins")
    found = flip_a_byte(bins / "part-00001" / ARROW, place=2000)
    recorded = json.loads((bins / "manifest.json").read_text())["buckets"][1]["sha256"]
    words = [str(bins / "part-00001" / ARROW), found[:16], recorded[:16], "it was replaced or edited"]
    cases["bins"] = ({"dataset": bins}, words)
    cases["evaluation"] = ({"eval_dataset": f"zh={bins}"}, words)
    _, swapped = copies("swapped")
    (swapped / "part-00000").rename(swapped / "x")
    (swapped / "part-00001").rename(swapped / "part-00000")
    (swapped / "x").rename(swapped / "part-00001")
    cases["reordered"] = ({"dataset": swapped}, [str(swapped / "part-00000" / ARROW), "replaced or edited"])
    weights, _ = copies("start")
    flip_a_byte(weights / "model.safetensors")
    cases["weights to start from"] = ({"load_checkpoint": weights}, [str(weights / "model.safetensors")])
    check_refused(ranks, 2, {**flags, "save_dir": tmp_path / "run"}, cases)
    assert not (tmp_path / "run").exists()


def train_noting_what_is_hashed(argv: list[str], port: int) -> tuple[int, str, list[str]]:
    """train.py in this process: exit code, error line, the names of the input files that were read."""
    os.environ["MASTER_PORT"] = str(port)
    read: list[str] = []
    hash_files = input_hashes.hash_files

    def noted(files: list[Path], *more: Any, **settings: Any) -> list[str]:
        read.extend("/".join(path.parts[-2:]) for path in files)
        return hash_files(files, *more, **settings)

    input_hashes.hash_files = noted
    try:
        return *outcome(argv), read
    finally:
        input_hashes.hash_files = hash_files


def train_edit_and_train_again(argv: list[str], ports: list[int], edited: Path) -> list[tuple[int, str, list[str]]]:
    """A run, the same command again, and once more after an edit that leaves size and time of change as they were."""
    results = [train_noting_what_is_hashed(argv, port) for port in ports[:2]]
    before = edited.stat()
    flip_a_byte(edited, place=2000)
    os.utime(edited, ns=(before.st_atime_ns, before.st_mtime_ns))
    return [*results, train_noting_what_is_hashed(argv, ports[2])]


def test_a_resumed_run_reads_again_only_what_has_changed(
    ranks: Ranks, flags: dict[str, Any], tiny_bins_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    bins, save_dir = shutil.copytree(tiny_bins_dir, tmp_path / "bins"), tmp_path / "run"
    argv = argv_of(**{**flags, "dataset": bins, "save_dir": save_dir, "warmup_steps": 0, "max_steps": 1})
    edited = bins / "part-00001" / ARROW
    [(first, again, after_edit)] = ranks(train_edit_and_train_again, 1, argv, free_ports(3), edited)
    assert first[:2] == (0, "")
    files = {path.name for path in tiny_model_dir.iterdir() if path.name != "manifest.json"}
    assert set(first[2]) == {f"model/{name}" for name in files} | {f"part-0000{i}/{ARROW}" for i in (0, 1)}
    assert len(first[2]) == len(set(first[2]))
    assert again == (0, "", [])
    assert (first[0], after_edit[0], after_edit[2]) == (0, 2, [f"part-00001/{ARROW}"])
    assert f"{edited}: sha256 {sha256(edited)[:16]}, but" in after_edit[1]

    recorded = json.loads((save_dir / "lineage.json").read_text())
    assert recorded == json.loads((save_dir / "epoch-0_step-1" / "lineage.json").read_text())
    assert recorded["made_from"]["model"]["sha256"] == {name: sha256(tiny_model_dir / name) for name in files}
    digests = [entry["sha256"] for entry in json.loads((bins / "manifest.json").read_text())["buckets"]]
    assert list(recorded["made_from"]["data"][0]["sha256"].values()) == digests
    assert str(tmp_path) not in (save_dir / "lineage.json").read_text()


def test_a_run_goes_on_with_its_own_model_data_and_tokenizer_only(
    ranks: Ranks,
    zero2_run: Path,
    zero2_flags: dict[str, Any],
    tiny_bins_dir: Path,
    tiny_model_dir: Path,
    other_model_dir: Path,
    tmp_path: Path,
) -> None:
    copy = stopped_copy(zero2_run, tmp_path / "run", step=4)
    foreign = stopped_copy(zero2_run, tmp_path / "foreign", step=4)
    path = foreign / "epoch-0_step-4" / "lineage.json"
    own = json.loads(path.read_text())["made_from"]["tokenizer"]["tokenizer_fingerprint"]
    path.write_text(path.read_text().replace(own, own[::-1]))
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["sha256"]["lineage.json"] = sha256(path)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    parts = [tiny_bins_dir / "part-00000", tiny_bins_dir / "part-00001"]
    weights = [sha256(directory / "model.safetensors")[:16] for directory in (other_model_dir, tiny_model_dir)]
    cases = {
        "model": (
            {"pretrained": other_model_dir},
            [f"--pretrained {other_model_dir / 'model.safetensors'}: sha256 {weights[0]}", weights[1]],
        ),
        "one bucket": ({"dataset": parts[0]}, ["another --dataset: 1 buckets, but the run began with 2"]),
        "order": ({"dataset": parts[::-1]}, ["the same buckets, but in another order", "--restart_data"]),
        "tokenizer": (
            {"save_dir": foreign},
            [f"the tokenizer beside its weights is {own[:16]}, but the run began with {own[::-1][:16]}"],
        ),
    }
    check_refused(ranks, 1, {**zero2_flags, "micro_batch_size": 4, "save_dir": copy}, cases)


def train_each(argvs: list[list[str]], ports: list[int]) -> list[tuple[int, str]]:
    """One after another in this process; exit code and all that was said."""
    results = []
    for argv, port in zip(argvs, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        heard = io.StringIO()
        with contextlib.redirect_stderr(heard):
            import logging

            import train

            handler = logging.StreamHandler(heard)
            logging.getLogger("colossal_llama").addHandler(handler)
            code = train.main(argv)
            logging.getLogger("colossal_llama").removeHandler(handler)
        results.append((code, heard.getvalue()))
    return results


def test_other_data_where_asked_for_and_a_checkpoint_of_an_older_checkout(
    ranks: Ranks, zero2_run: Path, zero2_flags: dict[str, Any], tiny_bins_dir: Path, tmp_path: Path
) -> None:
    restarted = stopped_copy(zero2_run, tmp_path / "restarted", step=4)
    older = stopped_copy(zero2_run, tmp_path / "older", step=4)
    manifest = json.loads((older / "epoch-0_step-4" / "manifest.json").read_text())
    for entries in ("sizes_bytes", "sha256"):
        del manifest[entries]["lineage.json"]
    (older / "epoch-0_step-4" / "manifest.json").write_text(json.dumps(manifest))
    (older / "epoch-0_step-4" / "lineage.json").unlink()
    own = {**zero2_flags, "micro_batch_size": 4, "max_steps": 5}
    argvs = [
        argv_of(**{**own, "save_dir": restarted, "dataset": tiny_bins_dir / "part-00000", "restart_data": True}),
        argv_of(**{**own, "save_dir": older}),
    ]
    [[(code, said), (older_code, older_said)]] = ranks(train_each, 1, argvs, free_ports(2))
    assert code == 0, said
    before = json.loads((zero2_run / "lineage.json").read_text())["made_from"]["data"]
    now = json.loads((restarted / "lineage.json").read_text())["made_from"]
    assert now["earlier_data"] == before
    assert list(now["data"][0]["sha256"]) == [f"part-00000/{ARROW}"]
    assert older_code == 0, older_said
    assert "has no lineage.json, so whether it was trained from the present --pretrained and --dataset" in older_said
    assert json.loads((older / "lineage.json").read_text()) == json.loads((zero2_run / "lineage.json").read_text())


def show(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output and `error:` line of the command."""
    capsys.readouterr()
    code = lineage.main([str(word) for word in words])
    heard = capsys.readouterr()
    errors = [line for line in heard.err.splitlines() if line.startswith("error:")]
    return code, heard.out, "".join(errors)


def test_the_command_prints_a_whole_chain(
    capsys: pytest.CaptureFixture[str], zero2_run: Path, tiny_model_dir: Path, tiny_bins_dir: Path
) -> None:
    tokenizer = hashlib.sha256()
    for name in ("special_tokens_map.json", "tokenizer.model", "tokenizer_config.json"):
        tokenizer.update(f"{sha256(tiny_model_dir / name)}  {name}\n".encode())
    for path in (zero2_run, zero2_run / "epoch-0_step-4", zero2_run / "epoch-0_step-4" / "modeling"):
        code, out, _ = show(capsys, path, "--inputs", tiny_model_dir, tiny_bins_dir, tiny_bins_dir / "part-00001")
        assert code == 0
        roles = [line.split()[0] for line in out.splitlines()]
        assert roles[0] == path.name
        assert {"run", "model", "tokenizer", "config", "data"} <= set(roles)
        assert tokenizer.hexdigest()[:12] in out
    code, out, _ = show(capsys, tiny_bins_dir, "--json")
    document = json.loads(out)
    assert (code, document["is_whole"], document["chain"]["kind"]) == (0, True, "bins")


def test_the_command_names_the_first_broken_seam(
    capsys: pytest.CaptureFixture[str],
    zero2_run: Path,
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    other_model_dir: Path,
    tmp_path: Path,
) -> None:
    run = shutil.copytree(zero2_run, tmp_path / "run")
    flip_a_byte(run / "epoch-0_step-8" / "lr_scheduler")
    code, out, error = show(capsys, run)
    assert (code, out) == (2, "")
    assert "lr_scheduler: not the file that was saved (sha256)" in error

    bins = shutil.copytree(tiny_bins_dir, tmp_path / "bins")
    flip_a_byte(bins / "part-00000" / ARROW, place=2000)
    assert f"{bins / 'part-00000' / ARROW}: sha256" in show(capsys, bins)[2]

    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["made_from"]["tokenizer"]["tokenizer_fingerprint"] = "f00d" * 16
    (model / "manifest.json").write_text(json.dumps(manifest))
    own = manifest["tokenizer_fingerprint"][:16]
    assert f"model: belongs to tokenizer {own}, but was made with f00df00df00df00d" in show(capsys, model)[2]

    code, _, error = show(capsys, zero2_run, "--inputs", other_model_dir)
    weights = [sha256(directory / "model.safetensors")[:16] for directory in (other_model_dir, tiny_model_dir)]
    assert code == 2
    assert f"{other_model_dir / 'model.safetensors'}: sha256 {weights[0]}, but {zero2_run} was made from" in error
    assert weights[1] in error
    (tmp_path / "pieces.jsonl").write_text("{}")
    assert "was made from no such file" in show(capsys, tiny_model_dir, "--inputs", tmp_path / "pieces.jsonl")[2]


def test_what_is_no_link_of_a_chain_is_refused(
    capsys: pytest.CaptureFixture[str], zero2_run: Path, tmp_path: Path
) -> None:
    assert "holds no tokenizer, model, dataset, run or checkpoint" in show(capsys, tmp_path)[2]
    assert "no such directory; name a tokenizer, model" in show(capsys, tmp_path / "nothing")[2]
    assert "no such file; name the input" in show(capsys, zero2_run, "--inputs", tmp_path / "nothing")[2]
    (tmp_path / "latest").write_text("")
    assert "a run without a complete checkpoint, so nothing can be verified yet" in show(capsys, tmp_path)[2]
    older = shutil.copytree(zero2_run / "epoch-0_step-8", tmp_path / "older")
    manifest = json.loads((older / "manifest.json").read_text())
    for entries in ("sizes_bytes", "sha256"):
        del manifest[entries]["lineage.json"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    (older / "lineage.json").unlink()
    assert "an older checkpoint without lineage.json; its files are intact" in show(capsys, older)[2]


def test_the_content_of_one_file_is_its_own_hash() -> None:
    assert content_sha256({"sha256": {"pieces.jsonl": "ab" * 32}}) == "ab" * 32
    assert content_sha256({}) == ""


def test_the_lineage_of_another_version_is_refused(tmp_path: Path) -> None:
    for content, version in (("{}", "None"), ('{"version": 2}', "2")):
        (tmp_path / "lineage.json").write_text(content)
        with pytest.raises(UserError, match=rf"lineage.json: version {version}, this checkout reads 1; take the"):
            made_from.read_run(tmp_path)
