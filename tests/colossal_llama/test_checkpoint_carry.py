"""A stage goes on where another one, which trained less, stopped: moments, fp32 weights, and nothing left behind."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed import distributed_c10d
from transformers import AutoModelForCausalLM

from colossal_llama.checkpoint import open_checkpoint
from colossal_llama.optimizer_state import load_states
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import TOKENIZER_FILES
from tokenizer_tools.tokenizer_files import read_files

Ranks = Callable[..., list[Any]]
States = dict[str, dict[str, torch.Tensor]]
LR, DECAY, BETAS = 2e-3, 0.1, (0.9, 0.95)
ROWS, LENGTH, STEPS = 2, 32, 2
NEVER_CLIPPED = 1e9

BF16 = {"mixed_precision": "bf16"}
FP32 = {"mixed_precision": "fp32"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {"plugin": "ddp", **FP32},
    "zero2-fp32": {"plugin": "zero2", **FP32},
    "zero2_cpu": {"plugin": "zero2_cpu", **BF16},
    "gemini": {"plugin": "gemini", **BF16},
    "gemini_auto": {"plugin": "gemini_auto", **BF16},
    "3d-zero1": {"plugin": "3d", "zero": 1, **BF16},
    "3d-tp2": {"plugin": "3d", "tp": 2, "zero": 0, **BF16},
    "3d-pp2": {"plugin": "3d", "pp": 2, "zero": 0, **BF16},
    "3d-sp2": {"plugin": "3d", "sp": 2, "zero": 0, **FP32},
}


def batch_of(step: int) -> torch.Tensor:
    """int64 [ROWS, LENGTH]; the same on every rank, so that the mean of the ranks' gradients is that of these rows."""
    return torch.randint(4, 500, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))


