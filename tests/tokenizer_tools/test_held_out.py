"""The three shares: which document goes where, and what is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.conftest import CHINESE
from tokenizer_tools.held_out import CURVE, LEARN, PROOF, divide, share_of, units_of
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer


def test_shares_are_as_large_as_asked_for() -> None:
    shares = Counter(share_of(f"text {i}", 0.4) for i in range(5000))
    assert {share: round(count / 5000, 1) for share, count in shares.items()} == {LEARN: 0.6, CURVE: 0.2, PROOF: 0.2}
    assert {share_of(f"text {i}", 0) for i in range(5000)} == {LEARN}


def test_documents_are_counted_where_they_belong(tiny_tokenizer_dir: Path) -> None:
    encoder = TextEncoder(load_tokenizer(tiny_tokenizer_dir))
    documents = [("a", text + end) for text in CHINESE for end in "甲乙丙丁戊"] + [("b", "no")] * 2
    shares = divide(documents, encoder, "han", 0.5)
    for share, by_category in shares.items():
        for category, counted in by_category.items():
            texts = [text for name, text in documents if name == category and share_of(text, 0.5) == share]
            assert counted.num_characters == sum(map(len, texts))
            assert counted.num_tokens == sum(map(len, encoder.encode_batch(texts)))
            assert counted.texts == (texts if share == PROOF else [])
    assert all(shares[share]["a"].texts or share != PROOF for share in shares)
    assert sum(units_of(shares[share])["值得每一位学生认真阅读和思考"] for share in shares) == 5
