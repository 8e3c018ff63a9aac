"""Fixtures for every test: real tokenizers, a tiny model, bins made by stage 3, and processes forming a gloo group."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("house", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("house")

LLAMA_TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "model_max_length": 4096,
    "clean_up_tokenization_spaces": False,
}

TINY_MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

CHINESE = (
    "人工智能正在改变世界。研究人员发现，语言模型可以学习新的词汇。",
    "今天天气很好，我们去公园散步，看见许多孩子在草地上玩耍。",
    "这本书的内容非常丰富，值得每一位学生认真阅读和思考。",
    "经济发展需要稳定的社会环境，也需要不断创新的技术。",
)

CHILD_TIMEOUT_SECONDS = 120

# started in the background of a script, or by nohup, this process would ignore Ctrl-C or SIGHUP, and hand that on to
# the commands it tests
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def write_llama_tokenizer(directory: Path, sentencepiece_model: bytes) -> Path:
    """A Llama tokenizer directory around a serialized sentencepiece model."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(sentencepiece_model)
    (directory / "tokenizer_config.json").write_text(json.dumps(LLAMA_TOKENIZER_CONFIG))
    special = {name: LLAMA_TOKENIZER_CONFIG[name] for name in ("bos_token", "eos_token", "unk_token")}
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    return directory


@pytest.fixture(scope="session")
def base_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real tokenizer of 32,000 sentencepiece pieces, as the package mistral-common ships it."""
    import importlib.util

    package = importlib.util.find_spec("mistral_common")
    assert package is not None and package.submodule_search_locations
    model = Path(package.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    return write_llama_tokenizer(tmp_path_factory.mktemp("base") / "tokenizer", model.read_bytes())


@pytest.fixture(scope="session")
def english_texts() -> list[str]:
    """Some forty texts of a page each, the same on every machine: five paragraphs of the licence from each one on."""
    paragraphs = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8").split("\n\n")
    return ["\n\n".join(paragraphs[first : first + 5]).strip() for first in range(len(paragraphs) - 4)]


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, english_texts: list[str]) -> Path:
    """A Llama tokenizer of 512 pieces, trained here on English."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english_texts[:20]),
        model_writer=model,
        model_type="bpe",
        vocab_size=512,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.999,
        max_sentence_length=1 << 20,
        minloglevel=2,
    )
    return write_llama_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer", model.getvalue())


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="session")
def byte_level_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, english_texts: list[str]) -> Path:
    """A byte-level BPE of 700 pieces as Llama-3 has it: only tokenizer.json, its control tokens behind the pieces."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*english_texts[:20], *CHINESE], trainer)
    controls = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
    start = [(controls[0], tokenizer.token_to_id(controls[0]))]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{controls[0]} $A", special_tokens=start),
        ]
    )
    directory = tmp_path_factory.mktemp("byte_level") / "tokenizer"
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": controls[0],
        "eos_token": controls[1],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "special_tokens_map.json").write_text(json.dumps({"bos_token": controls[0], "eos_token": controls[1]}))
    return directory


def write_jsonl(path: Path, records: list[dict[str, str]]) -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """A Llama of 4 layers and 512 pieces with random fp32 weights, as init_model --from_config writes it."""
    from tokenizer_tools import init_model

    directory = tmp_path_factory.mktemp("tiny_model")
    config = directory / "config.json"
    config.write_text(json.dumps(TINY_MODEL_CONFIG))
    argv = ["--from_config", str(config), "--target_tokenizer_path", str(tiny_tokenizer_dir), "--seed", "7"]
    assert init_model.main([*argv, "--target_model_path", str(directory / "model"), "--dtype", "float32"]) == 0
    return directory / "model"


@pytest.fixture(scope="session")
def tiny_bins_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path, english_texts: list[str]) -> Path:
    """Two buckets of rows of 64 tokens in three categories, one of them with masked sources, made by stage 3."""
    from data_tools import prepare_pretrain_dataset

    directory = tmp_path_factory.mktemp("tiny_bins")
    records = [{"source": "", "target": text[:1500], "category": "docs"} for text in english_texts[:12]]
    records += [{"source": "", "target": text, "category": "zh"} for text in CHINESE]
    records += [
        {"source": f"Question {i}: what is {text.split()[0]}?", "target": text[:90], "category": "qa"}
        for i, text in enumerate(english_texts[:20])
    ]
    write_jsonl(directory / "text" / "all.jsonl", records)
    flags = {
        "data_input_dirs": directory / "text",
        "tokenizer_dir": tiny_tokenizer_dir,
        "data_cache_dir": directory / "cache",
        "data_arrow_output_dir": directory / "arrow",
        "max_length": 64,
        "num_spliced_dataset_bins": 2,
    }
    assert prepare_pretrain_dataset.main([part for k, v in flags.items() for part in (f"--{k}", str(v))]) == 0
    return directory / "arrow"


def _child(rank: int, world_size: int, port: int, pipe: Connection, function: Callable[..., Any], args: Any) -> None:
    """One rank: torchrun's environment, then `function(*args)`; its result or its traceback goes back."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)  # what torchrun does by OMP_NUM_THREADS, which torch has read by now
    try:
        pipe.send((True, function(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


@pytest.fixture(scope="session")
def ranks() -> Callable[..., list[Any]]:
    """`ranks(function, world_size, *args)`: run a module-level function in that many processes, results by rank.

    The processes are forked from a server that has imported colossalai once, so a start costs no import.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])

    def run(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        children = [
            context.Process(target=_child, args=(rank, world_size, port, pipes[rank][1], function, args))
            for rank in range(world_size)
        ]
        for child in children:
            child.start()
        for _, sending in pipes:
            sending.close()
        try:
            return [_receive(rank, receiving) for rank, (receiving, _) in enumerate(pipes)]
        finally:
            for child in children:
                child.join(timeout=20)
                child.kill()

    return run


def _receive(rank: int, pipe: Connection) -> Any:
    if not pipe.poll(CHILD_TIMEOUT_SECONDS):
        raise TimeoutError(f"rank {rank} gave no result in {CHILD_TIMEOUT_SECONDS} s")
    succeeded, result = pipe.recv()
    assert succeeded, f"rank {rank} failed:\n{result}"
    return result


@pytest.fixture(scope="session")
def train(ranks: Callable[..., list[Any]]) -> Callable[..., list[dict[str, Any]]]:
    """`train(world_size, save_dir, **flags)`: run train.py itself on that many ranks; the lines of metrics.jsonl."""

    def run(world_size: int, save_dir: Path, **flags: Any) -> list[dict[str, Any]]:
        codes = ranks(run_train, world_size, argv_of(save_dir=save_dir, **flags))
        assert codes == [0] * world_size
        return read_metrics(save_dir)

    return run


def argv_of(**flags: Any) -> list[str]:
    """{"lr": 1e-3, "use_flash_attn": True, "dataset": [a, b]} -> the words of a command line."""
    words: list[str] = []
    for name, value in flags.items():
        if value is True:
            words.append(f"--{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run_train(argv: list[str]) -> int:
    """train.py in this process."""
    import train

    return train.main(argv)


def read_metrics(save_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, one a step."""
    return [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


def read_evaluations(save_dir: Path) -> list[dict[str, Any]]:
    """The lines of evaluations.jsonl: {"step", "eval": {set: figures}}."""
    return [json.loads(line) for line in (save_dir / "evaluations.jsonl").read_text().splitlines()]
