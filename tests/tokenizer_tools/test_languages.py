"""The language of a text by its letters."""

from __future__ import annotations

import pytest

from tokenizer_tools.languages import language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("人工智能", "zh"),
        ("使用 systemctl 管理 Linux 服务", "zh"),
        ("The word 中 means middle", "latin"),
        ("日本語の文章です", "ja"),
        ("他在书里写了一个の字，其余都是中文", "zh"),
        ("한국어 문장", "ko"),
        ("Русский текст with a word", "cyrillic"),
        ("ภาษาไทย", "thai"),
        ("हिन्दी", "devanagari"),
        ("ქართული", "other"),
        ("123, 456!", "none"),
        ("", "none"),
    ],
)
def test_dominant_script(text: str, language: str) -> None:
    assert language_of(text) == language
