"""A boosted model whose output head gives the loss, and whose old rows stay, against transformers and torch's AdamW."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from colossal_llama.head import LossHead, attach_loss_head, fits_loss_head, mask_old_rows
from colossal_llama.loss import next_token_targets
from tokenizer_tools.command import UserError

Ranks = Callable[..., list[Any]]
ROWS, LENGTH, VOCABULARY, FIRST_NEW = 4, 16, 48, 40
ADAM = {"lr": 2e-2, "betas": (0.9, 0.95), "eps": 1e-2, "weight_decay": 0.0}  # eps: a gradient's scale must show
TIED = {"llama": False, "mistral": False, "qwen2": True}


def tiny_model(family: str, tied: bool = False, **more: Any) -> PreTrainedModel:
    """Two layers with random weights, the same on every rank and every call."""
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=0,
        tie_word_embeddings=tied,
        use_cache=False,
        **more,
    )
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and labels [rows, length]; one row carries no label."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels = input_ids.clone()
    labels[torch.rand(ROWS, LENGTH, generator=generator) < 0.3] = -100
    labels[1] = -100
    return input_ids, labels


def plain_nats(model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p [rows, length] from transformers' logits."""
    logits = model(input_ids=input_ids).logits.float()
    flat = F.cross_entropy(logits.flatten(0, 1), next_token_targets(labels).flatten(), reduction="none")
    return flat.view_as(labels)


def plain_step(model: PreTrainedModel, first_trained_row: int) -> float:
    """One step of torch's AdamW over the whole batch, old rows without gradient; the mean loss."""
    input_ids, labels = batch()
    nats = plain_nats(model, input_ids, labels)
    loss = nats.sum() / (next_token_targets(labels) != -100).sum()
    loss.backward()
    for parameter in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        parameter.grad[:first_trained_row] = 0
    torch.optim.AdamW(model.parameters(), **ADAM).step()
    return loss.item()


def boost(flags: dict[str, Any], family: str) -> tuple[Any, Any, Any, Any]:
    """(booster, model, optimizer, layout) of a tiny model."""
    from colossalai.nn.optimizer import HybridAdam

    from colossal_llama import plugins
    from colossal_llama.config import TrainConfig

    config = TrainConfig(
        pretrained=Path(), dataset=[], gradient_clipping=0, micro_batch_size=2, accumulation_steps=2, **flags
    )
    model = tiny_model(family, TIED[family]).to(plugins.model_dtype(config))
    plugin = plugins.make_plugin(config, sum(parameter.numel() for parameter in model.parameters()), 32)
    make = HybridAdam if config.plugin == "gemini" else torch.optim.AdamW
    booster, boosted, optimizer = plugins.boost(plugin, model, make(model.parameters(), **ADAM))
    return booster, boosted, optimizer, plugins.layout_of(plugin)


def boosted_step(flags: dict[str, Any], family: str, first_trained_row: int, save_dir: Path) -> float:
    """The same step through Booster and the loss head, the model saved; this rank's share of the mean loss."""
    booster, boosted, optimizer, layout = boost(flags, family)
    head = attach_loss_head(boosted, layout.tp_group, first_trained_row)
    if first_trained_row:
        mask_old_rows(boosted, first_trained_row)
    loss_sum, nats_sum = run(booster, boosted, optimizer, head, layout)
    assert loss_sum == pytest.approx(nats_sum, rel=1e-6)
    optimizer.step()
    booster.save_model(boosted, str(save_dir), shard=True)  # zero2 cannot write tied weights as safetensors
    return loss_sum * layout.owns_loss


