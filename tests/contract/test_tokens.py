"""The estimate of tokens, against the tokenizers that are here."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from common.domain.enhancing.parts import estimate_tokens, to_data

VIETNAMESE = (
    "Xin chào các bạn, hôm nay chúng ta sẽ nói về kế hoạch mở thêm một kho hàng ở Đà Nẵng. "
    "Nghiêng người xuống, anh Thuỷ khuyên mọi người nên đặt khách sạn trước ngày mười lăm."
)
ENGLISH = (
    "Good morning, everyone. Today we'll talk about opening another warehouse in Da Nang, and "
    "Thuy recommends that everybody should book their hotel before the fifteenth."
)


@pytest.mark.parametrize(
    "text", [VIETNAMESE, ENGLISH, ENGLISH.upper(), "新しい倉庫を探しています。"]
)
def test_tokens_are_rather_overestimated(text: str, weights_dir: Path) -> None:
    whisper = Tokenizer.from_file(str(weights_dir / "faster-whisper-base" / "tokenizer.json"))
    for written in (text, to_data([{"id": 12, "start": 3.5, "text": text}] * 3)):
        count = len(whisper.encode(written, add_special_tokens=False).ids)
        assert count <= estimate_tokens(written) <= 3 * count
