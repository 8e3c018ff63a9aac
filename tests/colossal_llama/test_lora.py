"""Adapters under every plugin that takes them, on disk, read by peft and transformers, and merged into their base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config
from transformers import Qwen2ForCausalLM as Qwen2

from colossal_llama import lora
from colossal_llama.model import load_lora_model, load_model
from tests.colossal_llama.runs import write_adapter
from tests.conftest import argv_of
from tokenizer_tools.command import UserError

SETTINGS = lora.LoraSettings(
    rank=4, alpha=10.0, targets=(), dropout=0.0, modules_to_save=("embed_tokens", "lm_head"), seed=1
)
STEPS, ROWS, LR, DECAY, CLIP = 5, 4, 5e-3, 0.1, 0.5
EMBEDDINGS = {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"}
FP32, BF16 = {"mixed_precision": "fp32"}, {"mixed_precision": "bf16"}


def write_base(directory: Path, tied: bool, dtype: torch.dtype = torch.float32) -> Path:
    """A Llama of random weights, as fresh as a base can be, and large enough for its logits to differ."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(directory)
    return directory


def fresh(base: Path, settings: lora.LoraSettings = SETTINGS, grad_checkpoint: bool = False) -> peft.PeftModel:
    return load_lora_model(base, torch.float32, "sdpa", grad_checkpoint, settings)


def batches() -> list[torch.Tensor]:
    """int64 [ROWS, 24] a step."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(128, (ROWS, 24), generator=generator) for _ in range(STEPS)]


def losses_of(model: torch.nn.Module) -> list[float]:
    """A plain PyTorch loop over what `model` trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=DECAY)
    losses = []
    for ids in batches():
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(trained, CLIP) > CLIP
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=batches()[0]).logits.float()


def save(model: peft.PeftModel, directory: Path) -> Path:
    directory.mkdir()
    write_adapter(model, directory)
    return directory


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[peft.PeftModel, Path]:
    """An adapter after some steps, and its directory; the base lies beside it."""
    directory = tmp_path_factory.mktemp("trained")
    model = fresh(write_base(directory / "base", request.param))
    losses_of(model)
    return model, save(model, directory / "adapter")


def boosted_losses(base: str, adapter: str, argv: list[str]) -> tuple[list[float], list[float], set[torch.dtype]]:
    """(losses, logits after the last step, dtypes of the weights) of a boosted model; rank 0 saves its adapter."""
    import torch.distributed as dist

    from colossal_llama import model, plugins
    from colossal_llama.cluster import launch
    from colossal_llama.config import TrainConfig
    from tokenizer_tools.command import parse_config

    config = parse_config(TrainConfig, argv)
    with launch(0) as cluster:
        torch.manual_seed(cluster.rank)  # the ranks' adapters must be the same nevertheless
        dtype = plugins.model_dtype(config)
        wrapped: Any = model.load_lora_model(Path(base), dtype, "sdpa", config.use_grad_checkpoint, SETTINGS)
        trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
        optimizer: Any = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=DECAY)
        plugin = plugins.make_plugin(config, model.num_parameters(wrapped), 32)
        booster, boosted, optimizer = plugins.boost(plugin, wrapped, optimizer)
        num_rows, losses = ROWS // cluster.world_size, []
        for ids in batches():
            own = ids[cluster.rank * num_rows :][:num_rows]
            loss = boosted(input_ids=own, labels=own).loss
            booster.backward(loss, optimizer)
            if config.plugin == "ddp":
                torch.nn.utils.clip_grad_norm_(boosted.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            mean = loss.detach().float()
            dist.all_reduce(mean)
            losses.append(mean.item() / cluster.world_size)
        bare = boosted.unwrap(unwrap_peft=False)
        if cluster.is_main:
            save(bare, Path(adapter))
        return losses, logits_of(bare).flatten().tolist(), {parameter.dtype for parameter in bare.parameters()}


@pytest.mark.parametrize(
    ("flags", "tied"),
    [
        ({"plugin": "ddp", **FP32}, False),
        ({"plugin": "zero2", "use_grad_checkpoint": True, **FP32}, True),
        ({"plugin": "zero2_cpu", **BF16}, False),
        ({"plugin": "3d", "zero": 0, "use_flash_attn": True, **FP32}, True),
        ({"plugin": "3d", "zero": 2, **BF16}, False),
    ],
    ids=["ddp", "zero2-tied-checkpointed", "zero2_cpu-bf16", "3d-zero0-tied", "3d-zero2-bf16"],
)
def test_losses_are_those_of_a_plain_loop_around_peft(
    flags: dict[str, Any], tied: bool, ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", tied)
    start = save(fresh(base), tmp_path / "start")
    reference = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), start, is_trainable=True)
    if tied:  # peft trains two copies of one matrix
        bare = reference.get_base_model()
        bare.lm_head.modules_to_save["default"].weight = bare.model.embed_tokens.modules_to_save["default"].weight
    expected = losses_of(reference)
    argv = argv_of(pretrained=base, dataset=tmp_path, save_dir=tmp_path / "run", gradient_clipping=CLIP, **flags)
    results = ranks(boosted_losses, 2, str(base), str(tmp_path / "adapter"), argv)
    tolerance = 1e-5 if flags["mixed_precision"] == "fp32" else 2e-2
    for losses, logits, dtypes in results:
        assert losses == pytest.approx(expected, rel=tolerance)
        assert logits == results[0][1], "every rank holds the whole model"
        assert len(dtypes) == 1
    merged = load_model(tmp_path / "adapter", "auto", "sdpa", use_grad_checkpoint=False)
    assert {merged.dtype} == results[0][2]
    in_run = torch.tensor(results[0][1])
    # 16 bit: the sum of a weight and its adapter is rounded once more
    precision = 1e-5 if merged.dtype == torch.float32 else 5e-2
    assert (logits_of(merged).flatten() - in_run).abs().max() < precision * in_run.abs().max()


