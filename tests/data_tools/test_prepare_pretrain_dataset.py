"""The command as a user runs it: documents come back out of the rows, the same bytes each time, clear refusals."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from data_tools import prepare_pretrain_dataset
from data_tools.bins import open_bins
from data_tools.manifest import read_manifest
from tests.data_tools.conftest import Documents, Prepare, make_documents, write_documents
from tokenizer_tools.tokenizer import TextEncoder, fingerprint, load_tokenizer

CHECKOUT = Path(prepare_pretrain_dataset.__file__).parent.parent


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def expected_sequences(tokenizer_dir: Path, documents: Documents) -> Counter[tuple[Any, ...]]:
    """(category, ids, labels) of each document, by encoding one text at a time."""
    encoder = TextEncoder(load_tokenizer(tokenizer_dir))
    found: Counter[tuple[Any, ...]] = Counter()
    for document in documents:
        source = encoder.encode_batch([document["source"]])[0] if document["source"] else []
        target = encoder.encode_batch([document["target"]], continuation=bool(document["source"]))[0]
        ids = [1, *source, *target, 2]
        labels = [-100] * (1 + len(source)) + [*target, 2] if source else ids
        found[document["category"], tuple(ids), tuple(labels)] += 1
    return found


def written_sequences(directory: Path) -> Counter[tuple[Any, ...]]:
    """(category, ids, labels) of each document, put together from its pieces: full rows and one rest, in any order."""
    opened = open_bins([directory])
    found: Counter[tuple[Any, ...]] = Counter()
    for part in opened.bins:
        for index in range(part.num_rows):
            row, start = part.row(index), 0
            for length, category in zip(row.document_lengths, row.document_categories, strict=True):
                piece = slice(start, start + length)
                ids, labels = row.input_ids[piece].tolist(), row.labels[piece].tolist()
                found[opened.categories[category], tuple(ids), tuple(labels)] += 1
                start += length
            assert start == len(row.input_ids) <= opened.max_length
    return found


def cut(sequences: Counter[tuple[Any, ...]], max_length: int) -> Counter[tuple[Any, ...]]:
    """The pieces that long sequences are cut into."""
    pieces: Counter[tuple[Any, ...]] = Counter()
    for (category, ids, labels), count in sequences.items():
        for start in range(0, len(ids), max_length):
            pieces[category, ids[start : start + max_length], labels[start : start + max_length]] += count
    return pieces


@pytest.mark.parametrize(("max_length", "num_bins"), [(16384, 1), (128, 4), (32, 30)])
def test_every_document_is_in_the_rows_once(
    prepare: Prepare, documents: Documents, tiny_tokenizer_dir: Path, max_length: int, num_bins: int
) -> None:
    directory = prepare(max_length=max_length, num_spliced_dataset_bins=num_bins)
    expected = expected_sequences(tiny_tokenizer_dir, documents)
    assert written_sequences(directory) == cut(expected, max_length)
    manifest = read_manifest(directory)
    num_tokens = sum(len(ids) * count for (_, ids, _), count in expected.items())
    assert manifest["tokens"] == {"in": num_tokens, "in_bins": num_tokens, "dropped": {}}
    assert manifest["bytes"] == sum(len(document["target"].encode()) for document in documents)
    assert manifest["loss_tokens"] == sum(
        sum(label != -100 for label in labels) * count for (_, _, labels), count in expected.items()
    )


def test_the_manifest_describes_the_buckets(prepare: Prepare, tiny_tokenizer_dir: Path, documents: Documents) -> None:
    directory = prepare()
    manifest = read_manifest(directory)
    assert manifest["version"] == 1
    assert manifest["max_length"] == 128
    assert manifest["num_buckets"] == 4
    assert manifest["seed"] == 42
    assert manifest["files"] == {"read": 2, "skipped": {}}
    assert manifest["records"] == {"read": 200, "kept": 200, "refused": {}}
    assert manifest["tokenizer_fingerprint"] == fingerprint(load_tokenizer(tiny_tokenizer_dir))
    assert manifest["category_names"] == list(manifest["categories"]) == ["en", "poetry", "zh"]
    for name, entry in manifest["categories"].items():
        assert entry["records"]["read"] == sum(document["category"] == name for document in documents)
    num_rows = 0
    for bucket in manifest["buckets"]:
        loaded = datasets.load_from_disk(str(directory / bucket["path"]))
        num_rows += bucket["rows"]
        assert bucket["rows"] == len(loaded)
        assert bucket["tokens"] == sum(map(len, loaded["input_ids"]))
        assert bucket["loss_tokens"] == sum(label != -100 for labels in loaded["labels"] for label in labels)
        for key in ("documents", "tokens", "loss_tokens", "bytes"):
            assert bucket[key] == sum(entry[key] for entry in bucket["categories"].values())  # type: ignore[literal-required]
    assert manifest["fill"] == manifest["tokens"]["in"] / (num_rows * 128)


def test_same_bytes_for_any_names_order_and_split_of_the_input(
    prepare: Prepare, tmp_path: Path, corpus_dir: Path, documents: Documents
) -> None:
    shuffled = random.Random(1).sample(documents, len(documents))
    write_documents(tmp_path / "x" / "z.jsonl", shuffled[:50])
    write_documents(tmp_path / "x" / "a.jsonl", shuffled[50:120])
    write_documents(tmp_path / "y" / "a.jsonl", shuffled[120:])
    x, y = tmp_path / "x", tmp_path / "y"
    one = files_of(prepare("one"))
    assert len(one) == 2 + 4 * 3
    assert files_of(prepare("again")) == one
    xy, yx = files_of(prepare("xy", data_input_dirs=f"{x},{y}")), files_of(prepare("yx", data_input_dirs=f"{y},{x}"))
    assert xy == yx
    differing = {name for name in one if one[name] != xy[name]}
    assert differing == {"manifest.json"}  # which counts the files: 3 here, 2 there
    other_seed = files_of(prepare("other_seed", seed=7))
    assert all(other_seed[name] != one[name] for name in one if name.endswith(".arrow"))


def test_readable_rows_are_the_rows(prepare: Prepare, tmp_path: Path, documents: Documents) -> None:
    documents = [document for document in documents if len(document["target"]) < 100]
    write_documents(tmp_path / "short" / "x.jsonl", documents)
    flags = {"max_length": 512, "num_spliced_dataset_bins": 2, "data_jsonl_output_dir": tmp_path / "readable"}
    directory = prepare(data_input_dirs=tmp_path / "short", **flags)
    opened = open_bins([directory])
    texts = []
    for part in opened.bins:
        lines = (tmp_path / "readable" / f"{part.path.name}.jsonl").read_text().splitlines()
        assert len(lines) == part.num_rows > 1
        for index, line in enumerate(lines):
            readable, row = json.loads(line), part.row(index)
            assert readable["input_ids"] == row.input_ids.tolist()
            assert readable["labels"] == row.labels.tolist()
            assert [document["tokens"] for document in readable["documents"]] == row.document_lengths.tolist()
            texts += [(document["category"], document["text"]) for document in readable["documents"]]
    assert sorted(texts) == sorted((d["category"], f"<s> {d['source']}{d['target']}</s>") for d in documents)


def test_bad_lines_are_listed_and_everything_else_is_kept(
    prepare: Prepare, corpus_dir: Path, documents: Documents, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps({"target": "good", "category": "late"}).encode()
    bad = b'{"target": ""}\n\n' + good + b'\n{"target": "x", "category": "empty", "source": 1}\n' + good[:-9]
    (corpus_dir / "bad.jsonl").write_bytes(bad)
    (corpus_dir / "more.jsonl.gz").touch()
    directory = prepare()
    refused = [json.loads(line) for line in (directory / "refused.jsonl").read_text().splitlines()]
    assert [(line["line_number"], line["reason"], line["category"]) for line in refused] == [
        (1, "empty_target", "default"),
        (4, "source_not_a_string", "empty"),
        (5, "invalid_json", None),
    ]
    assert all(line["file"] == str(corpus_dir / "bad.jsonl") for line in refused)
    assert [bad[line["byte_offset"] :].split(b"\n")[0] for line in refused] == [bad.split(b"\n")[i] for i in (0, 3, 4)]
    manifest = read_manifest(directory)
    reasons = {"empty_target": 1, "invalid_json": 1, "source_not_a_string": 1}
    assert manifest["records"] == {"read": 204, "kept": 201, "refused": reasons}
    assert manifest["files"]["skipped"] == {".gz": 1}
    assert manifest["category_names"] == ["default", "empty", "en", "late", "poetry", "zh"]
    assert manifest["categories"]["empty"]["records"] == {"read": 1, "kept": 0, "refused": {"source_not_a_string": 1}}
    assert manifest["categories"]["empty"]["tokens"] == {"in": 0, "in_bins": 0, "dropped": {}}
    printed = capsys.readouterr()
    assert "201" in printed.out
    assert "empty" in printed.out


def test_fewer_documents_than_bins(prepare: Prepare, tmp_path: Path) -> None:
    write_documents(tmp_path / "few" / "x.jsonl", make_documents(3))
    directory = prepare(data_input_dirs=tmp_path / "few", num_spliced_dataset_bins=10, max_length=16384)
    assert [bucket["rows"] for bucket in read_manifest(directory)["buckets"]] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    loaded = [datasets.load_from_disk(str(directory / f"part-{index:05d}")) for index in range(10)]
    assert len(datasets.concatenate_datasets(loaded)) == 3


def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, **flags: Any) -> str:
    """Run the command; it must end with code 2, one line, and leave nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    assert prepare_pretrain_dataset.main(words) == 2
    assert sorted(tmp_path.rglob("*")) == before
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("error: ")
    return last_line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_length": 7}, "--max_length 7: a row holds at least 8 tokens"),
        ({"num_spliced_dataset_bins": 0}, "--num_spliced_dataset_bins 0: choose 1 to 100000"),
        ({"num_spliced_dataset_bins": 100001}, "--num_spliced_dataset_bins 100001: choose 1 to 100000"),
        ({"seed": -1}, "--seed -1: a seed is not negative"),
        ({"data_input_dirs": ","}, "--data_input_dirs names no directory"),
        ({"data_input_dirs": "CORPUS,absent"}, "--data_input_dirs absent: no such directory"),
        ({"data_input_dirs": "TMP/empty"}, "no .jsonl file (no file at all)"),
        ({"data_input_dirs": "TMP/packed"}, "no .jsonl file (only 1 .gz)"),
        (
            {"data_input_dirs": "TMP/bad"},
            "no document (1 files, refused 2 invalid_json, the first at TMP/bad/x.jsonl:1)",
        ),
        ({"data_input_dirs": "TMP/blank"}, "no document (1 files, all empty)"),
        ({"data_arrow_output_dir": "CORPUS/out"}, "this output directory lies in CORPUS"),
        ({"data_arrow_output_dir": "TMP"}, "this output directory would replace CORPUS"),
        ({"data_arrow_output_dir": "TOKENIZER"}, "this output directory would replace TOKENIZER"),
        ({"data_jsonl_output_dir": "TMP/out/jsonl"}, "would replace TMP/out/jsonl"),
        ({"data_arrow_output_dir": "TMP/packed"}, "exists and is not empty; add --overwrite"),
        ({"data_jsonl_output_dir": "TMP/packed"}, "exists and is not empty; add --overwrite"),
        ({"tokenizer_dir": "TMP/absent"}, "absent: no such directory; name a tokenizer directory"),
    ],
)
def test_each_fault_of_the_user_is_named_in_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    corpus_dir: Path,
    tiny_tokenizer_dir: Path,
    flags: dict[str, Any],
    message: str,
) -> None:
    for name, content in {"packed/x.jsonl.gz": "x", "bad/x.jsonl": "no\njson\n", "blank/x.jsonl": "\n\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    (tmp_path / "empty").mkdir()

    def real(text: Any) -> str:
        names = {"CORPUS": corpus_dir, "TMP": tmp_path, "TOKENIZER": tiny_tokenizer_dir}
        for name, path in names.items():
            text = str(text).replace(name, str(path))
        return str(text)

    defaults = {"data_input_dirs": "CORPUS", "tokenizer_dir": "TOKENIZER", "data_arrow_output_dir": "TMP/out"}
    assert real(message) in fails(capsys, tmp_path, **{name: real(v) for name, v in (defaults | flags).items()})


def test_overwrite_replaces_the_output(prepare: Prepare, tmp_path: Path) -> None:
    directory = prepare(num_spliced_dataset_bins=3)
    prepare(num_spliced_dataset_bins=2, overwrite=True)
    assert len(read_manifest(directory)["buckets"]) == 2
    assert not (directory / "part-00002").exists()


def open_for_writing(pipe: Path) -> int:
    """The descriptor of a named pipe, as soon as somebody reads from it."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"nobody reads {pipe}")


def test_interrupted_it_leaves_nothing_behind(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    """Ctrl-C while documents are read: the last file of the corpus is a pipe that stays silent."""
    write_documents(tmp_path / "corpus" / "a.jsonl", make_documents(50))
    os.mkfifo(tmp_path / "corpus" / "b.jsonl")
    flags = {"data_input_dirs": "corpus", "tokenizer_dir": tiny_tokenizer_dir, "data_arrow_output_dir": "out"}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    script = CHECKOUT / "data_tools" / "prepare_pretrain_dataset.py"
    process = subprocess.Popen([sys.executable, script, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    pipe = open_for_writing(tmp_path / "corpus" / "b.jsonl")
    assert list(tmp_path.glob(".out.*.partial/refused.jsonl"))
    process.send_signal(signal.SIGINT)
    os.close(pipe)  # the read ends only after the signal is there
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "error: interrupted; nothing half-written was left behind"
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from data_tools.prepare_pretrain_dataset import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'colossalai', 'rich', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--num_spliced_dataset_bins" in result.stdout


def test_a_scratch_file_of_its_own_directory_is_gone_at_the_end(prepare: Prepare, tmp_path: Path) -> None:
    prepare(data_cache_dir=tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []
    shutil.rmtree(tmp_path / "scratch")
