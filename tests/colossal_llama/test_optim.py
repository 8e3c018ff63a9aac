"""Parameter groups: who decays, who has which learning rate, and that Booster leaves them as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.config import TrainConfig
from colossal_llama.model import freeze_non_embeddings
from colossal_llama.optim import make_optimizer, parameter_groups, trained_shapes
from tests.colossal_llama.runs import weights_of

LR, EMBEDS_LR, DECAY = 1e-2, 3e-3, 0.3


def llama(**changes: Any) -> LlamaForCausalLM:
    """Two layers whose attention has biases."""
    torch.manual_seed(3)
    settings = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "attention_bias": True,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes)))


def named(model: LlamaForCausalLM, groups: list[dict[str, Any]]) -> list[tuple[set[str], float, float, bool]]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ({name_of[id(p)] for p in group["params"]}, group["lr"], group["weight_decay"], group["is_embedding"])
        for group in groups
    ]


def sorted_out(model: LlamaForCausalLM) -> tuple[set[str], set[str], set[str]]:
    """Names of matrices, embeddings, and norms and biases, by nothing but the names."""
    names = {name for name, _ in model.named_parameters()}
    embeddings = {name for name in names if "embed_tokens" in name or "lm_head" in name}
    vectors = {name for name in names if "norm" in name or name.endswith("bias")}
    assert len(vectors) == 2 * (2 + 4) + 1
    return names - embeddings - vectors, embeddings, vectors


def test_norms_and_biases_do_not_decay() -> None:
    model = llama()
    matrices, embeddings, vectors = sorted_out(model)
    assert named(model, parameter_groups(model, LR, LR, DECAY)) == [
        (matrices | embeddings, LR, DECAY, False),
        (vectors, LR, 0.0, False),
    ]


def test_embeddings_are_apart_if_their_learning_rate_is() -> None:
    model = llama()
    matrices, embeddings, vectors = sorted_out(model)
    assert named(model, parameter_groups(model, LR, EMBEDS_LR, DECAY)) == [
        (matrices, LR, DECAY, False),
        (vectors, LR, 0.0, False),
        (embeddings, EMBEDS_LR, DECAY, True),
    ]


def test_tied_embeddings_are_one_parameter() -> None:
    model = llama(tie_word_embeddings=True)
    *_, (embeddings, lr, decay, is_embedding) = named(model, parameter_groups(model, LR, EMBEDS_LR, DECAY))
    assert (embeddings, lr, decay, is_embedding) == ({"model.embed_tokens.weight"}, EMBEDS_LR, DECAY, True)


@pytest.mark.parametrize(("decays", "decay"), [(True, DECAY), (False, 0.0)])
def test_frozen_parameters_are_left_out_and_no_group_is_empty(decays: bool, decay: float) -> None:
    model = llama()
    freeze_non_embeddings(model)
    embeddings = {"model.embed_tokens.weight", "lm_head.weight"}
    assert named(model, parameter_groups(model, LR, LR, DECAY, decays)) == [(embeddings, LR, decay, False)]
    assert named(model, parameter_groups(model, LR, EMBEDS_LR, DECAY, decays)) == [(embeddings, EMBEDS_LR, decay, True)]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert parameter_groups(model, LR, LR, DECAY) == []


def test_embeddings_without_decay_join_the_norms() -> None:
    model = llama()
    matrices, embeddings, vectors = sorted_out(model)
    assert named(model, parameter_groups(model, LR, LR, DECAY, decay_embeddings=False)) == [
        (matrices, LR, DECAY, False),
        (embeddings | vectors, LR, 0.0, False),
    ]


def test_nothing_is_split_where_nothing_decays() -> None:
    model = llama()
    ((names, *settings),) = named(model, parameter_groups(model, LR, LR, 0.0))
    assert (names, settings) == ({name for name, _ in model.named_parameters()}, [LR, 0.0, False])


def test_steps_are_those_of_adamw_with_groups_made_by_hand() -> None:
    ours, theirs = llama(), llama()
    optimizer = make_optimizer(ours, LR, DECAY, for_gemini=False, embeds_lr=EMBEDS_LR)
    matrices, embeddings, vectors = sorted_out(theirs)
    parameters = dict(theirs.named_parameters())
    by_hand = [
        {"params": [parameters[name] for name in sorted(matrices)], "lr": LR, "weight_decay": DECAY},
        {"params": [parameters[name] for name in sorted(embeddings)], "lr": EMBEDS_LR, "weight_decay": DECAY},
        {"params": [parameters[name] for name in sorted(vectors)], "lr": LR, "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(by_hand, betas=(0.9, 0.95), foreach=False)
    for _ in range(3):
        for name, parameter in ours.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            parameters[name].grad = parameter.grad.clone()
        optimizer.step()
        reference.step()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, parameters[name], rtol=1e-5, atol=1e-6)


def test_names_are_in_the_order_of_the_groups() -> None:
    model = llama(tie_word_embeddings=True)
    optimizer = make_optimizer(model, LR, DECAY, for_gemini=False, embeds_lr=EMBEDS_LR)
    shapes = trained_shapes(model, optimizer)
    ids = [index for group in optimizer.state_dict()["param_groups"] for index in group["params"]]
    names, own = list(shapes), dict(model.named_parameters())
    flat = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(names) == sorted(own) and ids == list(range(len(names)))
    assert all(own[names[index]] is flat[index] for index in ids)
    assert all(shapes[name] == tuple(own[name].shape) for name in names)
    assert names[-1] == "model.embed_tokens.weight" and "norm" in names[-2]


PLUGINS: list[dict[str, Any]] = [
    {"plugin": "ddp"},
    {"plugin": "zero2"},
    {"plugin": "gemini"},
    {"plugin": "3d", "zero": 1},
    {"plugin": "3d", "tp": 2, "zero": 0},
    {"plugin": "3d", "pp": 2, "zero": 1},
]


@pytest.fixture(scope="module")
def moved(ranks: Callable[..., list[Any]], tmp_path_factory: pytest.TempPathFactory) -> list[list[set[str]]]:
    """For every plugin: the parameters that moved in each of four steps, see `steps_under`."""
    return ranks(steps_under_plugins, 2, tmp_path_factory.mktemp("moved"))[0]


def steps_under_plugins(directory: Path) -> list[list[set[str]]]:
    from colossal_llama.cluster import launch

    with launch(0):
        return [steps_under(flags, directory / str(index)) for index, flags in enumerate(PLUGINS)]


def steps_under(flags: dict[str, Any], directory: Path) -> list[set[str]]:
    """What moves in four steps, one learning rate of two being 0; the optimizer is loaded for the last two."""
    from colossal_llama import plugins

    config = TrainConfig(pretrained=directory, dataset=[directory], micro_batch_size=2, mixed_precision="bf16", **flags)
    files, states, moved = directory / "optimizer", [], []
    for loaded in (False, True):
        model = llama().to(plugins.model_dtype(config))
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        optimizer = make_optimizer(model, 0.1, DECAY, flags["plugin"] == "gemini", embeds_lr=0.2)
        plugin = plugins.make_plugin(config, sum(p.numel() for p in model.parameters()), 16)
        booster, boosted, taker = plugins.boost(plugin, model, optimizer)
        if loaded:
            booster.load_optimizer(taker, str(files))
        for index, (lr, embeds_lr) in enumerate([(0.1, 0.0), (0.0, 0.1)]):
            for group in taker.param_groups:
                group["lr"] = embeds_lr if group["is_embedding"] else lr
            step(booster, boosted, taker)
            weights = directory / f"{loaded}-{index}"
            booster.save_model(boosted, str(weights), shard=True, use_safetensors=True)
            dist.barrier()  # rank 0 writes alone
            states.append(weights_of(weights))
            moved.append({name for name in states[-1] if not torch.equal(states[-1][name], states[-2][name])})
        if not loaded:
            booster.save_optimizer(taker, str(files), shard=True)
            dist.barrier()
    return moved


def step(booster: Any, model: Any, optimizer: Any) -> None:
    ids = torch.arange(32).view(2, 16) % 31

    def loss(outputs: Any, _: Any = None) -> torch.Tensor:
        return outputs.logits.float().square().mean()

    if getattr(booster.plugin, "pp_size", 1) > 1:
        booster.execute_pipeline(iter([{"input_ids": ids}]), model, loss, optimizer, return_loss=False)
    else:
        booster.backward(loss(model(input_ids=ids)), optimizer)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("index", range(len(PLUGINS)), ids=["-".join(map(str, flags.values())) for flags in PLUGINS])
def test_under_booster_the_embeddings_have_a_learning_rate_of_their_own(
    index: int, moved: list[list[set[str]]]
) -> None:
    """Also with the optimizer's files loaded: each step moves just what has a learning rate."""
    matrices, embeddings, vectors = sorted_out(llama())
    rest = matrices | {name for name in vectors if not name.endswith("k_proj.bias")}  # no gradient: softmax drops it
    for before, after in (moved[index][:2], moved[index][2:]):
        assert before - {name for name in vectors if name.endswith("k_proj.bias")} == rest
        assert after == embeddings
