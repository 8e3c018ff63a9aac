"""LoRA through peft: a model comes in; it goes out with low-rank adapters, and with them merged into its weights.

On disk an adapter is peft's own directory, `adapter_config.json` with the base model's path and
`adapter_model.safetensors` with the adapters and the modules that train in full; no pickles are written or read.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"  # peft's own name of the only adapter
LONGEST_LIST = 6  # names in a message
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LoraSettings:
    """What the --lora_* flags say."""

    rank: int
    alpha: float
    """The adapters' product is scaled by alpha / rank."""
    targets: tuple[str, ...]
    """Last names of the linear layers to adapt; none for all of the decoder blocks."""
    dropout: float
    modules_to_save: tuple[str, ...]
    """Last names of modules that train in full. Of tied embeddings one stands for both."""
    seed: int
    """Of the adapters' first values, which must be the same on every rank."""


def wrap(model: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """`model` with fresh adapters, which change nothing yet, in its own dtype; only they and modules_to_save train.

    The model was loaded from the directory in `model.name_or_path`, which becomes the adapter's base.
    Raises UserError if it has no module of a name in `settings`.
    """
    from peft import LoraConfig

    targets, whole = _targets(model, settings), _modules_to_save(model, settings)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        modules_to_save=whole or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        wrapped = _wrap(model, config, in_fp32=False)  # ZeRO takes one dtype only
    for name, module in wrapped.named_modules():
        if name.rpartition(".")[2] in whole:
            module.requires_grad_(True)
    return wrapped


def _wrap(model: PreTrainedModel, config: LoraConfig, in_fp32: bool) -> PeftModel:
    """Adapters on `model`, in fp32 or in the model's dtype; the modules to save stay what they are.

    peft itself would train copies of them beside the frozen originals: memory for two embeddings, an untied output
    matrix, and a wrapper that shardformer's policies do not know.
    """
    from peft import get_peft_model

    whole, config.modules_to_save = config.modules_to_save, None
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=in_fp32)
    config.modules_to_save = whole
    return wrapped


def _targets(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    for name in settings.targets:
        if name not in linear:
            raise UserError(f"--lora_targets {name}: no linear layer of that name; {_listed(linear)}")
    return sorted(settings.targets or linear)


def _modules_to_save(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if list(module.children()) == []}
    for name in settings.modules_to_save:
        if name not in names:
            raise UserError(f"--lora_modules_to_save {name}: the model has no module of that name; {_listed(names)}")
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    ends = {name.rpartition(".")[2] for name, module in model.named_modules() if module in embeddings}
    chosen = set(settings.modules_to_save)
    return sorted(chosen | ends if model.config.tie_word_embeddings and chosen & ends else chosen)


def _listed(names: set[str]) -> str:
    return f"there are {', '.join(sorted(names)[:LONGEST_LIST])}{', ...' if len(names) > LONGEST_LIST else ''}"


def is_adapter(directory: Path) -> bool:
    """Whether `directory` holds an adapter, not a whole model."""
    return (directory / CONFIG).is_file()


def base_directory(directory: Path) -> Path:
    """The model directory that an adapter was trained on. Raises UserError if it is gone."""
    base = read_json(directory / CONFIG, "an adapter's configuration").get("base_model_name_or_path")
    if not base or not Path(base).is_dir():
        raise UserError(
            f"{directory / CONFIG}: an adapter of {base}, which is no directory here; "
            f"put that model, or a link to it, back there"
        )
    return Path(base)


def adapter_dtype(directory: Path) -> torch.dtype:
    """The number format in which an adapter was trained. Raises UserError if its weights cannot be read."""
    return next(iter(_read(directory).values())).dtype


def write_adapter_config(model: PeftModel, directory: Path) -> None:
    """Write adapter_config.json into an existing directory."""
    config = copy.copy(model.peft_config[ADAPTER])
    config.inference_mode = True  # for those who load it; training sets its own
    config.target_modules = sorted(config.target_modules)  # peft makes a set of it, in another order every time
    config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
    config.save_pretrained(str(directory))


def load_adapter(model: PeftModel, directory: Path) -> None:
    """Fill the adapter of `model`, wrapped with the same settings. Raises UserError if it is not the same adapter."""
    from peft import set_peft_model_state_dict

    saved, own = _read(directory), adapter_tensors(model)
    differing = sorted(name for name in own.keys() | saved.keys() if _shape(own.get(name)) != _shape(saved.get(name)))
    if differing:
        name = differing[0]
        raise UserError(
            f"{directory}: its adapter and the one asked for differ in {len(differing)} tensor(s): {name} is "
            f"{_shape(saved.get(name))} there, {_shape(own.get(name))} here; keep its base and its --lora_* flags"
        )
    set_peft_model_state_dict(model, saved)


def adapter_tensors(model: PeftModel) -> Tensors:
    """The adapters and the modules to save under peft's names on disk, as they lie in the model's memory.

    For a rank that holds the whole model, as all do without tp and pp.
    """
    from peft import get_peft_model_state_dict

    state = model.state_dict()
    whole = model.peft_config[ADAPTER].modules_to_save or ()
    # "auto", peft's default, would ask the hub whether the vocabulary has grown
    adapters = get_peft_model_state_dict(model, state, save_embedding_layers=False)
    return adapters | {name: tensor for name, tensor in state.items() if name.split(".")[-2] in whole}


def merge(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """`model`, the adapter's base, with the adapter merged in as `merge_in_place` does it.

    Raises UserError if the adapter is not plain LoRA or does not fit the model.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(directory))
    if config.peft_type != "LORA" or config.use_dora or config.bias != "none":
        raise UserError(f"{directory}: not a plain LoRA adapter; merge it with the tool that made it")
    try:
        wrapped = _wrap(model, config, in_fp32=True)
    except ValueError as error:  # peft's: another architecture
        raise UserError(f"{directory}: does not fit its base ({error}); correct base_model_name_or_path") from error
    load_adapter(wrapped, directory)
    return merge_in_place(wrapped)


def merge_in_place(wrapped: PeftModel) -> PreTrainedModel:
    """The base with the adapters merged in, in its own memory: `wrapped` can train no further.

    Each matrix is added up in fp32, then cast to its dtype. For a rank that holds the whole model.
    """
    from peft.tuners.lora import LoraLayer

    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.lora_A.float()  # get_delta_weight multiplies in their dtype
            module.lora_B.float()
            weight = module.get_base_layer().weight
            weight.data = (weight.data.float() + module.get_delta_weight(ADAPTER).detach()).to(weight.dtype)
    merged = wrapped.unload()
    del merged.peft_config  # or a later `wrap` would take it for a second adapter
    return merged.requires_grad_(True)


def _read(directory: Path) -> Tensors:
    try:
        return load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory / WEIGHTS}: not a readable adapter ({error}); copy it anew") from error


def _shape(tensor: torch.Tensor | None) -> Any:
    return "missing" if tensor is None else list(tensor.shape)