def run(booster: Any, model: Any, optimizer: Any, head: LossHead | None, layout: Any) -> tuple[float, float]:
    """Forward and backward over this rank's rows, pass by pass; the sums of losses and of scores, over all tokens."""
    from colossalai.booster.plugin import HybridParallelPlugin, TorchDDPPlugin

    input_ids, labels = batch()
    num_tokens = (next_token_targets(labels) != -100).sum().item()
    own = slice(layout.dp_rank * ROWS // layout.dp_size, (layout.dp_rank + 1) * ROWS // layout.dp_size)
    passes = list(zip(input_ids[own].split(1), labels[own].split(1), strict=True))
    is_pipeline = getattr(booster.plugin, "pp_size", 1) > 1
    if is_pipeline:
        passes = list(zip(input_ids.split(2), labels.split(2), strict=True))
    if head is not None:
        head.expect([next_token_targets(one, layout.sequence_rank, layout.sequence_size) for _, one in passes])
    scale, losses = layout.num_averaged / num_tokens, []

    def criterion(outputs: Any, _: Any = None) -> torch.Tensor:
        assert outputs.logits.dim() == 0 and outputs.logits.dtype is torch.float32
        losses.append(outputs.logits.item())
        return outputs.logits * scale * (len(passes) if is_pipeline else 1)

    if is_pipeline:
        booster.execute_pipeline(iter([{"input_ids": input_ids}]), model, criterion, optimizer)
    else:
        sums_before_it_reduces = isinstance(booster.plugin, HybridParallelPlugin | TorchDDPPlugin)
        for index, (ids, _) in enumerate(passes):
            is_last = index == len(passes) - 1
            wait = booster.no_sync(model, optimizer) if sums_before_it_reduces and not is_last else nullcontext()
            with wait:
                booster.backward(criterion(model(input_ids=ids)), optimizer)
    scores = [] if head is None else head.take()
    assert all(one.correct is None for one in scores)
    return sum(losses) / num_tokens, sum(one.nats.sum().item() for one in scores) / num_tokens


def boosted_steps(flags: dict[str, Any], families: list[str], first_trained_row: int, directory: Path) -> list[float]:
    """`boosted_step` of one family after the other; the mean losses' shares."""
    from colossal_llama.cluster import launch

    with launch(seed=0):
        return [boosted_step(flags, family, first_trained_row, directory / family) for family in families]


FP32 = {"plugin": "3d", "zero": 0, "mixed_precision": "fp32"}
CASES = {
    "ddp": (2, {"plugin": "ddp", "mixed_precision": "fp32"}, ["qwen2"]),
    "zero2": (2, {"plugin": "zero2", "mixed_precision": "fp32"}, ["llama", "qwen2"]),
    "gemini": (2, {"plugin": "gemini", "mixed_precision": "bf16"}, ["llama", "qwen2"]),
    "tp2": (2, {**FP32, "tp": 2}, ["llama", "mistral", "qwen2"]),
    "pp2": (2, {**FP32, "pp": 2}, ["llama", "mistral", "qwen2"]),
    "split_gather": (2, {**FP32, "tp": 2, "sp": 2, "sp_mode": "split_gather"}, ["llama"]),
    "all_to_all": (2, {**FP32, "sp": 2, "sp_mode": "all_to_all"}, ["llama"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_plain_pytorch_and_old_rows_keep_every_bit(name: str, ranks: Ranks, tmp_path: Path) -> None:
    world_size, flags, families = CASES[name]
    first_trained_row = 0 if name == "all_to_all" else FIRST_NEW
    shares = ranks(boosted_steps, world_size, flags, families, first_trained_row, tmp_path)
    is_bf16 = flags["mixed_precision"] == "bf16"
    for index, family in enumerate(families):
        model = tiny_model(family, TIED[family])
        if is_bf16:
            model = model.bfloat16().float()  # the values from which the boosted model starts
        start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        loss = plain_step(model, first_trained_row)
        assert sum(share[index] for share in shares) == pytest.approx(loss, rel=1e-2 if is_bf16 else 1e-5)
        saved = {}
        for path in (tmp_path / family).glob("*.bin"):
            saved |= torch.load(path, weights_only=True)
        assert {*start} - {*saved} <= ({"lm_head.weight"} if TIED[family] else set())
        for key in saved:
            expected = model.state_dict()[key]
            moved, expected_move = saved[key].float() - start[key], expected - start[key]
            error, rounding = (moved - expected_move).norm(), 2**-8 * expected.norm() if is_bf16 else 0
            assert error < (5e-2 if is_bf16 else 1e-4) * expected_move.norm() + rounding, (family, key)
            if key in ("model.embed_tokens.weight", "lm_head.weight"):
                assert saved[key][:first_trained_row].float().equal(start[key][:first_trained_row])
                assert moved.any(dim=1).equal(expected_move.any(dim=1))


@pytest.mark.parametrize("plugin", ["zero2", "gemini"])
def test_evaluation_also_tells_what_was_predicted_right(plugin: str, ranks: Ranks) -> None:
    precision = "bf16" if plugin == "gemini" else "fp32"
    (result,) = ranks(scores_in_evaluation, 1, {"plugin": plugin, "mixed_precision": precision})
    model = tiny_model("llama").eval()
    input_ids, labels = batch()
    with torch.no_grad():
        nats, logits = plain_nats(model, input_ids, labels), model(input_ids=input_ids).logits
    tolerance = 5e-2 if plugin == "gemini" else 1e-5
    torch.testing.assert_close(torch.from_numpy(result["nats"]), nats, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.from_numpy(result["logits"]), logits, rtol=tolerance, atol=tolerance)
    if plugin == "zero2":  # in bf16 the likeliest of two close ones may be another
        assert torch.from_numpy(result["correct"]).equal(logits.argmax(-1) == next_token_targets(labels))
    assert result["correct"].any()


def scores_in_evaluation(flags: dict[str, Any]) -> dict[str, Any]:
    """Scores of the batch in evaluation mode, and plain logits from the same boosted model."""
    from colossal_llama.cluster import launch

    with launch(seed=0):
        booster, boosted, optimizer, layout = boost(flags, "llama")
        head = attach_loss_head(boosted, layout.tp_group)
        assert head is not None
        run(booster, boosted, optimizer, head, layout)  # gemini must have trained before it may evaluate
        input_ids, labels = batch()
        boosted.eval()
        with torch.no_grad():
            head.expect([next_token_targets(labels)])
            boosted(input_ids=input_ids)
            (scores,) = head.take()
            logits = boosted(input_ids=input_ids).logits
        assert scores.correct is not None
        tensors = {"nats": scores.nats, "correct": scores.correct, "logits": logits.float()}
        return {name: tensor.numpy() for name, tensor in tensors.items()}


FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "mixtral", "phi3", "olmo2", "gemma", "gemma2", "cohere", "granite"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_fits_gives_its_own_loss_and_no_other_is_taken(family: str) -> None:
    more = {"logits_scaling": 4.0} if family == "granite" else {}
    model = tiny_model(family, **more)
    input_ids, labels = batch()
    nats = plain_nats(model, input_ids, labels).detach()
    if family in ("gemma2", "cohere", "granite"):
        assert not fits_loss_head(model.config)
        with pytest.raises(UserError, match=rf"^a {family} model: scales or caps its logits"):
            attach_loss_head(model)
        return
    head = attach_loss_head(model)
    assert head is not None
    head.expect([next_token_targets(labels)])
    loss_sum = model(input_ids=input_ids).logits
    assert loss_sum.item() == pytest.approx(nats.sum().item(), rel=1e-5)
    (scores,) = head.take()
    torch.testing.assert_close(scores.nats, nats)


@pytest.mark.parametrize("family", ["cohere2", "recurrent_gemma"])
def test_relatives_of_these_do_not_fit_either(family: str) -> None:
    assert not fits_loss_head(AutoConfig.for_model(family))


def test_without_targets_the_head_gives_logits() -> None:
    model = tiny_model("llama")
    input_ids, _ = batch()
    expected = model(input_ids=input_ids).logits
    head = attach_loss_head(model)
    assert head is not None
    assert model(input_ids=input_ids).logits.equal(expected)
    assert head.take() == []


def test_a_head_with_a_bias_or_an_adapter_is_refused() -> None:
    model = tiny_model("llama")
    model.set_output_embeddings(nn.Linear(32, VOCABULARY, bias=True))
    with pytest.raises(UserError, match="output head is more than one matrix; train without an adapter or a bias"):
        attach_loss_head(model)


def test_a_head_of_another_size_than_the_vocabulary_is_our_own_fault() -> None:
    model = tiny_model("llama")
    model.set_output_embeddings(nn.Linear(32, VOCABULARY + 16, bias=False))
    with pytest.raises(RuntimeError, match="holds 64 rows on each of 1 ranks, which is not the vocabulary of 48"):
        attach_loss_head(model)


def test_an_announced_pass_that_did_not_take_place_is_noticed() -> None:
    model = tiny_model("llama")
    input_ids, labels = batch()
    head = attach_loss_head(model)
    assert head is not None
    head.expect([next_token_targets(labels)] * 2)
    model(input_ids=input_ids)
    with pytest.raises(RuntimeError, match="1 announced forward passes did not reach the output head"):
        head.take()


def test_adapters_beside_the_head_change_nothing_about_it() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    input_ids, labels = batch()
    nats = plain_nats(model, input_ids, labels)
    head = attach_loss_head(model)
    assert head is not None
    head.expect([next_token_targets(labels)])
    assert model(input_ids=input_ids).logits.item() == pytest.approx(nats.sum().item(), rel=1e-5)