def test_fresh_adapters_change_nothing_and_only_they_and_the_embeddings_train(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=False)
    model = fresh(base)
    assert torch.equal(logits_of(model), logits_of(LlamaForCausalLM.from_pretrained(base)))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapted = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name for name in trained if "lora_" not in name} == EMBEDDINGS
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained if "lora_" in name} == set(adapted)
    assert len(trained) == 2 + 3 * len(adapted) * 2
    assert {
        parameter.shape[0 if "lora_A" in name else 1] for name, parameter in trained.items() if "lora_" in name
    } == {SETTINGS.rank}


def test_targets_and_modules_can_be_named(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=False)
    model = fresh(base, replace(SETTINGS, targets=("q_proj", "v_proj"), modules_to_save=("norm",), dropout=0.5))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"base_model.model.model.norm.weight"}
    assert len(trained) == 1 + 3 * 2 * 2
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.5}
    none = fresh(base, replace(SETTINGS, modules_to_save=()))
    assert all("lora_" in name for name, parameter in none.named_parameters() if parameter.requires_grad)
    assert "modules_to_save" in json.loads((save(none, tmp_path / "none") / lora.CONFIG).read_text())


def test_one_of_tied_embeddings_stands_for_both(tmp_path: Path) -> None:
    model = fresh(write_base(tmp_path / "base", tied=True), replace(SETTINGS, modules_to_save=("lm_head",)))
    weights = load_file(save(model, tmp_path / "adapter") / lora.WEIGHTS)
    assert weights.keys() >= EMBEDDINGS
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.get_output_embeddings().weight.requires_grad


def test_first_values_depend_on_the_seed_alone(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=False)
    torch.manual_seed(1)
    first = fresh(base).state_dict()
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    again, other = fresh(base).state_dict(), fresh(base, replace(SETTINGS, seed=2)).state_dict()
    assert torch.equal(torch.rand(3), expected), "the run's own draws go on as if nothing had been drawn"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_checkpointing_with_frozen_embeddings_changes_no_loss(tmp_path: Path) -> None:
    base, frozen = write_base(tmp_path / "base", tied=False), replace(SETTINGS, modules_to_save=())
    plain = losses_of(fresh(base, frozen))
    assert losses_of(fresh(base, frozen, grad_checkpoint=True)) == plain
    assert plain != [plain[0]] * STEPS