def groups_of(model: Any, trains: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Parameter groups of `embeds` or `all`, the rest frozen, and the parameters' names in their order."""
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(trains == "all" or "embed_tokens" in name or "lm_head" in name)
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    matrices = {name: parameter for name, parameter in trained.items() if parameter.dim() == 2}
    vectors = {name: parameter for name, parameter in trained.items() if parameter.dim() == 1}
    groups = [
        {"params": [*matrices.values()], "weight_decay": DECAY},
        {"params": [*vectors.values()], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]], [*matrices, *vectors]


class Stage:
    """A boosted model that trains `embeds` or `all`, from a checkpoint or from a model directory."""

    def __init__(self, layout: dict[str, Any], start: Path, trains: str, with_moments: bool = True) -> None:
        from colossalai.nn.optimizer import HybridAdam

        from colossal_llama import mends, plugins
        from colossal_llama.checkpoint import load_optimizer
        from colossal_llama.config import TrainConfig

        config = TrainConfig(pretrained=start, dataset=[], micro_batch_size=ROWS, gradient_clipping=NEVER_CLIPPED)
        config = replace(config, **layout)
        checkpoint = open_checkpoint(start) if (start / "modeling").is_dir() else None
        source = checkpoint.modeling if checkpoint else start
        base = AutoModelForCausalLM.from_pretrained(source, torch_dtype=plugins.model_dtype(config))
        base.config.use_cache = False
        groups, self.names = groups_of(base.train(), trains)
        self.trained = {name: tuple(base.get_parameter(name).shape) for name in self.names}
        if config.plugin.startswith("gemini"):
            optimizer: Any = HybridAdam(groups, lr=LR, betas=BETAS)
            mends.cast_gradients_to_fp32(optimizer)
        else:
            optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
        num_params = sum(parameter.numel() for parameter in base.parameters())
        plugin = plugins.make_plugin(config, num_params, base.config.hidden_size)
        self.booster, self.model, self.optimizer = plugins.boost(plugin, base, optimizer)
        self.is_pipeline = config.pp > 1
        if checkpoint:
            load_optimizer(checkpoint, self.booster, self.model, self.optimizer, self.trained, with_moments)

    def train(self, first: int) -> list[float]:
        """Losses of STEPS steps from step `first` on, the same on every rank."""
        losses = []
        for step in range(first, first + STEPS):
            ids = batch_of(step)
            if self.is_pipeline:
                batch = iter([{"input_ids": ids, "labels": ids}])
                out = self.booster.execute_pipeline(
                    batch, self.model, lambda outputs, _: outputs.loss, self.optimizer, return_loss=True
                )
                loss = out["loss"]
            else:
                loss = self.model(input_ids=ids, labels=ids).loss
                self.booster.backward(loss, self.optimizer)
            self.optimizer.step()
            self.optimizer.zero_grad()
            found = [None if loss is None else loss.item()] * dist.get_world_size()
            dist.all_gather_object(found, found[0])
            losses.append(next(value for value in found if value is not None))
        return losses

    def save(self, save_dir: Path, step: int) -> Path:
        """A complete checkpoint."""
        from colossal_llama.checkpoint_writer import CheckpointWriter
        from colossal_llama.progress import Progress
        from colossal_llama.weights import model_files

        tokenizer = read_files(save_dir.parent / "tokenizer", TOKENIZER_FILES)
        files = model_files(self.booster, self.model)
        save_dir.mkdir(exist_ok=True)
        writer = CheckpointWriter(
            self.booster, self.model, self.optimizer, self.trained, files, tokenizer, save_dir, keep=0
        )
        writer.begin(Progress(step=step), lambda _: None)
        path = writer.finish()
        assert path is not None
        return path

    def state(self) -> States:
        """Name -> this rank's part of AdamW's state and fp32 weights, as they are in use."""
        from colossal_llama.optimizer_state import trained_tensors

        found: States = {name: {"master": tensor} for name, tensor in self.masters().items()}
        for i, tensor in trained_tensors(self.optimizer).items():
            found.setdefault(self.names[i], {}).update(self.optimizer.optim.state.get(tensor, {}))
        return {
            name: {key: torch.as_tensor(value).detach().clone() for key, value in state.items()}
            for name, state in found.items()
        }

    def masters(self) -> dict[str, torch.Tensor]:
        """Name -> this rank's part of the fp32 weights behind 16-bit ones."""
        from colossal_llama.optimizer_state import master_weights

        masters = master_weights(self.model, self.optimizer)
        return {self.names[i]: tensor for i, tensor in sorted(masters.items())}

    def steps_by_group(self) -> list[set[int]]:
        """Numbers of steps done by the parameters of each group."""
        states = self.optimizer.optim.state
        groups = self.optimizer.optim.param_groups
        return [{int(states.get(p, {}).get("step", 0)) for p in group["params"]} for group in groups]


def files_of(checkpoint: Path) -> States:
    """Name -> state of every parameter in a checkpoint's optimizer files, put together index by index."""
    directory = checkpoint / "optimizer"
    table = json.loads((directory / "parts.json").read_text())
    saved = {path.name: load_file(path) for path in directory.glob("rank-*.safetensors")}
    states: States = {}
    for file, name, dim, start, length, begin, end in table["parts"]:
        shape = table["shapes"][name]
        places = torch.arange(math.prod(shape)).view(shape).narrow(dim, start, length).flatten()[begin:end]
        for kind in ("step", "exp_avg", "exp_avg_sq", "master"):
            value = saved[file].get(f"{name}.{kind}")
            if value is None:
                continue
            if kind == "step":
                states.setdefault(name, {})[kind] = value
            else:
                whole = states.setdefault(name, {}).setdefault(kind, torch.full(shape, math.nan))
                assert whole.view(-1)[places].isnan().all(), "saved twice"
                whole.view(-1)[places] = value
    assert not any(value.isnan().any() for state in states.values() for value in state.values())
    return states


def same_bits(left: States, right: States, names: list[str]) -> bool:
    """Whether both hold the very same values under `names`."""
    return all(
        left[name].keys() == right[name].keys()
        and all(torch.equal(left[name][key].float(), right[name][key].float()) for key in left[name])
        for name in names
    )


@contextmanager
def released() -> Iterator[list[Any]]:
    """A place for what is boosted; at the end it goes, with its process groups, and nothing of it may stay alive."""
    from colossal_llama.cluster import release

    place: list[Any] = []
    num_groups = len(distributed_c10d._world.pg_map)
    yield place
    parts = [part for stage in place for part in (stage.model, stage.optimizer, stage.booster, stage.booster.plugin)]
    left = [weakref.ref(part) for part in [*parts, *(p for stage in place for p in stage.model.parameters())]]
    del parts
    release(place)
    assert [reference() for reference in left] == [None] * len(left)
    assert len(distributed_c10d._world.pg_map) == num_groups


def two_stages(work: Path, layout: str) -> dict[str, Any]:
    """Embeddings, then everything, in one process; what this rank saw."""
    with released() as place:
        place.append(first := Stage(LAYOUTS[layout], work / "model", "embeds"))
        losses = first.train(0)
        state = first.state()
        checkpoint = first.save(work / layout, STEPS)
        del first
    with released() as place:
        place.append(second := Stage(LAYOUTS[layout], checkpoint, "all"))
        carried = second.state()
        steps_by_group = second.steps_by_group()
        losses += second.train(STEPS)
        second.save(work / layout, 2 * STEPS)
        del second
    return {
        "losses": losses,
        "embeds": sorted(state),
        "same bits": same_bits(state, carried, list(state)),
        "fresh": all("exp_avg" not in carried[name] for name in carried.keys() - state.keys()),
        "steps by group": steps_by_group,
    }


def reset_stage(work: Path) -> dict[str, Any]:
    """The second stage of zero2_cpu with a new optimizer."""
    with released() as place:
        checkpoint = work / "zero2_cpu" / f"epoch-0_step-{STEPS}"
        place.append(first := Stage(LAYOUTS["zero2_cpu"], checkpoint, "embeds"))
        kept = first.masters()["lm_head.weight"].clone()
        place.append(stage := Stage(LAYOUTS["zero2_cpu"], checkpoint, "all", with_moments=False))
        found = {name: sorted(state) for name, state in stage.state().items()}
        same = torch.equal(stage.masters()["lm_head.weight"], kept)
        in_16_bit = torch.equal(kept, kept.bfloat16().float())
        del first, stage
    return {"states": found, "same masters": same, "in 16 bit": in_16_bit}


def two_stages_of_every_layout(work: Path) -> dict[str, dict[str, Any]]:
    """One layout after another in one process, as stages follow each other."""
    from colossal_llama.cluster import launch

    with launch(0):
        return {layout: two_stages(work, layout) for layout in LAYOUTS} | {"reset": reset_stage(work)}


@pytest.fixture(scope="module")
def work(tiny_model_dir: Path, tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a tokenizer, and beside them a folder of checkpoints for every layout."""
    directory = tmp_path_factory.mktemp("carry")
    (directory / "model").symlink_to(tiny_model_dir)
    (directory / "tokenizer").symlink_to(tiny_tokenizer_dir)
    return directory


@pytest.fixture(scope="module")
def seen(ranks: Ranks, work: Path) -> list[dict[str, dict[str, Any]]]:
    """What each of two ranks saw in each layout."""
    return ranks(two_stages_of_every_layout, 2, work)


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path) -> tuple[list[float], States, States]:
    """torch alone in fp32: its losses, and its optimizer's state after the first and after the second stage."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    groups, _ = groups_of(model, "all")
    everything, names = groups_of(model, "embeds")[0], {id(p): name for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(everything, lr=LR, betas=BETAS)
    losses, states = [], []
    for step in range(2 * STEPS):
        if step == STEPS:
            embeddings = {id(p) for p in everything[0]["params"]}
            for group in groups:
                joining = [p.requires_grad_() for p in group["params"] if id(p) not in embeddings]
                optimizer.add_param_group({**group, "params": joining})
        loss = model(input_ids=batch_of(step), labels=batch_of(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % STEPS == STEPS - 1:
            states.append({names[id(p)]: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()})
    return losses, states[0], states[1]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference by the norm of `expected`."""
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_go_on_and_losses_are_those_of_torch_alone(
    layout: str, seen: list[dict[str, dict[str, Any]]], reference: tuple[list[float], States, States], work: Path
) -> None:
    losses, *states = reference
    is_fp32 = LAYOUTS[layout]["mixed_precision"] == "fp32"
    for rank in seen:
        assert rank[layout]["losses"] == pytest.approx(losses, rel=1e-5 if is_fp32 else 1e-2)
        assert rank[layout]["same bits"], "a parameter that trained before has lost a bit"
        assert rank[layout]["fresh"], "a parameter that did not train before has moments"
    assert any(rank[layout]["embeds"] for rank in seen)
    # ids are in the order of the names over the whole model: every parameter has its own moments, in full shape
    for step, expected in zip((STEPS, 2 * STEPS), states, strict=True):
        found = files_of(work / layout / f"epoch-0_step-{step}")
        assert found.keys() == expected.keys()
        for name, state in found.items():
            assert state["step"] == expected[name]["step"], name
            # a rounded gradient is off by parts of a hundred, another parameter's by more than one
            tolerance = 1e-3 if is_fp32 else 0.3
            assert relative_error(state["exp_avg"], expected[name]["exp_avg"]) < tolerance, name


def test_fresh_moments_keep_the_fp32_weights(seen: list[dict[str, dict[str, Any]]]) -> None:
    for rank in seen:
        assert {tuple(keys) for keys in rank["reset"]["states"].values()} == {("master",)}
        assert rank["reset"]["same masters"]
        assert not rank["reset"]["in 16 bit"], "the case needs fp32 weights with low bits"


@pytest.mark.parametrize("layout", ["gemini", "gemini_auto"])
def test_gemini_has_one_number_of_steps_a_group(layout: str, seen: list[dict[str, dict[str, Any]]]) -> None:
    """HybridAdam's GPU kernel takes one step for a whole group: the CPU's does not, so losses here cannot tell."""
    groups = [steps for rank in seen for steps in rank[layout]["steps by group"]]
    assert all(len(steps) <= 1 for steps in groups), groups
    assert {0, STEPS} <= set().union(*groups)


def go_on(work: Path, layout: str) -> list[float]:
    """The second stage alone, in a process that has boosted nothing before."""
    from colossal_llama.cluster import launch

    with launch(0):
        stage = Stage(LAYOUTS[layout], work / layout / f"epoch-0_step-{STEPS}", "all")
        losses = stage.train(STEPS)
        stage.save(work / f"{layout}-alone", 2 * STEPS)
        return losses


@pytest.mark.parametrize("layout", ["zero2_cpu", "gemini", "3d-tp2", "3d-pp2"])
def test_second_stage_is_that_of_a_fresh_process(
    layout: str, ranks: Ranks, seen: list[dict[str, dict[str, Any]]], work: Path
) -> None:
    assert ranks(go_on, 2, work, layout) == [rank[layout]["losses"][STEPS:] for rank in seen]
    inside, alone = (work / folder / f"epoch-0_step-{2 * STEPS}" for folder in (layout, f"{layout}-alone"))
    assert same_bits(files_of(inside), files_of(alone), list(files_of(inside)))
    for path in inside.glob("modeling/*.safetensors"):
        assert path.read_bytes() == (alone / "modeling" / path.name).read_bytes()


def save_again(work: Path, moves: list[tuple[str, str, int]]) -> None:
    """(from, to, step): load one layout's checkpoint under another layout and save it there as it is."""
    from colossal_llama.cluster import launch

    with launch(0):
        for before, now, step in moves:
            with released() as place:
                checkpoint = work / before / f"epoch-0_step-{step}"
                place.append(Stage(LAYOUTS[now], checkpoint, "all"))
                place[0].save(work / f"{before}-to-{now}-{dist.get_world_size()}", step)


MOVES = {
    2: [
        ("zero2_cpu", "gemini", 2 * STEPS),
        ("zero2_cpu", "3d-tp2", 2 * STEPS),
        ("3d-tp2", "3d-pp2", 2 * STEPS),
        ("3d-pp2", "3d-zero1", 2 * STEPS),
        ("gemini", "zero2_cpu", 2 * STEPS),
        ("zero2_cpu", "zero2_cpu", STEPS),
        ("gemini", "gemini", STEPS),
        ("3d-tp2", "3d-tp2", STEPS),
    ],
    1: [("gemini", "zero2_cpu", 2 * STEPS), ("zero2_cpu", "gemini", STEPS)],
}


@pytest.mark.parametrize("world_size", MOVES)
def test_another_layout_holds_the_same_bits(
    world_size: int, ranks: Ranks, seen: list[dict[str, dict[str, Any]]], work: Path
) -> None:
    """Also before the first step of a stage, when some parameters have no moments yet."""
    ranks(save_again, world_size, work, MOVES[world_size])
    for before, now, step in MOVES[world_size]:
        source = files_of(work / before / f"epoch-0_step-{step}")
        found = files_of(work / f"{before}-to-{now}-{world_size}" / f"epoch-0_step-{step}")
        assert same_bits(source, found, list(source)), (before, now)
        assert {tuple(found[name]) for name in found.keys() - source.keys()} <= {("master",)}
        num_trained = len(files_of(work / before / f"epoch-0_step-{2 * STEPS}"))
        assert len(found) == num_trained


def save_apart(work: Path) -> str:
    """Save to a folder that each rank has for itself, as on hosts without a common file system."""
    from colossal_llama.cluster import launch

    with launch(0) as cluster:
        folder = work / f"host-{cluster.rank}"
        folder.mkdir()
        (folder / "tokenizer").symlink_to(work / "tokenizer")
        stage = Stage(LAYOUTS["ddp"], work / "model", "embeds")
        stage.train(0)
        with pytest.raises(UserError) as caught:
            stage.save(folder / "run", STEPS)
        return str(caught.value)


def test_folders_that_hosts_do_not_share_are_refused(ranks: Ranks, work: Path) -> None:
    heard = ranks(save_apart, 2, work)
    assert heard[0] == heard[1]
    assert "--save_dir must be on a file system that all hosts share" in heard[0]
    assert not list((work / "host-0" / "run").iterdir())


@pytest.fixture
def small(tmp_path: Path) -> tuple[nn.Module, SimpleNamespace]:
    """A model of two tensors and its optimizer, as ddp wraps it; the weight's state is saved in tmp_path."""
    model = nn.Linear(2, 3)
    state = {"step": torch.tensor(7), "exp_avg": torch.full((6,), 0.5), "exp_avg_sq": torch.full((6,), 0.25)}
    save_file({f"weight.{kind}": value for kind, value in state.items()}, tmp_path / "states.safetensors")
    table = {"shapes": {"weight": [3, 2]}, "parts": [["states.safetensors", "weight", 0, 0, 3, 0, 6]]}
    (tmp_path / "parts.json").write_text(json.dumps(table))
    return model, SimpleNamespace(optim=torch.optim.AdamW([model.bias, model.weight], fused=True))


TRAINED = {"bias": (3,), "weight": (3, 2)}


def test_states_find_their_parameter_by_name(small: tuple[nn.Module, SimpleNamespace], tmp_path: Path) -> None:
    model, optimizer = small
    assert load_states(tmp_path, None, model, optimizer, TRAINED, with_moments=True) == 1
    assert {p: sorted(s) for p, s in optimizer.optim.state.items()} == {model.weight: ["exp_avg", "exp_avg_sq", "step"]}
    with (tmp_path / "states.safetensors").open("r+b") as file:  # what was read must not hang on the file
        file.write(bytes((tmp_path / "states.safetensors").stat().st_size))
    assert optimizer.optim.state[model.weight]["exp_avg"].tolist() == [[0.5, 0.5]] * 3
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.optim.step()
    assert [optimizer.optim.state[p]["step"].item() for p in (model.weight, model.bias)] == [8, 1]


def test_damaged_optimizer_files_are_named(small: tuple[nn.Module, SimpleNamespace], tmp_path: Path) -> None:
    def loading() -> None:
        load_states(tmp_path, None, *small, TRAINED, with_moments=True)

    state = {"step": torch.tensor(7), "exp_avg": torch.full((5,), 0.5), "exp_avg_sq": torch.full((5,), 0.25)}
    save_file({f"weight.{kind}": value for kind, value in state.items()}, tmp_path / "states.safetensors")
    table = json.loads((tmp_path / "parts.json").read_text())
    table["parts"][0][-2:] = [0, 5]
    (tmp_path / "parts.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"holds 5 of 6 values of weight"):
        loading()
    (tmp_path / "states.safetensors").write_bytes((tmp_path / "states.safetensors").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"states\.safetensors: not a readable optimizer file .*damaged"):
        loading()
    (tmp_path / "parts.json").unlink()
    with pytest.raises(UserError, match=r"parts\.json"):
        loading()


def test_a_parameter_of_another_shape_is_refused(small: tuple[nn.Module, SimpleNamespace], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weight is \[3, 2\] there, \[6\] in this model"):
        load_states(tmp_path, None, *small, {"bias": (3,), "weight": (6,)}, with_moments=True)


def test_checkpoint_of_an_older_version_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1, "sizes_bytes": {}}))
    with pytest.raises(UserError, match="checkpoint version 1, .* pass its `modeling` folder to --load_checkpoint"):
        open_checkpoint(tmp_path)
