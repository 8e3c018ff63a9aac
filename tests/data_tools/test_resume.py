"""A killed run goes on: whatever the moment, the same command ends with the same bytes."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import xxhash

from data_tools import backends, bucket_writer, intake, parts, prepare_pretrain_dataset
from data_tools.work import root_of
from tests.data_tools.conftest import Run, make_documents, write_documents


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def killed_at(moment: int, run: Run, directory: Path, **flags: Any) -> bool:
    """Run in a forked child that is killed (SIGKILL) when it touches the disk below `directory` for the nth time."""
    child = os.fork()
    if child == 0:
        left = [moment]

        def count(event: str, args: tuple[Any, ...]) -> None:
            events = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.listdir")
            if event in events and str(args[0]).startswith(str(directory)):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        os._exit(run(**flags))
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(tmp_path: Path, run: Run) -> None:
    assert run("whole") == 0
    expected = files_of(tmp_path / "whole")
    num_killed = 0
    moment = 1
    while killed_at(moment, run, tmp_path, name=f"killed-{moment}"):
        num_killed += 1
        output = tmp_path / f"killed-{moment}"
        assert not output.exists() or files_of(output) == expected
        assert run(output.name) == 0
        assert files_of(output) == expected
        assert not root_of(output).exists()
        moment += 1 + moment // 5
    assert num_killed > 15


def test_killed_again_and_again_it_gets_there(tmp_path: Path, run: Run) -> None:
    assert run("whole") == 0
    moment, num_killed = 40, 0
    while killed_at(moment, run, tmp_path, name="out"):
        moment, num_killed = moment + 20, num_killed + 1
    assert num_killed > 2
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def interrupted(run: Run, **flags: Any) -> int:
    """The command, interrupted by Ctrl-C when it begins to write its second bucket; gives the exit code."""
    write, left = bucket_writer.write_bin, [1]

    def write_one(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(*args)

    with mock.patch.object(bucket_writer, "write_bin", write_one):
        return run(**flags)


def messages(caplog: pytest.LogCaptureFixture) -> str:
    text = "\n".join(record.getMessage() for record in caplog.records)
    caplog.clear()
    return text


def test_after_ctrl_c_finished_work_is_kept_and_found(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    assert interrupted(run) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: interrupted")
    assert f"what is finished is kept in {root_of(tmp_path / 'out')}/parts; the same command goes on" in messages(
        caplog
    )
    assert not (tmp_path / "out").exists()
    with (
        mock.patch.object(intake, "write_chunk", side_effect=AssertionError("encoded again")),
        mock.patch.object(bucket_writer, "write_bin", wraps=bucket_writer.write_bin) as written,
    ):
        assert run() == 0
    assert written.call_count == 2  # of three buckets one was there
    assert "2 of 2 parts were encoded by an earlier run, from the same bytes" in messages(caplog)
    assert run("whole") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["chunk", "bucket", "sources", "record", "refused"])
def test_damaged_work_is_done_again(tmp_path: Path, run: Run, kind: str) -> None:
    assert interrupted(run) == 130
    root = root_of(tmp_path / "out")
    pattern = {
        "chunk": "parts/*/chunk-00000.arrow",
        "bucket": "bins/part-00000/data-*.arrow",
        "sources": "bins/part-00000/sources.arrow",
        "record": "parts/*/record.json",
        "refused": "parts/*/refused.jsonl",
    }
    damaged = sorted(root.glob(pattern[kind]))[0]
    if kind == "refused":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:-100])
    assert run() == 0
    assert run("whole") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_buckets_that_are_written_together_are_all_there_in_the_end(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_writer, "SHARD_TOKENS", 2**23)  # one task of three buckets
    assert interrupted(run) == 130
    assert [path.name for path in (root_of(tmp_path / "out") / "buckets").iterdir()] == ["part-00000.json"]
    assert run() == 0
    assert run("whole") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_changed_file_a_new_one_and_one_that_is_gone_are_named_and_nothing_stale_is_used(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    corpus = tmp_path / "corpus"
    assert interrupted(run) == 130
    messages(caplog)
    text = (corpus / "a.jsonl").read_text()
    (corpus / "a.jsonl").write_text(text.replace("river", "RIVER", 1))
    (corpus / "b.jsonl").rename(corpus / "c.jsonl")
    assert run() == 0
    said = messages(caplog)
    assert f"changed {corpus}/a.jsonl; new {corpus}/c.jsonl; gone {corpus}/b.jsonl" in said
    assert run("whole") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_bytes_that_change_behind_the_same_size_and_time_are_noticed(tmp_path: Path, run: Run) -> None:
    assert interrupted(run) == 130
    path = tmp_path / "corpus" / "a.jsonl"
    before = path.stat()
    path.write_text(path.read_text().replace("river", "RIVER", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert run() == 0
    assert run("whole") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "named", "is_encoded_again"),
    [
        ({"max_length": 64}, "max_length 128 -> 64", False),
        ({"num_spliced_dataset_bins": 1}, "num_spliced_dataset_bins 3 -> 1", False),
        ({"drop_exact_duplicates": True}, "drop_exact_duplicates False -> True", False),
        ({"long_documents": "drop"}, "long_documents split -> drop", False),
        ({"seed": 7}, "seed 42 -> 7", False),
        ({"near_duplicate_similarity": 0.8}, "near_duplicate_similarity None -> 0.8", True),
        ({"text_field": "source"}, "text_field target -> source", True),
        ({"min_characters": 20}, "min_characters 0 -> 20", True),
        ({"tokenizer_dir": "BASE"}, "tokenizer ", True),
    ],
)
def test_changed_flags_are_named_and_what_they_decide_is_done_again(
    tmp_path: Path,
    run: Run,
    base_tokenizer_dir: Path,
    caplog: pytest.LogCaptureFixture,
    flags: dict[str, Any],
    named: str,
    is_encoded_again: bool,
) -> None:
    caplog.set_level(logging.INFO)
    flags = {name: base_tokenizer_dir if value == "BASE" else value for name, value in flags.items()}
    assert interrupted(run) == 130
    messages(caplog)
    with mock.patch.object(intake, "write_chunk", wraps=intake.write_chunk) as encoded:
        assert run(**flags) == 0
    assert bool(encoded.call_count) == is_encoded_again
    assert named in messages(caplog)
    assert run("whole", **flags) == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_finished_output_is_recognised_by_its_inputs(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    assert run() == 0
    assert "encoded by an earlier run" not in messages(caplog)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run() == 0
    assert "already made from this very text with these flags" in messages(caplog)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    capsys.readouterr()
    assert run(max_length=64, seed=7) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "was made otherwise (max_length 128 -> 64; seed 42 -> 7); add --overwrite" in said
    write_documents(tmp_path / "corpus" / "b.jsonl", make_documents(3))
    assert run() == 2
    assert f"was made otherwise (changed {tmp_path}/corpus/b.jsonl)" in capsys.readouterr().err.splitlines()[-1]
    assert run(overwrite=True) == 0


def test_a_cache_of_ones_own_is_kept_for_other_lengths(tmp_path: Path, run: Run) -> None:
    assert run(data_cache_dir=tmp_path / "cache") == 0
    with mock.patch.object(intake, "write_chunk", side_effect=AssertionError("encoded again")):
        assert run("other", max_length=64, data_cache_dir=tmp_path / "cache") == 0
    assert run("whole", max_length=64) == 0
    assert files_of(tmp_path / "other") == files_of(tmp_path / "whole")


def test_two_runs_on_one_output_do_not_meet(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []

    def write_bin(*args: Any) -> Any:
        if not answers:
            answers.append(None)
            answers.append(run())
        return real(*args)

    real = bucket_writer.write_bin
    with mock.patch.object(bucket_writer, "write_bin", write_bin):
        assert run() == 0
    assert answers == [None, 2]
    assert "another run is at work here" in capsys.readouterr().err


def test_a_library_that_turns_out_to_differ_is_dropped_for_all_text(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is wrong only about one word, which the sample does not hold, and of which the first part shows nothing."""
    monkeypatch.setattr(parts, "PART_BYTES", (tmp_path / "corpus" / "a.jsonl").stat().st_size)
    monkeypatch.setattr(intake, "CHECK_EVERY", 8)
    texts = [f"xylophone {index}" for index in range(100)]
    unseen = [text for text in texts if xxhash.xxh3_64_intdigest(text.encode()) % 8][:5]
    for name, words in {"a": unseen, "b": texts}.items():
        lines = (tmp_path / "corpus" / f"{name}.jsonl").read_text().splitlines()
        lines[20:20] = [json.dumps({"target": text}) for text in words]
        (tmp_path / "corpus" / f"{name}.jsonl").write_text("\n".join(lines))
    assert run("whole", backend="tokenizers") == 0
    right = backends._gigatoken

    def wrong(layout: str) -> backends.Encode:
        encode = right(layout)

        def encode_wrongly(texts: Any) -> backends.Ids:
            ids = encode(texts)
            flat = ids.flat.copy()
            ends = ids.lengths.cumsum()
            for index, text in enumerate(texts):
                if "xylophone" in text:
                    flat[ends[index] - 1] ^= 1
            return backends.Ids(flat, ids.lengths)

        return encode_wrongly

    monkeypatch.setattr(backends, "_gigatoken", wrong)
    from data_tools.tools import tools_of

    tools_of.cache_clear()
    caplog.set_level(logging.INFO)
    with mock.patch.object(prepare_pretrain_dataset, "_settle_process"):
        assert run() == 0
    said = messages(caplog)
    tools_of.cache_clear()
    assert "all text is encoded again with tokenizers" in said
    assert "encoded with tokenizers" in said
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
