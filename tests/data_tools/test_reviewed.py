"""What an independent review broke, each as it was found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from data_tools import bucket_writer, buckets, intake, prepare_pretrain_dataset, work
from data_tools.manifest import read_manifest
from data_tools.parts import digest_of
from data_tools.work import root_of
from tests.data_tools.conftest import Documents, Prepare, Run, write_documents
from tests.data_tools.test_prepare_pretrain_dataset import written_sequences
from tests.data_tools.test_resume import files_of, interrupted, messages

SCRIPT = Path(prepare_pretrain_dataset.__file__)


def processes_of(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for name in (path.name for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_and_the_same_command_goes_on(
    tmp_path: Path, documents: Documents, tiny_tokenizer_dir: Path, number: signal.Signals
) -> None:
    for index in range(24):
        many = [{"target": f"{index} {n} " + "which river runs " * 3000} for n in range(30)]
        write_documents(tmp_path / "corpus" / f"{index:02d}.jsonl", many)
    words = ["--data_input_dirs", tmp_path / "corpus", "--tokenizer_dir", tiny_tokenizer_dir, "--num_workers", 2]
    words += ["--data_arrow_output_dir", tmp_path / "out", "--data_cache_dir", tmp_path / "cache"]
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list((tmp_path / "cache").glob("*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(processes_of(process.pid)) == 3
    os.kill(process.pid, number)  # the parent alone
    _, errors = process.communicate(timeout=100)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    while processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes_of(process.pid)
    assert not list((tmp_path / "cache").glob(".*.partial")) or number == signal.SIGKILL
    assert subprocess.run(command, capture_output=True, timeout=100).returncode == 0
    assert read_manifest(tmp_path / "out")["records"]["kept"] == 24 * 30


def test_a_document_larger_than_what_is_in_memory_at_a_time(prepare: Prepare, tmp_path: Path) -> None:
    write_documents(tmp_path / "large" / "x.jsonl", [{"target": "river " * 3000}, {"target": "first"}, {"target": "b"}])
    with mock.patch("data_tools.bucket_writer.SHARD_TOKENS", 1000):
        directory = prepare(data_input_dirs=tmp_path / "large", num_spliced_dataset_bins=1)
    assert read_manifest(directory)["records"]["placed"] == 3
    assert (
        sum(len(ids) * n for (_, ids, _), n in written_sequences(directory).items())
        == read_manifest(directory)["tokens"]["in"]
    )
    assert [(s.start, s.stop) for s in buckets.shards(np.array([9_000_000, 5]), 2**23)] == [(0, 2)]


def test_a_finished_output_does_not_cost_a_live_run_its_work(tmp_path: Path, run: Run) -> None:
    assert run() == 0
    answers: list[int] = []

    def build(*args: Any, **kwargs: Any) -> Any:
        if not answers:
            answers.append(run())
        return real(*args, **kwargs)

    from data_tools import engine

    real = engine.build_manifest
    with mock.patch.object(engine, "build_manifest", build):
        assert run(overwrite=True, max_length=64) == 0
    assert answers == [0]
    assert read_manifest(tmp_path / "out")["max_length"] == 64


def test_readable_rows_are_made_when_they_are_not_there(
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readable = tmp_path / "readable"
    assert run() == 0
    assert run(data_jsonl_output_dir=readable) == 0
    assert sorted(path.name for path in readable.glob("*.jsonl")) == [f"part-0000{i}.jsonl" for i in range(3)]
    before = files_of(readable)
    assert run(data_jsonl_output_dir=readable) == 0
    assert files_of(readable) == before
    assert run("other", max_length=64, data_jsonl_output_dir=readable) == 2
    assert "exists and is not empty" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_finished_output_that_is_damaged_is_not_called_finished(
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    assert run() == 0
    (path,) = (tmp_path / "out" / "part-00001").glob("data-*.arrow")
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert run() == 2
    assert "out/part-00001: missing or damaged; add --overwrite" in capsys.readouterr().err.splitlines()[-1]
    assert run(overwrite=True) == 0


def test_a_file_that_changes_while_it_is_read_is_not_taken_for_what_it_was(
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "corpus" / "a.jsonl"
    text = path.read_text()

    def digest_and_change(span: Any) -> str:
        found = digest_of(span)
        path.write_text(text.replace("river", "RIVER"))
        return found

    with mock.patch.object(intake, "digest_of", digest_and_change):
        assert run(data_cache_dir=tmp_path / "cache") == 2
    assert f"{path}: changed while it was read; run the same command again" in capsys.readouterr().err
    path.write_text(text)
    assert run(data_cache_dir=tmp_path / "cache") == 0
    assert run("whole") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["between", "behind"])
def test_killed_while_one_output_takes_the_place_of_another(tmp_path: Path, run: Run, moment: str) -> None:
    assert run() == 0
    old = files_of(tmp_path / "out")
    assert interrupted(run, overwrite=True, max_length=64) == 130
    replaced = root_of(tmp_path / "out") / "bins.old"
    if moment == "between":
        (tmp_path / "out").rename(replaced)
    else:
        replaced.mkdir()
        (replaced / "x").touch()
    with mock.patch.object(work, "finish_tree", side_effect=KeyboardInterrupt):
        assert run(overwrite=True, max_length=64) == 130
    assert files_of(tmp_path / "out") == old
    assert run(overwrite=True, max_length=64) == 0
    assert read_manifest(tmp_path / "out")["max_length"] == 64


def test_a_file_name_need_not_be_unicode(prepare: Prepare, tmp_path: Path, documents: Documents) -> None:
    write_documents(tmp_path / "names" / os.fsdecode(b"\xff.jsonl"), [*documents[:5], {"target": ""}])
    directory = prepare(data_input_dirs=tmp_path / "names")
    (refused,) = (json.loads(line) for line in (directory / "refused.jsonl").read_text().splitlines())
    assert refused["file"].endswith("names/\\udcff.jsonl")
    assert next(iter(json.loads((directory / "inputs.json").read_text())["files"])).endswith("names/\\udcff.jsonl")


def test_a_cache_among_the_text_is_refused(
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for place in (tmp_path / "corpus", tmp_path / "corpus" / "cache"):
        assert run(data_cache_dir=place) == 2
        assert "and would be read as text; choose another place" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "corpus" / "cache").exists()


def test_what_is_cut_off_counts_for_the_balance(prepare: Prepare, tmp_path: Path) -> None:
    """Every second document has a source that leaves little or no room for its target."""
    long, short = "which river " * 40, "which "
    many = [{"source": long if n % 2 else short, "target": f"{n} " + "runs " * (n % 50)} for n in range(400)]
    write_documents(tmp_path / "sources" / "x.jsonl", many)
    flags = {"long_documents": "truncate", "max_length": 128, "num_spliced_dataset_bins": 5}
    manifest = read_manifest(prepare(data_input_dirs=tmp_path / "sources", **flags))
    loads = [bucket["loss_tokens"] for bucket in manifest["buckets"]]
    assert max(loads) - min(loads) <= 0.02 * np.mean(loads)
    assert manifest["tokens"]["dropped"]["no_loss_left"] > 0
    assert manifest["records"]["placed"] == 200


def test_few_documents_are_balanced_as_well_as_exchanges_can() -> None:
    weights = np.array([3000, 3000, 2000, 2000, 2000])
    bins, loads = buckets.balanced_bins(weights, 2)
    assert loads.tolist() == np.bincount(bins, weights).tolist() == [6000, 6000]
    draw = np.random.default_rng(0)
    off = 0
    for _ in range(20):
        weights = np.exp(draw.normal(6, 1, 60)).astype(np.int64) + 1
        bins, loads = buckets.balanced_bins(weights, 10)
        assert loads.tolist() == np.bincount(bins, weights, minlength=10).tolist()
        equal_share = weights.sum() / 10
        off += loads.max() > 1.02 * max(equal_share, weights.max())
    assert off <= 2


@pytest.mark.parametrize("flags", [{"max_length": 8, "long_documents": "drop"}, {"mixture": "MIXTURE"}])
def test_an_output_without_a_document_is_refused(
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    flags: dict[str, Any],
) -> None:
    mixture = tmp_path / "none.json"
    mixture.write_text(json.dumps({name: {"max_bytes": 1} for name in ("en", "poetry", "zh")}))
    write_documents(tmp_path / "corpus" / "a.jsonl", [{"target": "a longer text than eight tokens", "category": "en"}])
    (tmp_path / "corpus" / "b.jsonl").unlink()
    if "mixture" in flags:
        mixture.write_text('{"en": {"max_bytes": 1}}')
        flags = {"mixture": mixture}
    assert run(**flags) == 2
    assert "no document is left for the bins" in capsys.readouterr().err.splitlines()[-1]


def test_a_category_that_is_wished_for_and_not_placed_is_named(
    tmp_path: Path,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "mixture.json").write_text('{"en": {"max_bytes": 1}}')
    assert run(mixture=tmp_path / "mixture.json") == 0
    assert "no document of 'en' is placed" in messages(caplog)


def test_a_weighted_category_that_cleaning_leaves_nothing_of_does_not_cost_the_others(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mixture.json").write_text(
        json.dumps({name: {"weight": 1} for name in ("en", "poetry", "short", "zh")})
    )
    with (tmp_path / "corpus" / "a.jsonl").open("a") as file:
        file.write('{"target": "tiny", "category": "short"}\n')
    assert run(mixture=tmp_path / "mixture.json", min_characters=6) == 0
    assert "nothing of 'short' is left to mix in" in messages(caplog)
    categories = read_manifest(tmp_path / "out")["categories"]
    num_bytes = [categories[name]["bytes"] for name in ("en", "poetry", "zh")]
    assert min(num_bytes) > 0.9 * max(num_bytes) > 0


def test_many_short_documents_are_not_in_memory_at_once(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "CHUNK_DOCUMENTS", 30)
    with mock.patch.object(intake, "write_chunk", wraps=intake.write_chunk) as written:
        directory = prepare()
    assert max(len(call.args[1].hash) for call in written.call_args_list) <= 30
    assert read_manifest(directory)["records"]["kept"] == 200


def test_what_cleaning_leaves_out_is_no_damage(prepare: Prepare) -> None:
    assert read_manifest(prepare(min_characters=60, max_refused=0))["records"]["refused"]["too_short"] > 10


def test_a_row_can_be_of_any_length(prepare: Prepare) -> None:
    assert [bucket["rows"] for bucket in read_manifest(prepare(max_length=10**12))["buckets"]] == [1] * 4


@pytest.mark.parametrize("content", ["{}", "", '{"record": {"key": 1}, "sha256": ""}', "CHANGED"])
def test_a_record_that_is_not_what_was_written_counts_as_none(tmp_path: Path, run: Run, content: str) -> None:
    assert interrupted(run) == 130
    path = sorted(root_of(tmp_path / "out").glob("parts/*/record.json"))[0]
    old = path.read_text()
    path.write_text(old.replace('"kept",\n        ', '"kept",\n        1') if content == "CHANGED" else content)
    assert path.read_text() != old
    (root_of(tmp_path / "out") / "parts" / "last_run.json").write_text("")
    assert run() == 0
    assert run("whole") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_of_buckets_that_are_written_together_only_the_missing_ones_are_written_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_writer, "SHARD_TOKENS", 2**23)
    assert interrupted(run) == 130
    with mock.patch.object(bucket_writer, "write_bin", wraps=bucket_writer.write_bin) as written:
        assert run() == 0
    assert [call.args[0].name for call in written.call_args_list] == ["part-00001", "part-00002"]
    assert run("whole") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_run_that_is_refused_the_cache_leaves_nothing(tmp_path: Path, run: Run) -> None:
    (tmp_path / "cache").write_text("a file")
    assert run(data_cache_dir=tmp_path / "cache") == 2
    assert not root_of(tmp_path / "out").exists()


def test_a_span_within_one_long_line_is_hashed_alone(tmp_path: Path) -> None:
    import hashlib

    from data_tools.input_files import Span

    path = tmp_path / "x.jsonl"
    path.write_bytes(b"a" * 100 + b"\n" + b"b" * 50)
    assert digest_of(Span(str(path), 10, 20)) == hashlib.sha256(b"a" * 10).hexdigest()
    assert digest_of(Span(str(path), 0, 20)) == hashlib.sha256(b"a" * 100 + b"\n").hexdigest()
    assert digest_of(Span(str(path), 95, 101)) == hashlib.sha256(b"a" * 5 + b"\n").hexdigest()
    assert digest_of(Span(str(path), 101, 110)) == hashlib.sha256(b"b" * 50).hexdigest()