def test_saved_adapter_fills_a_fresh_model_bit_for_bit(trained: tuple[peft.PeftModel, Path]) -> None:
    model, directory = trained
    assert lora.is_adapter(directory)
    assert not lora.is_adapter(directory.parent / "base")
    assert {path.name for path in directory.iterdir()} == {lora.CONFIG, lora.WEIGHTS}
    again, state = fresh(directory).state_dict(), model.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert fresh(directory).peft_config["default"].inference_mode is False, "or it would not train"


def test_peft_and_transformers_read_the_directory(trained: tuple[peft.PeftModel, Path]) -> None:
    model, directory = trained
    assert json.loads((directory / lora.CONFIG).read_text())["base_model_name_or_path"] == str(
        directory.parent / "base"
    )
    expected = logits_of(model)
    for read in (AutoModelForCausalLM, peft.AutoPeftModelForCausalLM):
        assert torch.equal(logits_of(read.from_pretrained(directory)), expected)


def test_file_is_the_same_every_time(trained: tuple[peft.PeftModel, Path], tmp_path: Path) -> None:
    model, directory = trained
    again = save(fresh(directory), tmp_path / "again")
    for path in directory.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    config = json.loads((directory / lora.CONFIG).read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["inference_mode"] is True, "who loads it wants no gradients"


def test_merged_weights_are_base_plus_scaled_product(trained: tuple[peft.PeftModel, Path]) -> None:
    model, directory = trained
    merged = load_model(directory, "auto", "sdpa", use_grad_checkpoint=False)
    assert type(merged) is LlamaForCausalLM
    assert merged.training
    base, adapter = load_file(directory.parent / "base" / "model.safetensors"), load_file(directory / lora.WEIGHTS)
    for name, weight in merged.state_dict().items():
        prefix = "base_model.model." + name.removesuffix(".weight")
        if f"{prefix}.lora_A.weight" in adapter:
            product = adapter[f"{prefix}.lora_B.weight"].double() @ adapter[f"{prefix}.lora_A.weight"].double()
            expected = base[name].double() + product * (SETTINGS.alpha / SETTINGS.rank)
            assert product.abs().max() > 1e-3
            torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(weight, adapter.get(f"{prefix}.weight", base.get(name)))
    torch.testing.assert_close(logits_of(merged), logits_of(model), rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not hasattr(merged, "peft_config"), "a later wrap would make a second adapter of it"


def test_merging_in_place_is_merging_from_the_file(tmp_path: Path) -> None:
    """In 16 bit, where a product that is rounded before it is added up shows."""
    base = write_base(tmp_path / "base", tied=True)
    model = load_lora_model(base, torch.bfloat16, "sdpa", use_grad_checkpoint=False, settings=SETTINGS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}, "ZeRO takes one dtype only"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    merged = load_model(save(model, tmp_path / "adapter"), "auto", "sdpa", use_grad_checkpoint=False).state_dict()
    in_place = lora.merge_in_place(model).state_dict()
    assert in_place.keys() == merged.keys()
    assert all(torch.equal(in_place[name], merged[name]) for name in merged)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_merge_rounds_once(saved: torch.dtype, trained: tuple[peft.PeftModel, Path], tmp_path: Path) -> None:
    """`auto` is the adapter's dtype, not the base's; the sum itself is one of fp32, whatever the dtype."""
    _, directory = trained
    copy = shutil.copytree(directory, tmp_path / "adapter")
    adapter = {name: tensor.to(saved) for name, tensor in load_file(copy / lora.WEIGHTS).items()}
    save_file(adapter, copy / lora.WEIGHTS)
    for dtype in ("auto", torch.bfloat16):
        merged = load_model(copy, dtype, "sdpa", use_grad_checkpoint=False)
        assert {parameter.dtype for parameter in merged.parameters()} == {saved if dtype == "auto" else torch.bfloat16}
        base = load_file(directory.parent / "base" / "model.safetensors")
        prefix = "model.layers.1.mlp.up_proj"
        factors = [adapter[f"base_model.model.{prefix}.lora_{name}.weight"].float() for name in "BA"]
        own = base[f"{prefix}.weight"].to(merged.dtype).float()
        expected = (own + factors[0] @ factors[1] * (SETTINGS.alpha / SETTINGS.rank)).to(merged.dtype)
        assert torch.equal(merged.get_submodule(prefix).weight, expected)


def test_merged_model_is_saved_as_any_other(trained: tuple[peft.PeftModel, Path], tmp_path: Path) -> None:
    _, directory = trained
    merged = load_model(directory, "auto", "sdpa", use_grad_checkpoint=False)
    merged.save_pretrained(tmp_path / "merged")
    base = load_file(directory.parent / "base" / "model.safetensors")
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == base.keys(), "tied ones once"
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits_of(reloaded), logits_of(merged))
    assert reloaded.config.tie_word_embeddings == merged.config.tie_word_embeddings


def test_biases_of_qwen2_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    base: PreTrainedModel = Qwen2(
        Qwen2Config(
            **sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, sliding_window=None
        )
    )
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    base.save_pretrained(tmp_path / "base")
    model = fresh(tmp_path / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    merged = load_model(save(model, tmp_path / "adapter"), "auto", "sdpa", use_grad_checkpoint=False)
    ids = batches()[0] % 64
    with torch.no_grad():
        ours, theirs = merged.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits
        assert not torch.allclose(ours, base.eval()(input_ids=ids).logits, atol=1e-2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"targets": ("q_proj", "query")},
            r"--lora_targets query: no linear layer of that name; there are down_proj, ",
        ),
        ({"targets": ("lm_head",)}, "--lora_targets lm_head: no linear layer"),
        ({"modules_to_save": ("wte",)}, "--lora_modules_to_save wte: the model has no module of that name; there are "),
    ],
)
def test_unknown_names_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fresh(write_base(tmp_path / "base", tied=False), replace(SETTINGS, **change))


