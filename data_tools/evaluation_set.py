"""An evaluation set as plain texts: a file or a directory in any format of the input comes in, its strings go out.

Benchmarks name their fields as they like (question, choices, A, answer, ...), so every string counts as a text, at any
depth. Damage is not passed over as in a corpus: an evaluation set that is read by half protects by half.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.input_files import files_at, format_of
from tokenizer_tools.command import UserError

MAX_CELL_CHARACTERS = 2**30  # csv's own limit is 2**17


def evaluation_texts(path: Path) -> list[str]:
    """Every distinct string of the files at `path`, sorted. Raises UserError for what cannot be read whole."""
    texts = {text for file in files_at(path, "--decontaminate") for text in _strings_of_file(file)}
    if not any(text.strip() for text in texts):
        raise UserError(f"--decontaminate {path}: holds no text; name the files of an evaluation set")
    return sorted(texts)


def _strings_of_file(file: Path) -> Iterator[str]:
    import pyarrow as pa

    try:
        yield from _strings(_read(file))
    except (pa.ArrowInvalid, ValueError, csv.Error, RecursionError) as error:
        raise UserError(_unreadable(file, error)) from None
    except OSError as error:
        if error.errno is not None:  # the machine's; pyarrow tells of damage by OSError, too, without a number
            raise
        raise UserError(_unreadable(file, error)) from None


def _unreadable(file: Path, error: Exception) -> str:
    return f"--decontaminate {file}: cannot be read whole ({error}); mend it, or it would protect by half"


def _read(file: Path) -> Any:
    """The values of a file: rows, objects, lines or anything made of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file_format = format_of(file.name)
    assert file_format is not None
    kind = file_format.kind
    if kind == "parquet":
        return pq.read_table(file).to_pylist()
    with pa.input_stream(file, compression="detect") as stream:
        text = stream.read().decode("utf-8-sig")
    if kind == "json":
        return json.loads(text)
    if kind == "jsonl":
        return [_line(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if kind == "csv":
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        return list(csv.reader(io.StringIO(text, newline="")))
    return text


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error.msg} at character {error.pos + 1}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
