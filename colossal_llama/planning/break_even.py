"""Whether a larger vocabulary pays: sizes before and after and tokens a character come in, costs a character go out.

Every token costs more, since the output matrix is larger; the text has fewer of them. Training is counted in
operations; so is reading a prompt. Writing a token at a time waits for memory, so it is counted in weights read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from colossal_llama.flops import flops_per_position, head_width, matrix_parameters
from colossal_llama.planning.model_shape import ModelShape

HALF = 2


@dataclass(frozen=True)
class TokenCost:
    """What one token costs with a vocabulary of `vocab_size` pieces."""

    vocab_size: int
    num_parameters: int
    training_flops: int
    prompt_flops: int
    written_bytes: int
    """16-bit weights that are read to write one token."""


@dataclass(frozen=True)
class BreakEven:
    """The same text with the old and with the new vocabulary."""

    before: TokenCost
    after: TokenCost
    tokens_per_character: tuple[float, float] | None

    @property
    def saving(self) -> float | None:
        """Share of the tokens that the new vocabulary saves; None where nobody has measured it."""
        if self.tokens_per_character is None:
            return None
        before, after = self.tokens_per_character
        return 1 - after / before

    def needed_saving(self, cost: str) -> float:
        """Share of the tokens that must be saved for the text to cost the same; `cost` is a field of TokenCost."""
        return 1 - getattr(self.before, cost) / getattr(self.after, cost)

    def per_character(self, cost: str) -> tuple[float, float] | None:
        """(before, after) of a character of text."""
        if self.tokens_per_character is None:
            return None
        before, after = self.tokens_per_character
        return before * getattr(self.before, cost), after * getattr(self.after, cost)


def token_cost(shape: ModelShape, length: int) -> TokenCost:
    """Of a token in rows of `length` positions."""
    body, head = matrix_parameters(shape)
    attention = 4 * shape.num_hidden_layers * shape.num_attention_heads * head_width(shape) * length
    return TokenCost(
        vocab_size=shape.vocab_size,
        num_parameters=shape.num_parameters,
        training_flops=flops_per_position(shape, length),
        prompt_flops=2 * (body + head) + attention,
        written_bytes=HALF * (body + head),
    )


def break_even(
    shape: ModelShape, vocab_before: int, length: int, tokens_per_character: tuple[float, float] | None
) -> BreakEven:
    """`shape` as it is against the same model with `vocab_before` pieces."""
    old = replace(shape, vocab_size=vocab_before)
    return BreakEven(token_cost(old, length), token_cost(shape, length), tokens_per_character)