@pytest.mark.parametrize(
    "change", [{"rank": 8}, {"targets": ("q_proj",)}, {"modules_to_save": ()}], ids=["rank", "targets", "modules"]
)
def test_adapter_of_other_settings_is_refused(change: dict[str, Any], trained: tuple[Any, Path]) -> None:
    with pytest.raises(UserError, match=r"adapter and the one asked for differ in \d+ tensor\(s\): .*--lora_\* flags"):
        fresh(trained[1], replace(SETTINGS, **change))


def set_config(directory: Path, **values: Any) -> None:
    path = directory / lora.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def lose_the_base(directory: Path) -> None:
    set_config(directory, base_model_name_or_path=str(directory / "nowhere"))


def name_no_base(directory: Path) -> None:
    set_config(directory, base_model_name_or_path=None)


def make_it_dora(directory: Path) -> None:
    set_config(directory, use_dora=True)


def change_the_targets(directory: Path) -> None:
    set_config(directory, target_modules=["query_key_value"])


def cut_the_weights(directory: Path) -> None:
    content = (directory / lora.WEIGHTS).read_bytes()
    (directory / lora.WEIGHTS).write_bytes(content[: len(content) // 2])


def leave_a_pickle_only(directory: Path) -> None:
    torch.save(load_file(directory / lora.WEIGHTS), directory / "adapter_model.bin")
    (directory / lora.WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lose_the_base,
            "an adapter of .*nowhere, which is no directory here; put that model, or a link to it, back there",
        ),
        (name_no_base, "an adapter of None, which is no directory here"),
        (make_it_dora, "not a plain LoRA adapter; merge it with the tool that made it"),
        (change_the_targets, "does not fit its base .*query_key_value.*correct base_model_name_or_path"),
        (cut_the_weights, "not a readable adapter"),
        (leave_a_pickle_only, "not a readable adapter"),
    ],
)
def test_broken_adapter_is_refused(
    damage: Callable[[Path], None], message: str, trained: tuple[peft.PeftModel, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(trained[1], tmp_path / "adapter")
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        load_model(copy, "auto", "sdpa", use_grad_checkpoint=False)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)
