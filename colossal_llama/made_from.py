"""What a run is made from: flags and opened data come in; all inputs are hashed, and `lineage.json` goes out.

Every file of the model and of the data is compared with the manifest that came with it, and, where a run goes on, with
what the run began with. `input_hashes` does the hashing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.cluster import main_rank_logger, on_main, spans_hosts, together
from colossal_llama.config import TrainConfig
from colossal_llama.input_hashes import Hashed, hash_together, hosts_of, one_digest_a_file, read_hashed, write_hashed
from colossal_llama.progress import START_ANEW
from colossal_llama.start import Start
from data_tools.bin_writer import ARROW_NAME
from data_tools.bins import Bin, Bins
from data_tools.manifest import MANIFEST_NAME
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import (
    DIGITS,
    LINEAGE,
    Record,
    belongs,
    describe_files,
    files_of,
    read_record,
    shortened,
    with_fingerprint,
)
from tokenizer_tools.outputs import read_json, write_json

VERSION = 1


@dataclass(frozen=True)
class Origin:
    """`lineage` is what lineage.json holds, `hashed` the sha256 of every input file as it lies on the disk now."""

    lineage: Record
    hashed: Hashed


def find_origin(
    config: TrainConfig, start: Start, fingerprint: str, bins: Bins, eval_bins: Mapping[str, Bins]
) -> Origin:
    """Hash what a run reads and compare it with what its manifests and its checkpoint say. All ranks call it.

    `fingerprint` is that of the tokenizer beside the weights. Raises UserError, on all ranks, for the first input that
    is not what it should be.
    """
    directories = [config.pretrained]
    if start.checkpoint is None and start.model_dir != config.pretrained:
        directories.append(start.model_dir)
    names = together(lambda: {path: files_of(path, "model") for path in directories})
    all_bins = [one for opened in (bins, *eval_bins.values()) for one in opened.bins]
    model_files = [path / name for path in directories for name in names[path]]
    bin_files = [one.path / ARROW_NAME for one in all_bins]
    known = on_main(lambda: read_hashed(config.save_dir))
    hashed = hash_together([*model_files, *bin_files], known)
    hosts = hosts_of(hashed) if spans_hosts() else {}
    digests = on_main(lambda: one_digest_a_file(hashed, hosts))

    def lineage() -> Record:
        for one, file in zip(all_bins, bin_files, strict=True):
            check_bin(one, digests[file.absolute()])
        records = {}
        for path in directories:
            own = describe_files(path, names[path], [digests[(path / name).absolute()] for name in names[path]])
            records[path] = read_record(path, "model", own)
        if start.checkpoint is None:
            records[start.model_dir] = with_fingerprint(start.model_dir, records[start.model_dir], fingerprint)
            return _new_lineage(list(records.values()), bins, fingerprint)
        return going_on(config, start.checkpoint.path, records[config.pretrained], bins, fingerprint)

    return Origin(on_main(lineage), hashed)


def _new_lineage(models: list[Record], bins: Bins, fingerprint: str) -> Record:
    """`models`: that of --pretrained, and that of --load_checkpoint if it gives the weights."""
    start = models[-1]
    tokenizer = {
        key: {name: value for name, value in start[key].items() if belongs(name, "tokenizer")}
        for key in ("sizes_bytes", "sha256")
    }
    return {
        "version": VERSION,
        "kind": "run",
        "made_from": {
            **{role: shortened(model) for role, model in zip(("model", "weights"), models, strict=False)},
            "tokenizer": {"kind": "tokenizer", "tokenizer_fingerprint": fingerprint, **tokenizer},
            "data": bins.records,
        },
    }


def going_on(config: TrainConfig, checkpoint: Path, model: Record, bins: Bins, fingerprint: str) -> Record:
    """The lineage of a run that goes on from `checkpoint` with these inputs.

    Raises UserError if model or tokenizer are not those that the checkpoint names. Other data are, at this point,
    allowed ones: they are added to what the run was made from.
    """
    if not (checkpoint / LINEAGE).is_file():
        main_rank_logger(__name__).warning(
            f"{checkpoint}: has no {LINEAGE}, so whether it was trained from the present --pretrained and --dataset "
            "cannot be told"
        )
        return _new_lineage([model], bins, fingerprint)
    before = read_run(checkpoint)
    made_from = before["made_from"]
    check_model(config.pretrained, model, made_from["model"])
    mark = made_from["tokenizer"]["tokenizer_fingerprint"]
    if mark != fingerprint:
        raise UserError(
            f"{checkpoint}: the tokenizer beside its weights is {fingerprint[:DIGITS]}, but the run began with "
            f"{mark[:DIGITS]}; restore the checkpoint, or go on from another one"
        )
    if buckets(bins.records) == buckets(made_from["data"]):
        return before
    earlier = [*made_from.get("earlier_data", []), *made_from["data"]]
    return before | {"made_from": made_from | {"data": bins.records, "earlier_data": earlier}}


def read_run(checkpoint: Path) -> Record:
    """What the run of a checkpoint was made from. Raises UserError if its lineage.json is of another version."""
    record = read_json(checkpoint / LINEAGE, "what a run was made from")
    if record.get("version") != VERSION:
        raise UserError(
            f"{checkpoint / LINEAGE}: version {record.get('version')!r}, this checkout reads {VERSION}; take the "
            "checkout that wrote it, or a newer one"
        )
    return record


def refuse_other_data(config: TrainConfig, start: Start, bins: Bins) -> None:
    """Raise UserError, which names the first bucket that differs, if a run would go on with other data unasked."""
    if start.checkpoint is None or config.restart_data or not (start.checkpoint.path / LINEAGE).is_file():
        return
    before, now = buckets(read_run(start.checkpoint.path)["made_from"]["data"]), buckets(bins.records)
    if now != before:
        raise UserError(
            f"the checkpoint was made with another --dataset: {changed_data(before, now)}; keep the same --dataset, "
            f"add --restart_data to go on with it from its first row, {START_ANEW}"
        )


def check_model(directory: Path, now: Record, before: Record) -> None:
    """Raise UserError, which names the first file that differs, if a run's base model is not the one it began with."""
    digests, began_with = now["sha256"], before["sha256"]
    for name in sorted({*digests, *began_with}):
        present, expected = digests.get(name), began_with.get(name)
        if present != expected:
            raise UserError(
                f"--pretrained {directory / name}: {'is missing' if present is None else f'sha256 {present[:DIGITS]}'}"
                f", but the run began with {'none' if expected is None else expected[:DIGITS]}; name the model that it "
                "began with, or a new --save_dir for a new run"
            )


