"""The scores that readers are compared by, against brute force, and what counts as a difference."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama.probe import (
    MOST_TOKENS,
    PROBE,
    SCORED_AT_ONCE,
    Probe,
    are_identical,
    difference,
    model_probe,
    probe_positions,
    probe_row,
    read_probe,
    write_probe,
)
from tokenizer_tools.command import UserError


def some_probe(seed: int = 0) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (20,), generator=generator)
    logits = torch.randn(8, 50, generator=generator)
    return Probe(ids, torch.rand(19, generator=generator), probe_positions(20), logits)


@pytest.mark.parametrize("length", [1, 7, 8, 64, MOST_TOKENS])
def test_positions_lie_in_the_text_and_reach_its_end(length: int) -> None:
    positions = probe_positions(length).tolist()
    assert positions == sorted(set(positions))
    assert len(positions) == min(length, 8)
    assert positions[0] >= 0
    assert positions[-1] == length - 1


def test_row_is_the_text_over_and_over(tiny_tokenizer_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    long, short = probe_row(tokenizer, 3000), probe_row(tokenizer, 64)
    assert (len(long), len(short)) == (3000, 64)
    assert torch.equal(long[:64], short)
    assert len(set(long.tolist())) > 100, "a text with few pieces says little about a model"


def test_scores_are_those_of_brute_force(tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    ids = torch.randint(0, 512, (128,), generator=torch.Generator().manual_seed(1))
    assert len(ids) - 1 < SCORED_AT_ONCE or len(ids) % SCORED_AT_ONCE == 0
    probe = model_probe(model, ids, torch.tensor([0, 5, 127]))
    with torch.no_grad():
        logits = model.double()(ids[None]).logits[0]
    nats = -torch.stack([logits[i].log_softmax(-1)[ids[i + 1]] for i in range(127)])
    torch.testing.assert_close(probe.nats.double(), nats, rtol=0, atol=1e-5)
    torch.testing.assert_close(probe.logits.double(), logits[[0, 5, 127]], rtol=0, atol=1e-5)
    assert probe.nats.dtype == probe.logits.dtype == torch.float32


def test_difference_is_measured_in_the_logits_own_spread() -> None:
    probe = some_probe()
    assert difference(probe, probe).relative == difference(probe, probe).nats == 0
    noise = 0.01 * torch.randn(probe.logits.shape, generator=torch.Generator().manual_seed(3))
    found = difference(probe, replace(probe, logits=probe.logits + noise)).relative
    assert found == pytest.approx(0.01, rel=0.2)
    ten_times = replace(probe, logits=10 * probe.logits)
    assert difference(ten_times, replace(probe, logits=10 * (probe.logits + noise))).relative == pytest.approx(found)


def test_a_constant_on_all_logits_is_no_difference() -> None:
    probe = some_probe()
    assert difference(probe, replace(probe, logits=probe.logits + 3)).relative < 1e-6


def test_differing_losses_count_as_much_as_differing_logits() -> None:
    probe = some_probe()
    found = difference(probe, replace(probe, nats=probe.nats + 0.5))
    assert found.relative == pytest.approx(0.5 / probe.logits.std(-1).mean().item(), rel=0.01)
    assert found.nats == pytest.approx(0.5)
    assert found.mean_nats == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["nats", "logits"])
def test_nan_makes_every_bound_fail_and_is_itself(name: str) -> None:
    probe = some_probe()
    broken = replace(probe, **{name: torch.full_like(getattr(probe, name), math.nan)})
    assert not difference(probe, broken).relative <= math.inf
    assert are_identical(broken, broken)
    assert not are_identical(probe, broken)


def test_one_bit_is_a_difference() -> None:
    probe = some_probe()
    logits = probe.logits.clone()
    logits[3, 7] = torch.nextafter(logits[3, 7], torch.tensor(9.0))
    assert are_identical(probe, some_probe())
    assert not are_identical(probe, replace(probe, logits=logits))


def test_file_holds_it_bit_for_bit(tmp_path: Path) -> None:
    write_probe(some_probe(), tmp_path)
    assert are_identical(read_probe(tmp_path), some_probe())


def test_missing_or_cut_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{PROBE}: not the scores that training wrote"):
        read_probe(tmp_path)
    write_probe(some_probe(), tmp_path)
    content = (tmp_path / PROBE).read_bytes()
    (tmp_path / PROBE).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="take another checkpoint"):
        read_probe(tmp_path)
