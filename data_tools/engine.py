"""The three passes, one after the other: flags come in, a prepared dataset goes out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tqdm import tqdm

from data_tools.arrange import Arrangement, arrange
from data_tools.backends import REFERENCE, BackendDiffersError, BackendName
from data_tools.bin_writer import ARROW_NAME
from data_tools.bucket_writer import BucketPlan, bucket_tasks, write_buckets
from data_tools.counts import RecordCounts
from data_tools.documents import Documents, load_documents
from data_tools.duplicates import find_duplicates
from data_tools.inputs import file_digests, part_digests, write_inputs
from data_tools.intake import Job, PartRecord, encode_part
from data_tools.manifest import BucketEntry, Manifest, build_manifest, write_manifest
from data_tools.parts import Part, is_intact
from data_tools.prove import check_backend, fastest_exact, sample_records
from data_tools.readable import is_readable_form, write_readable
from data_tools.refusals import REFUSED_NAME, check_refused, duplicate_refusals, refusals, write_refused
from data_tools.report_page import write_report_page
from data_tools.survey import plan_mixture, print_plan, survey_part
from data_tools.tools import Settings, Tools, digest_of_meaning, tools_of
from data_tools.work import Work, what_changed, work_on
from data_tools.workers import num_cpus, run_tasks
from tokenizer_tools.lineage import input_record, shortened
from tokenizer_tools.outputs import whole_directory

if TYPE_CHECKING:
    from data_tools.prepare_config import PrepareConfig

REPORT_NAME = "report.html"
BYTES_A_WORKER = 2**26  # less text is read before a second process has paid for itself
Task = TypeVar("Task")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Engine:
    """One run over `parts`, which were cut from `files`; `skipped` counts files of other kinds by suffix."""

    def __init__(self, config: PrepareConfig, parts: list[Part], files: list[Path], skipped: Counter[str]) -> None:
        self._config = config
        self._parts = parts
        self._files = files
        self._skipped = dict(sorted(skipped.items()))
        self._settings = Settings(config.tokenizer_dir, config.read_options, config.cleaning)
        self._tools: Tools = tools_of(self._settings)
        self._tokenizer = shortened(input_record(config.tokenizer_dir, "tokenizer", self._tools.fingerprint))
        num_bytes = sum(part.num_bytes for part in parts)
        self._num_workers = config.num_workers or max(1, min(num_cpus(), num_bytes // BYTES_A_WORKER))
        self._mixture = config.wishes

    @cached_property
    def meaning(self) -> dict[str, Any]:
        """Everything that decides the bytes of the output beside the text itself."""
        return self._tools.meaning() | self._config.arrangement

    def _run_tasks(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        return run_tasks(function, tasks, self._num_workers, self._config.ray_address)

    def input_digests(self) -> dict[str, str]:
        """A digest of each input file."""
        found = dict(self._run_tasks(part_digests, self._parts))
        return file_digests(chain.from_iterable(found[index] for index in range(len(self._parts))))

    def run(self) -> Manifest:
        """All passes; the output is in place when this ends."""
        config = self._config
        with work_on(config.data_arrow_output_dir, config.data_cache_dir, config.overwrite) as work:
            changes = what_changed(work.cache_dir, self.meaning, self._files)
            if changes:
                logger.info("since the last run here: %s", "; ".join(changes))
            if self._mixture:
                self._survey()
            records = self._encode_exactly(work)
            return self._build(work, records)

    def _survey(self) -> None:
        """Plan the mixture and report it, before anything is encoded."""
        documents: Counter[str] = Counter()
        num_bytes: Counter[str] = Counter()
        tasks = [(part, self._settings) for part in self._parts]
        for _, (more_documents, more_bytes) in self._run_tasks(survey_part, tasks):
            documents += more_documents
            num_bytes += more_bytes
        print_plan(plan_mixture(self._mixture, documents, num_bytes))

    def _encode_exactly(self, work: Work) -> list[PartRecord]:
        """Pass 1 with the fastest exact library, or with the reference if that library turns out not to be."""
        backend = self._config.backend
        if backend == "auto":
            backend = fastest_exact(self._tools, sample_records(self._parts, self._tools))
        try:
            check_backend(self._tools, backend)
            return self._encode(work, backend)
        except BackendDiffersError as error:
            logger.warning("warning: %s; all text is encoded again with %s", error, REFERENCE)
            return self._encode(work, REFERENCE)

    def _encode(self, work: Work, backend: BackendName) -> list[PartRecord]:
        meaning = {"backend": backend, **self._tools.meaning()}
        job = Job(self._settings, backend, work.cache_dir, digest_of_meaning(meaning))
        records: dict[int, PartRecord] = {}
        num_found = num_tokens = 0
        with tqdm(
            total=sum(part.num_bytes for part in self._parts), desc="encode", unit="B", unit_scale=True, disable=None
        ) as bar:
            tasks = [(part, job) for part in self._parts]
            for index, (record, was_there) in self._run_tasks(encode_part, tasks):
                records[index] = record
                num_found += was_there
                num_tokens += sum(chunk["num_tokens"] for chunk in record["chunks"])
                bar.update(self._parts[index].num_bytes)
                seconds = bar.format_dict["elapsed"]
                bar.set_postfix_str(f"{num_tokens / max(seconds, 1e-9):,.0f} tokens/s", refresh=False)
        if num_found:
            logger.info("%d of %d parts were encoded by an earlier run, from the same bytes", num_found, len(records))
        logger.info("encoded with %s", backend)
        return [records[index] for index in range(len(records))]

    def _build(self, work: Work, records: list[PartRecord]) -> Manifest:
        """Passes 2 and 3, and what is told of them."""
        config = self._config
        counts = RecordCounts()
        for record in records:
            counts.add(record["counts"])
        self._check_refused(counts, records, work)
        documents = load_documents(work.cache_dir, records, counts.category_names)
        kept = find_duplicates(documents, config.cleaning)
        for reason, is_dropped in kept.dropped.items():
            per_category = np.bincount(documents.category[is_dropped], minlength=len(documents.category_names))
            for name, number in zip(documents.category_names, per_category.tolist(), strict=True):
                counts.refuse_kept(name, reason, number)
        arrangement = arrange(
            documents,
            kept.is_kept,
            num_buckets=config.num_spliced_dataset_bins,
            max_length=config.max_length,
            long_documents=config.long_documents,
            mixture=self._mixture,
        )
        manifest = build_manifest(
            tokenizer=self._tokenizer,
            settings=self.meaning,
            max_length=config.max_length,
            seed=config.seed,
            files={"read": len(self._files), "skipped": self._skipped},
            counts=counts,
            documents=documents,
            kept=kept.is_kept,
            arrangement=arrangement,
            buckets=self._write(work, records, documents, arrangement),
        )
        write_refused(
            work.bins_dir / REFUSED_NAME,
            chain(refusals(records, work.cache_dir), duplicate_refusals(records, work.cache_dir, documents, kept)),
        )
        spans = (pair for record in records for pair in zip(record["files"], record["digests"], strict=True))
        write_inputs(work.bins_dir, file_digests(spans))
        write_report_page(work.bins_dir / REPORT_NAME, manifest)
        write_manifest(work.bins_dir, manifest)
        return manifest

    def _check_refused(self, counts: RecordCounts, records: list[PartRecord], work: Work) -> None:
        first = next(refusals(records, work.cache_dir), None)
        check_refused(self._config.max_refused, counts, first, self._config.read_options)

    def _write(
        self, work: Work, records: list[PartRecord], documents: Documents, arrangement: Arrangement
    ) -> list[BucketEntry]:
        """Pass 3."""
        plan = BucketPlan(
            chunks=documents.chunks,
            category_names=documents.category_names,
            max_length=self._config.max_length,
            seed=self._config.seed,
            dtype=self._tools.dtype,
            bins_dir=work.bins_dir,
            records_dir=work.records_dir,
            key=digest_of_meaning({"parts": [record["key"] for record in records], **self.meaning}),
        )
        tasks = bucket_tasks(documents, arrangement, plan)
        work.clear_bins(self._config.num_spliced_dataset_bins)
        entries: dict[int, list[BucketEntry]] = {}
        with tqdm(total=int(arrangement.length.sum()), desc="write", unit="tok", unit_scale=True, disable=None) as bar:
            for index, written in self._run_tasks(write_buckets, tasks):
                entries[index] = written
                bar.update(sum(entry["tokens"] for entry in written))
        return [entry for index in range(len(tasks)) for entry in entries[index]]

    def damaged_bucket(self, manifest: Manifest) -> str | None:
        """The first bucket of a finished output that is not as it was written."""
        output = self._config.data_arrow_output_dir
        tasks = [(output / bucket["path"] / ARROW_NAME, bucket["sha256"]) for bucket in manifest["buckets"]]
        intact = dict(self._run_tasks(is_intact, tasks))
        return next((b["path"] for index, b in enumerate(manifest["buckets"]) if not intact[index]), None)

    def write_readable(self) -> None:
        """The finished rows as .jsonl, if they are asked for and not there. Raises UserError if others are there."""
        target, output = self._config.data_jsonl_output_dir, self._config.data_arrow_output_dir
        if target is None or is_readable_form(target, output):
            return
        with whole_directory(target, self._config.overwrite) as jsonl_dir:
            write_readable(output, jsonl_dir, self._tools.tokenizer.decode)
