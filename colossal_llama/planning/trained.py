"""Who trains in a stage: a model's shape and the stage come in, its optimizer's tensors and adapters go out."""

from __future__ import annotations

from dataclasses import dataclass

from colossal_llama.config import TrainConfig
from colossal_llama.planning.model_shape import EMBEDDING, HEAD, ModelShape, Tensor
from colossal_llama.stages import EMBEDDINGS_ONLY, Trained
from tokenizer_tools.command import UserError

NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


@dataclass(frozen=True)
class Adapters:
    """LoRA as the --lora_* flags say it: pairs of matrices [rank, in] and [out, rank] beside linear layers."""

    rank: int
    targets: frozenset[str]
    """Last names of the adapted layers (`q_proj`); none for all of them."""
    whole: frozenset[str]
    """Last names of the modules that train in full (`embed_tokens`)."""

    def adapts(self, layer: str) -> bool:
        """Whether the linear layers of this last name have adapters."""
        return not self.targets or layer in self.targets


@dataclass(frozen=True)
class TrainedSet:
    """The parameters of one stage. `names` are those of the model's own that train, `added` the adapters'."""

    kind: Trained
    names: frozenset[str]
    added: tuple[Tensor, ...] = ()
    adapters: Adapters | None = None

    def trains(self, tensor: Tensor) -> bool:
        """Whether the optimizer has this tensor."""
        return tensor.name in self.names

    def keeps_input(self, layer: str) -> bool:
        """Whether the backward pass of the decoder's linear layers of this last name (`q_proj`) needs their input."""
        if self.adapters is not None:
            return self.adapters.adapts(layer)
        return self.kind == "all"


def trained_set(shape: ModelShape, kind: Trained, config: TrainConfig) -> TrainedSet:
    """What trains in a stage of `kind`. Raises UserError for a --lora_* flag that names nothing in the model."""
    tensors = shape.tensors()
    if kind == "all":
        return TrainedSet(kind, frozenset(tensor.name for tensor in tensors))
    if kind in EMBEDDINGS_ONLY:
        return TrainedSet(kind, frozenset(tensor.name for tensor in tensors if tensor.is_embedding))
    adapters = _adapters(shape, config)
    linear = [tensor for tensor in tensors if is_linear(tensor) and adapters.adapts(_module(tensor))]
    added = tuple(
        Tensor(f"{tensor.name.removesuffix('.weight')}.{name}.weight", sizes)
        for tensor in linear
        for name, sizes in (
            ("lora_A", (adapters.rank, tensor.shape[1])),
            ("lora_B", (tensor.shape[0], adapters.rank)),
        )
    )
    names = frozenset(tensor.name for tensor in tensors if _module(tensor) in adapters.whole)
    return TrainedSet(kind, names, added, adapters)


def is_linear(tensor: Tensor) -> bool:
    """Whether it is the matrix of a decoder layer's linear layer."""
    return tensor.layer is not None and len(tensor.shape) == 2


def _adapters(shape: ModelShape, config: TrainConfig) -> Adapters:
    linear = {_module(tensor) for tensor in shape.tensors() if is_linear(tensor)}
    modules = linear | set(NORMS) | {_module(Tensor(name, ())) for name in (EMBEDDING, HEAD)}
    for flag, given, known in (
        ("--lora_targets", config.lora_targets, linear),
        ("--lora_modules_to_save", config.lora_modules_to_save, modules),
    ):
        unknown = sorted(set(given) - known)
        if unknown:
            raise UserError(f"{flag} {unknown[0]}: the model has no such module; there are {', '.join(sorted(known))}")
    whole = set(config.lora_modules_to_save)
    ends = {"embed_tokens", "lm_head"}
    if shape.tie_word_embeddings and whole & ends:
        whole |= ends
    return Adapters(config.lora_rank, frozenset(config.lora_targets), frozenset(whole))


def _module(tensor: Tensor) -> str:
    """model.layers.0.mlp.up_proj.weight -> up_proj"""
    return tensor.name.split(".")[-2]
