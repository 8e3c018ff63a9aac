"""What a directory was made from: tokenizer and model directories come in, records of their files (sha256) go out.

A record is a JSON object of the shape that every manifest.json of the house has:

    {"version", "kind", "tokenizer_fingerprint", "sizes_bytes": {file: n}, "sha256": {file: hex digits},
     "made_from": {role: record or list of records}}

So records nest, from a run back to the file of pieces. They hold no path and no time: same inputs, same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json, write_json
from tokenizer_tools.tokenizer_files import MANIFEST, SETTINGS_FILES, VOCABULARY_FILES, is_weights

log = logging.getLogger(__name__)

Record = dict[str, Any]
Kind = Literal["tokenizer", "model"]

MANIFEST_VERSION = 2
"""Of the manifests of tokenizers and models. Version 1 did not name the sha256 of any file."""
RECORD_KEYS = (
    *("version", "kind", "tokenizer_fingerprint", "source_tokenizer_fingerprint", "vocab_size", "initialiser", "seed"),
    *("documents_sha256", "tokens_by_category", "sizes_bytes", "sha256", "made_from"),
)
TOKENIZER_FILES = (*VOCABULARY_FILES, *SETTINGS_FILES, "vocab.json", "merges.txt")
CONFIG_FILES = ("config.json", "generation_config.json", "adapter_config.json")
SAFETENSORS_SUFFIXES = (".safetensors", ".safetensors.index.json")
LINEAGE = "lineage.json"
DIGITS = 16  # of a sha256 in messages
BLOCK_BYTES = 2**22
FIRST_BAR_SECONDS = 2


def sha256_of(path: Path, advance: Callable[[int], None] = lambda num_bytes: None) -> str:
    """sha256 of a file, which is only read. `advance` hears of every block. Raises UserError where it is unreadable."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(BLOCK_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while num_bytes := file.readinto(block):
                digest.update(block[:num_bytes])
                advance(num_bytes)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; every file that goes into a run has to be readable") from None
    return digest.hexdigest()


def hash_files(paths: Sequence[Path], num_threads: int | None = None, shows: bool = True) -> list[str]:
    """The sha256 of each file, in their order, by some threads (hashlib works without the GIL).

    A bar tells of it if it takes longer than two seconds, unless `shows` is off.
    """
    from tqdm import tqdm

    is_over = threading.Event()
    total = sum(path.stat().st_size for path in paths)
    with (
        tqdm(
            total=total,
            desc="sha256",
            unit="B",
            unit_scale=True,
            delay=FIRST_BAR_SECONDS,
            disable=None if shows else True,
        ) as bar,
        ThreadPoolExecutor(num_threads) as pool,
    ):

        def advance(num_bytes: int) -> None:
            if is_over.is_set():  # Ctrl-C has reached the main thread, which waits for this one
                raise UserError("hashing was stopped")
            with bar.get_lock():
                bar.update(num_bytes)

        try:
            return list(pool.map(lambda path: sha256_of(path, advance), paths))
        except BaseException:
            is_over.set()
            raise


def files_of(directory: Path, kind: Kind) -> list[str]:
    """The files of a directory that make up its tokenizer, or its model with the tokenizer: what transformers loads."""
    names = sorted(path.name for path in directory.iterdir() if path.is_file() and belongs(path.name, kind))
    if any(name.endswith(SAFETENSORS_SUFFIXES) for name in names):  # which transformers prefers to all other weights
        names = [name for name in names if name.endswith(SAFETENSORS_SUFFIXES) or not is_weights(Path(name))]
    return names


def belongs(name: str, kind: Kind) -> bool:
    """Whether a file of this name is part of a tokenizer, or of a model with its tokenizer."""
    return name in TOKENIZER_FILES or (kind == "model" and (name in CONFIG_FILES or is_weights(Path(name))))


def describe_files(directory: Path, names: Sequence[str], digests: Sequence[str] | None = None) -> Record:
    """{"sizes_bytes", "sha256"} of some files of a directory; hashed here, unless the `digests` are at hand."""
    paths = [directory / name for name in names]
    found = hash_files(paths) if digests is None else digests
    return {
        "sizes_bytes": {name: path.stat().st_size for name, path in zip(names, paths, strict=True)},
        "sha256": dict(zip(names, found, strict=True)),
    }


def read_manifest(directory: Path) -> tuple[Path, Record] | None:
    """The manifest that names the files of a tokenizer or model directory, with its path; None if there is none.

    A `modeling` folder, say, has none of its own: its checkpoint's manifest names `modeling/config.json` and so on.
    Raises UserError for one that is no JSON or of a newer version.
    """
    directory = directory.resolve()
    path = directory / MANIFEST
    if not path.is_file():
        return _manifest_around(directory)
    manifest = read_json(path, "the manifest of init_tokenizer, init_model or export")
    if manifest.get("kind") not in ("tokenizer", "model"):
        return None  # another program's
    if manifest.get("version") not in range(1, MANIFEST_VERSION + 1):
        raise UserError(
            f"{path}: version {manifest.get('version')!r}, this checkout reads up to {MANIFEST_VERSION}; take the "
            "checkout that wrote it, or a newer one"
        )
    return path, manifest


def _manifest_around(directory: Path) -> tuple[Path, Record] | None:
    """The same from the manifest of the directory that holds this one, if that manifest names files of this one."""
    path = directory.parent / MANIFEST
    try:
        whole = read_json(path, "a manifest")
    except (UserError, OSError):
        return None
    prefix = f"{directory.name}/"
    digests = whole["sha256"] if isinstance(whole.get("sha256"), dict) else {}
    own = {name.removeprefix(prefix): digest for name, digest in digests.items() if name.startswith(prefix)}
    if not own:
        return None
    lineage = path.with_name(LINEAGE)
    made_from = {"run": read_json(lineage, "what a run was made from")} if lineage.is_file() else {}
    return path, {"version": MANIFEST_VERSION, "kind": "model", "sha256": own, "made_from": made_from}