def check_bin(opened: Bin, digest: str) -> None:
    """Raise UserError if the rows of a bucket are not those that stage 3 has written."""
    if digest != opened.sha256:
        raise UserError(
            f"{opened.path / ARROW_NAME}: sha256 {digest[:DIGITS]}, but {opened.path.parent / MANIFEST_NAME} says "
            f"{opened.sha256[:DIGITS]}: it was replaced or edited; copy it anew or prepare the dataset again"
        )


def buckets(data: Sequence[Record]) -> list[tuple[str, str]]:
    """(bucket, sha256) in the order in which rows are numbered."""
    return [
        (name.removesuffix(f"/{ARROW_NAME}"), digest) for record in data for name, digest in record["sha256"].items()
    ]


def changed_data(before: list[tuple[str, str]], now: list[tuple[str, str]]) -> str:
    """In words, the first difference between two lists of buckets that differ."""
    if sorted(digest for _, digest in before) == sorted(digest for _, digest in now):
        return "the same buckets, but in another order than the run began with"
    place = next((i for i, (old, new) in enumerate(zip(before, now, strict=False)) if old[1] != new[1]), len(before))
    if place >= min(len(before), len(now)):
        return f"{len(now)} buckets, but the run began with {len(before)}"
    (old_name, old), (name, new) = before[place], now[place]
    return f"{name} has sha256 {new[:DIGITS]}, but the run began with {old_name} of {old[:DIGITS]}"


def write_origin(save_dir: Path, origin: Origin) -> None:
    """Write lineage.json and hashed_files.json."""
    write_json(save_dir / LINEAGE, origin.lineage)
    write_hashed(save_dir, origin.hashed)
