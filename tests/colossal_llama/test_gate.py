"""The gate before training, on a model trained for a moment and grown with the project's own commands."""

from __future__ import annotations

import gc
import json
import math
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from colossal_llama import evaluate, gate
from colossal_llama.gate import Bounds, judge, rank_of_own, rank_rows
from colossal_llama.scoring import Sums
from tests.conftest import CHINESE, TINY_MODEL_CONFIG, argv_of, write_jsonl
from tokenizer_tools import init_model, init_tokenizer
from tokenizer_tools.tokenizer import load_tokenizer

MAX_LENGTH = 48
NUM_OLD = 512
PIECES = (
    "人工",
    "智能",
    "世界",
    "语言",
    "今天",
    "天气",
    "我们",
    "孩子",
    "学生",
    "经济",
    "社会",
    "环境",
    "技术",
    "，",
    "。",
)


def grow(base: Path, root: Path) -> Path:
    """The model of `base` with the Chinese pieces, by stage 1 and 2."""
    pieces = write_jsonl(root / "pieces.jsonl", [{"piece": piece} for piece in PIECES])
    tokenizer, target = root / "tokenizer", root / "grown"
    flags = argv_of(source_tokenizer_dir=base, target_tokenizer_dir=tokenizer, expand_tokens_file=pieces)
    assert init_tokenizer.main(flags) == 0
    flags = argv_of(source_model_and_tokenizer_path=base, target_tokenizer_path=tokenizer, target_model_path=target)
    assert init_model.main(flags) == 0
    return target


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, english_texts: list[str]) -> Path:
    """A tiny model that has read the licence and four Chinese sentences for a few seconds."""
    directory = tmp_path_factory.mktemp("gate") / "base"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = [i for text in [*english_texts[:20], *CHINESE * 5] for i in tokenizer(text)["input_ids"]]
    rows = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        batch = rows[torch.randint(len(rows), (8,), generator=generator)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def grown(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound start."""
    return grow(base, tmp_path_factory.mktemp("grown"))


@pytest.fixture(scope="module")
def records(english_texts: list[str]) -> list[dict[str, str]]:
    """Documents shorter and longer than a window; English, Chinese, and a question with a source."""
    found = [{"source": "", "target": text[:400], "category": "en"} for text in english_texts[20:23]]
    found += [{"source": "", "target": "".join(CHINESE), "category": "zh"}]
    found += [{"source": "", "target": text, "category": "zh"} for text in CHINESE]
    return [*found, {"source": "What is this?", "target": " " + CHINESE[0], "category": "qa"}]


@pytest.fixture(scope="module")
def data(records: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "all.jsonl", records)


Passing = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pass_gate(base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Passing:
    """`pass_gate(model, flag=value, ...)`: exit code, stdout and stderr of the command."""

    def run(model: Path, **flags: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        argv = argv_of(**{"model": model, "baseline": base, "data": data, "max_length": MAX_LENGTH, **flags})
        code = evaluate.main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def changed(source: Path, target: Path, change: Callable[[PreTrainedModel], Any]) -> Path:
    """A copy of a model directory after `change(model)`."""
    shutil.copytree(source, target)
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        change(model)
    for path in target.glob("*.safetensors*"):
        path.unlink()
    model.save_pretrained(target)
    return target


def matrices(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {"input": model.get_input_embeddings().weight, "output": model.get_output_embeddings().weight}


def shuffle(rows: torch.Tensor) -> None:
    order = torch.randperm(len(rows) - NUM_OLD, generator=torch.Generator().manual_seed(5))
    rows[NUM_OLD:] = rows[NUM_OLD:][order]


def by_hand(model_dir: Path, records: list[dict[str, str]], max_length: int) -> dict[str, dict[str, float]]:
    """Nats, tokens, bytes and documents per category: one window after the other through transformers, no batch."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    sums: dict[str, dict[str, float]] = {}
    for record in records:
        one = sums.setdefault(record["category"], dict.fromkeys(("nats", "tokens", "bytes", "documents"), 0))
        ids = tokenizer(record["source"] or record["target"])["input_ids"]
        if ids[0] != tokenizer.bos_token_id:
            ids = [tokenizer.eos_token_id, *ids]
        num_seen = 1
        if record["source"]:
            num_seen = len(ids)  # what follows other text gets no blank of its own
            ids = ids + tokenizer("\n" + record["target"], add_special_tokens=False)["input_ids"][2:]
        for first in range(0, len(ids) - 1, max_length - 1):
            window = torch.tensor(ids[first : first + max_length])
            with torch.inference_mode():
                logarithms = model(input_ids=window[None]).logits[0].double().log_softmax(-1)
            for place in range(1, len(window)):
                if first + place >= num_seen:
                    one["nats"] -= logarithms[place - 1, window[place]].item()
                    one["tokens"] += 1
        one["bytes"] += len(record["target"].encode())
        one["documents"] += 1
    return sums


def error_line(stderr: str) -> str:
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert stderr.endswith(line + "\n")
    return line


def test_both_sides_are_right_and_a_sound_start_passes(
    base: Path, grown: Path, records: list[dict[str, str]], pass_gate: Passing
) -> None:
    code, out, err = pass_gate(grown, json=True)
    result = json.loads(out)
    assert (code, "error" in err) == (0, False)
    assert list(result) == ["model", "baseline", "gate"]
    for side, directory in (("model", grown), ("baseline", base)):
        for category, sums in by_hand(directory, records, MAX_LENGTH).items():
            one = result[side]["categories"][category]
            assert (one["tokens"], one["bytes"], one["documents"]) == (sums["tokens"], sums["bytes"], sums["documents"])
            assert one["bits_per_byte"] == pytest.approx(sums["nats"] / math.log(2) / sums["bytes"], rel=1e-5)
    old, new = result["baseline"]["categories"], result["model"]["categories"]
    assert old["zh"]["tokens"] > 2 * MAX_LENGTH, "a document of several windows"
    assert new["zh"]["tokens"] < old["zh"]["tokens"]
    assert new["en"]["tokens"] == old["en"]["tokens"]
    verdict = result["gate"]
    assert (verdict["passed"], verdict["faults"]) == (True, [])
    assert verdict["row_ranks"] == {"input": pytest.approx(1, abs=0.02), "output": pytest.approx(1, abs=0.02)}
    for name, change in [*verdict["categories"].items(), ("total", verdict["total"])]:
        before = result["baseline"]["total"] if name == "total" else old[name]
        after = result["model"]["total"] if name == "total" else new[name]
        assert change["baseline_bits_per_byte"] == before["bits_per_byte"]
        assert change["bits_per_byte"] == after["bits_per_byte"]
        assert change["increase"] == after["bits_per_byte"] - before["bits_per_byte"]
        assert change["bound"] == (0.2 if name == "en" else 2.0)
    ids = AutoTokenizer.from_pretrained(grown)([r["target"] for r in records if r["category"] == "zh"])["input_ids"]
    tokens = [i for document in ids for i in document[1:]]
    assert verdict["categories"]["zh"]["new_piece_share"] == sum(i >= NUM_OLD for i in tokens) / len(tokens)


def test_alone_the_json_has_the_shape_it_had(grown: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(argv_of(model=grown, data=data, json=True)) == 0
    result = json.loads(capsys.readouterr().out)
    figures = {"loss", "perplexity", "accuracy", "bits_per_byte", "tokens", "bytes", "documents"}
    assert set(result) == {"categories", "total"}
    assert all(set(one) == figures for one in [result["total"], *result["categories"].values()])


def test_without_new_pieces_both_sides_are_equal(base: Path, tmp_path: Path, pass_gate: Passing) -> None:
    copy = shutil.copytree(base, tmp_path / "copy")
    code, out, _ = pass_gate(copy, json=True, max_increase=0, max_increase_old=0)
    result = json.loads(out)
    assert code == 0
    assert result["model"] == result["baseline"]
    assert {one["increase"] for one in result["gate"]["categories"].values()} == {0.0}
    assert result["gate"]["row_ranks"] == {}


@pytest.mark.parametrize("names", [("input", "output"), ("input",), ("output",)])
def test_shuffled_new_rows_are_refused_after_the_table(
    names: tuple[str, ...], grown: Path, tmp_path: Path, pass_gate: Passing
) -> None:
    shuffled = changed(grown, tmp_path / "shuffled", lambda model: [shuffle(matrices(model)[name]) for name in names])
    code, out, err = pass_gate(shuffled)
    line = error_line(err)
    assert code == 2
    assert [row.split()[0] for row in out.splitlines()[1:6]] == ["category", "en", "qa", "zh", "all"]
    assert [name for name in ("input", "output") if f"new {name} rows are not at their pieces" in line] == list(names)
    assert "init_model" in line and "--min_row_rank" in line
    code, _, _ = pass_gate(shuffled, min_row_rank=0, max_increase=99)
    assert code == 0


def test_rows_that_are_zero_or_drawn_at_random_are_refused(grown: Path, tmp_path: Path, pass_gate: Passing) -> None:
    def redraw(model: PreTrainedModel) -> None:
        matrices(model)["input"][NUM_OLD:].normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
        matrices(model)["output"][NUM_OLD:] = 0

    code, out, err = pass_gate(changed(grown, tmp_path / "drawn", redraw), json=True, max_increase=99)
    assert code == 2
    assert json.loads(out)["gate"]["row_ranks"]["output"] == 0.5
    assert "input rows" in error_line(err) and "output rows" in error_line(err)


def test_a_worse_category_is_named_with_both_values_and_its_bound(
    grown: Path, tmp_path: Path, pass_gate: Passing
) -> None:
    def hurt(model: PreTrainedModel) -> None:
        rows = matrices(model)["output"]
        rows[:NUM_OLD] = rows[:NUM_OLD].roll(1, 0)

    hurt_dir = changed(grown, tmp_path / "hurt", hurt)
    code, out, err = pass_gate(hurt_dir, json=True, max_increase=99, min_row_rank=0)
    change = json.loads(out)["gate"]["categories"]["en"]
    line = error_line(err)
    assert code == 2
    assert f"en costs {change['bits_per_byte']:.4f} bits per byte, {change['baseline_bits_per_byte']:.4f}" in line
    assert f"{change['increase']:.4f} more, the bound is 0.2 (--max_increase_old)" in line
    assert "zh costs" not in line
    code, _, err = pass_gate(grown, max_increase=-9)
    assert code == 2
    assert "zh costs" in err and "all text costs" in err and "en costs" not in err
    assert "the bound is -9 (--max_increase)" in err


@pytest.mark.parametrize("side", ["model", "baseline"])
def test_a_score_that_is_no_number_is_refused(
    side: str, base: Path, grown: Path, tmp_path: Path, pass_gate: Passing
) -> None:
    sound = {"model": grown, "baseline": base}
    broken = changed(sound[side], tmp_path / "broken", lambda model: model.model.norm.weight.fill_(math.nan))
    code, out, err = pass_gate(**{**sound, side: broken}, min_row_rank=0, max_increase=99)
    assert (code, out) == (2, "")
    assert f"{broken}: the loss of en is nan" in error_line(err)
    nothing = Bounds(max_increase=math.inf, max_increase_old=math.inf, min_row_rank=0.0)
    verdict = judge({"c": Sums(1.0, 1)}, {"c": Sums(math.nan, 1)}, {"input": math.nan}, nothing)
    assert len(verdict.faults) == 3, "no comparison with nan is a pass"


def test_a_model_without_rows_for_its_tokenizer_is_refused(
    base: Path, grown: Path, tmp_path: Path, pass_gate: Passing
) -> None:
    mixed = shutil.copytree(base, tmp_path / "mixed")
    for path in grown.glob("*token*"):
        shutil.copyfile(path, mixed / path.name)
    num_pieces = len(AutoTokenizer.from_pretrained(mixed))
    assert num_pieces > NUM_OLD
    code, _, err = pass_gate(mixed)
    assert code == 2
    assert f"{mixed}: the embedding has {NUM_OLD} rows" in error_line(err)
    assert f"has {num_pieces} pieces" in err


@pytest.mark.parametrize("name", ["max_increase", "max_increase_old", "min_row_rank"])
def test_a_bound_needs_a_baseline_and_a_number(
    name: str, base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(argv_of(model=base, data=data, **{name: 1})) == 2
    assert f"--{name} 1 bounds a comparison; add --baseline" in error_line(capsys.readouterr().err)
    assert evaluate.main(argv_of(model=base, baseline=base, data=data, **{name: "nan"})) == 2
    assert f"--{name} nan bounds nothing" in error_line(capsys.readouterr().err)


def test_missing_directories_are_refused(base: Path, grown: Path, tmp_path: Path, pass_gate: Passing) -> None:
    for flags in ({"model": grown, "baseline": tmp_path / "gone"}, {"model": tmp_path / "gone", "baseline": base}):
        code, out, err = pass_gate(**flags)
        assert (code, out) == (2, "")
        assert f"{tmp_path / 'gone'}: no such directory" in error_line(err)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    code, _, err = pass_gate(grown, data=empty)
    assert (code, "holds no document" in error_line(err)) == (2, True)


def test_a_baseline_that_the_model_did_not_grow_from_is_refused(base: Path, grown: Path, pass_gate: Passing) -> None:
    code, _, err = pass_gate(base, baseline=grown)
    assert code == 2
    assert "in --baseline, but None in --model" in error_line(err)


def without_bos(directory: Path, target: Path) -> Path:
    """A copy of a model directory whose tokenizer puts no BOS before a text."""
    shutil.copytree(directory, target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    layout = json.loads((target / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps(layout | {"post_processor": None}))
    return target


def test_a_document_begins_alike_on_both_sides(
    base: Path, grown: Path, records: list[dict[str, str]], tmp_path: Path, pass_gate: Passing
) -> None:
    """Without BOS a document follows the end of another one, and no first token is had for nothing."""
    bare_grown = without_bos(grown, tmp_path / "bare_grown")
    bare_base = without_bos(base, tmp_path / "bare_base")
    code, _, err = pass_gate(bare_grown)
    assert code == 2
    assert "--model begins a text with ids []" in error_line(err) and "--baseline [1]" in err
    code, out, _ = pass_gate(bare_grown, baseline=bare_base, json=True)
    assert code == 0
    for side, directory in (("model", bare_grown), ("baseline", bare_base)):
        for category, sums in by_hand(directory, records, MAX_LENGTH).items():
            figures = json.loads(out)[side]["categories"][category]
            assert figures["tokens"] == sums["tokens"]
            assert figures["bits_per_byte"] == pytest.approx(sums["nats"] / math.log(2) / sums["bytes"], rel=1e-5)


def test_tokenizers_without_any_first_token_are_refused(
    byte_level_model: Path, tmp_path: Path, pass_gate: Passing
) -> None:
    nothing = shutil.copytree(byte_level_model, tmp_path / "nothing")
    layout = json.loads((nothing / "tokenizer.json").read_text())
    layout["post_processor"] = None
    (nothing / "tokenizer.json").write_text(json.dumps(layout))
    (nothing / "special_tokens_map.json").unlink()
    (nothing / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    code, _, err = pass_gate(nothing, baseline=nothing)
    assert code == 2
    assert "neither tokenizer has a token to begin a text with" in error_line(err)


@pytest.fixture(scope="module")
def byte_level_model(byte_level_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights beside a tokenizer as Llama-3 has it."""
    directory = tmp_path_factory.mktemp("byte_level_model") / "model"
    shutil.copytree(byte_level_tokenizer_dir, directory)
    torch.manual_seed(3)
    vocab_size = len(AutoTokenizer.from_pretrained(directory))
    LlamaForCausalLM(LlamaConfig(**{**TINY_MODEL_CONFIG, "vocab_size": vocab_size})).save_pretrained(directory)
    return directory


def test_byte_level_tokenizers_are_compared_too(
    byte_level_model: Path, tmp_path: Path, pass_gate: Passing, records: list[dict[str, str]]
) -> None:
    copy = shutil.copytree(byte_level_model, tmp_path / "copy")
    code, out, _ = pass_gate(copy, baseline=byte_level_model, json=True)
    result = json.loads(out)
    assert code == 0
    assert result["model"] == result["baseline"]
    expected = by_hand(byte_level_model, [one for one in records if not one["source"]], MAX_LENGTH)
    for category, sums in expected.items():
        figures = result["model"]["categories"][category]
        assert figures["bits_per_byte"] == pytest.approx(sums["nats"] / math.log(2) / sums["bytes"], rel=1e-5)


def test_rows_are_ranked_under_a_byte_level_vocabulary(byte_level_model: Path) -> None:
    """Most pieces, lone bytes among them, as if they were new: their rows set to the mean of what spells them."""
    tokenizer = load_tokenizer(byte_level_model)
    model = AutoModelForCausalLM.from_pretrained(byte_level_model)
    alphabet = {piece: i for piece, i in tokenizer.get_vocab().items() if i < 256}
    new_ids = range(150, 700)
    with torch.no_grad():
        rows = matrices(model)["input"]
        for new_id in new_ids:
            letters = tokenizer.convert_ids_to_tokens(new_id)
            rows[new_id] = rows[[alphabet[letter] for letter in letters]].mean(0)
    ranks = rank_rows(model, letters_only(tokenizer), tokenizer, new_ids)
    texts = [tokenizer.decode([new_id]) for new_id in new_ids]
    assert sum("\ufffd" in text for text in texts) > 3, "parts of characters, which no text spells"
    assert ranks["input"] > 0.995
    assert 0.35 < ranks["output"] < 0.65


def letters_only(tokenizer: Any) -> Any:
    """The same byte-level tokenizer without its merges: every byte a token."""
    from tokenizers import Tokenizer

    layout = json.loads(tokenizer.backend_tokenizer.to_str())
    layout["model"] |= {"merges": [], "ignore_merges": False}
    layout["model"]["vocab"] = {piece: i for piece, i in layout["model"]["vocab"].items() if i < 256}
    return type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(layout)))


def test_one_model_is_in_memory_at_a_time(grown: Path, pass_gate: Passing, monkeypatch: pytest.MonkeyPatch) -> None:
    from colossal_llama import model as model_room

    load_model, earlier = model_room.load_model, []

    def watched(*args: Any, **keywords: Any) -> PreTrainedModel:
        gc.collect()
        assert all(reference() is None for reference in earlier), "the model before is still there"
        loaded = load_model(*args, **keywords)
        earlier.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(model_room, "load_model", watched)
    code, _, _ = pass_gate(grown)
    assert (code, len(earlier)) == (0, 2)


def test_more_pieces_than_are_compared(grown: Path, pass_gate: Passing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_PIECES_COMPARED", 5)
    code, out, _ = pass_gate(grown, json=True)
    assert code == 0
    assert json.loads(out)["gate"]["row_ranks"]["input"] == 1


rows_of_three = st.lists(st.floats(-2, 2, width=16), min_size=3, max_size=3)


@given(st.lists(st.tuples(rows_of_three, st.lists(rows_of_three, min_size=1, max_size=3)), min_size=2, max_size=6))
def test_the_rank_is_that_of_a_loop_over_pairs(pieces: list[tuple[list[float], list[list[float]]]]) -> None:
    new_rows = torch.tensor([row for row, _ in pieces])
    part_rows = [torch.tensor(parts) for _, parts in pieces]
    means = [parts.mean(0) for parts in part_rows]
    total = 0.0
    for one, row in enumerate(new_rows):
        for other, mean in enumerate(means):
            if other == one:
                continue
            if mean.equal(means[one]) or not row.any():
                total += 0.5
                continue
            margin = cosine(row, means[one]) - cosine(row, mean)
            assume(abs(margin) > 1e-5)  # else which is larger is a matter of rounding
            total += margin > 0
    expected = total / len(pieces) / (len(pieces) - 1)
    assert rank_of_own(new_rows, part_rows) == pytest.approx(expected, abs=1e-6)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """0 if one of the two is 0."""
    norms = a.norm().item() * b.norm().item()
    return (a @ b).item() / norms if norms else 0.0