def read_record(directory: Path, kind: Kind, files: Record) -> Record:
    """The manifest of a directory that serves as a tokenizer or as a model, whose `files` are as described.

    Raises UserError if they are not the ones that the manifest names. Where there is none, the record is
    {"kind": "plain tokenizer"} or {"kind": "plain model"} with the files: a chain begins there.
    """
    found = read_manifest(directory)
    if found is None:
        return {"kind": f"plain {kind}", **files}
    path, manifest = found
    if "sha256" in manifest:
        check_files(directory, path, manifest, files["sha256"], kind)
    else:
        log.warning(
            f"{path}: version {manifest['version']}, written by an older checkout, names no sha256: whether a file was "
            "swapped before now cannot be told"
        )
    if manifest["kind"] == kind:
        return manifest | files
    return _as_other_kind(manifest, kind, files)


def _as_other_kind(manifest: Record, kind: Kind, files: Record) -> Record:
    """Of a model that serves as a tokenizer, and of a tokenizer that has weights beside it, which nobody has named."""
    if kind == "model":
        return {"kind": "plain model", **files, "made_from": {"tokenizer": shortened(manifest)}}
    inside = manifest.get("made_from", manifest).get("tokenizer", {})  # version 1 had it beside the rest
    if inside and inside.get("sha256", files["sha256"]) == files["sha256"]:
        return inside | files
    mark = {name: manifest[name] for name in ("tokenizer_fingerprint",) if name in manifest}
    return {"kind": "tokenizer", **mark, **files, "made_from": {"model": shortened(manifest)}}


def shortened(record: Record) -> Record:
    """A manifest without what is not needed to know where it comes from; those inside it are shortened, too."""
    short = {key: record[key] for key in RECORD_KEYS if key in record}
    if "made_from" in short:
        short["made_from"] = {
            role: [shortened(part) for part in made] if isinstance(made, list) else shortened(made)
            for role, made in short["made_from"].items()
        }
    return short


def refuse_swapped(directory: Path, kind: Kind) -> None:
    """Raise UserError if a file of a directory is not the one that its manifest names, where it has one that does."""
    found = read_manifest(directory)
    if found is not None and "sha256" in found[1]:
        files = describe_files(directory, files_of(directory, kind))
        check_files(directory, *found, files["sha256"], kind)


def check_files(directory: Path, manifest_path: Path, manifest: Record, found: Mapping[str, str], kind: Kind) -> None:
    """Raise UserError for the first file that is not the one of the manifest, is missing, or is named nowhere.

    Of a model with a tokenizer's manifest beside it only the tokenizer can be compared.
    """
    scope: Kind = "model" if kind == manifest["kind"] == "model" else "tokenizer"
    expected = {name: digest for name, digest in manifest["sha256"].items() if belongs(name, scope)}
    found = {name: digest for name, digest in found.items() if belongs(name, scope)}
    for name in sorted({*expected, *found}):
        if found.get(name) == expected.get(name):
            continue
        if name not in found:
            fault = f"missing, but {manifest_path} names it with sha256 {expected[name][:DIGITS]}; put it back"
        elif name not in expected:
            fault = f"sha256 {found[name][:DIGITS]}, but {manifest_path} names no such file; remove it"
        else:
            fault = (
                f"sha256 {found[name][:DIGITS]}, but {manifest_path} says {expected[name][:DIGITS]}: the file was "
                "swapped or edited; put the right one back"
            )
        raise UserError(f"{directory / name}: {fault}, or make the directory again ({_maker(manifest)})")


def _maker(manifest: Record) -> str:
    if "initialiser" in manifest:
        return "init_model --overwrite"
    return "init_tokenizer --overwrite" if manifest["kind"] == "tokenizer" else "export it or copy it anew"


def input_record(directory: Path, kind: Kind, fingerprint: str) -> Record:
    """The record of a directory that is read, hashed here. Raises UserError if a file of it was swapped."""
    files = describe_files(directory, files_of(directory, kind))
    return with_fingerprint(directory, read_record(directory, kind, files), fingerprint)


def with_fingerprint(directory: Path, record: Record, fingerprint: str) -> Record:
    """The record with the fingerprint of the directory's tokenizer. Raises UserError if it says another one."""
    said = record.get("tokenizer_fingerprint", fingerprint)
    if said != fingerprint:
        raise UserError(
            f"{directory}: its tokenizer is {fingerprint[:DIGITS]}, but its {MANIFEST} says {said[:DIGITS]}; put the "
            "tokenizer back that it was made with"
        )
    return record | {"tokenizer_fingerprint": fingerprint}


def fingerprints_behind(tokenizer: Record) -> set[str]:
    """The fingerprints of all tokenizers that a tokenizer was expanded from, step by step, and its own."""
    own = {tokenizer[key] for key in ("tokenizer_fingerprint", "source_tokenizer_fingerprint") if key in tokenizer}
    source = tokenizer.get("made_from", {}).get("source_tokenizer")
    return own if source is None else own | fingerprints_behind(source)


def seal_model(directory: Path, run_lineage: Record, fingerprint: str) -> None:
    """Write the manifest of a model that a run has trained: its files, and what the run was made from."""
    manifest = {
        "version": MANIFEST_VERSION,
        "kind": "model",
        "tokenizer_fingerprint": fingerprint,
        **describe_files(directory, files_of(directory, "model")),
        "made_from": {"run": run_lineage},
    }
    write_json(directory / MANIFEST, manifest)
