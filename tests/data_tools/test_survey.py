"""The survey: documents and bytes by category before anything is encoded, and a plan that is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.cleaning import CleaningConfig
from data_tools.fields import ReadOptions
from data_tools.mixture import Wish
from data_tools.parts import Part, plan_parts
from data_tools.survey import plan_mixture, print_plan, survey_part
from data_tools.tools import Settings
from tests.data_tools.conftest import make_documents, write_documents
from tokenizer_tools.command import UserError


def test_bytes_are_those_of_the_text_that_bears_loss(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    documents = make_documents(60)
    write_documents(tmp_path / "a.jsonl", documents[:40])
    write_documents(tmp_path / "b.jsonl", [{"target": ""}, *documents[40:]])
    parts = plan_parts([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], ReadOptions())
    part = Part(tuple(span for part in parts for span in part.spans))
    counts, num_bytes = survey_part((part, Settings(tiny_tokenizer_dir, ReadOptions(), CleaningConfig())))
    own = {name: [d["target"] for d in documents if d["category"] == name] for name in ("en", "poetry", "zh")}
    assert counts == {name: len(texts) for name, texts in own.items()}
    assert num_bytes == {name: sum(len(text.encode()) for text in texts) for name, texts in own.items()}


def test_the_plan_tells_what_the_mixture_makes_of_each_category() -> None:
    documents, num_bytes = {"zh": 3, "en": 5}, {"zh": 1001, "en": 100}
    assert plan_mixture({"zh": Wish(repeats=0.5)}, documents, num_bytes) == {
        "en": {"documents": 5, "bytes": 100, "copies": 1.0, "planned_bytes": 100},
        "zh": {"documents": 3, "bytes": 1001, "copies": 0.5, "planned_bytes": 500},
    }
    with pytest.raises(UserError, match="names 'fr', but the text has only en, zh"):
        plan_mixture({"fr": Wish()}, documents, num_bytes)


def test_the_plan_is_printed_beside_the_log_and_names_stay_names(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_mixture({"a": Wish(repeats=3)}, {"a": 2, "[red]b": 1}, {"a": 1000, "[red]b": 1000})
    print_plan(plan)
    printed = capsys.readouterr()
    assert printed.out == ""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.err.splitlines() if "x │" in line]
    assert rows == [
        ["[red]b", "1", "1,000", "1.00 x", "1,000", "25.0%"],
        ["a", "2", "1,000", "3.00 x", "3,000", "75.0%"],
    ]


def test_a_plan_that_leaves_nothing_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan_mixture({"a": Wish(repeats=0)}, {"a": 2}, {"a": 1000}))
    assert "0.00 x" in capsys.readouterr().err
