"""The model that comes along, with the word lists: what somebody who installs nothing else gets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.domain.moderation import Label
from common.moderation.loading import load_moderation
from common.moderation.moderation import Moderation
from common.settings import ROOT, ModerationSettings

MAX_BYTES = 25_000_000

CLEAN = [
    "Kính thưa quý vị và các bạn, sau đây là bản tin thời sự lúc mười chín giờ.",
    "Bác sĩ nói bệnh nhân đã qua cơn nguy kịch và có thể về nhà vào cuối tuần này.",
    "Hôm nay trời mưa to quá, mọi người nhớ mang theo áo mưa nhé!",
    "Cuộc họp bắt đầu lúc chín giờ sáng tại phòng số ba.",
    "Con chó nhà em rất ngoan, nó thích chạy ra vườn chơi.",
    "Anh ơi cho em hỏi đường ra ga Hà Nội đi lối nào ạ?",
    "Doanh thu quý ba tăng mười hai phần trăm so với cùng kỳ năm ngoái.",
    "cam on ban rat nhieu, chuc ban mot ngay tot lanh",
    "ko biết làm sao luôn á, ai chỉ mình với",
    "Thank you all for coming, the meeting starts at nine.",
    "We assessed the class in Essex and had a cocktail after the assembly.",
    "😀😀😀",
    "Tôi học tiếng Trung 你好 và tiếng Nga здравствуйте ở trường đại học.",
]
OFFENSIVE = [
    "Mày ngu như bò, câm mồm đi đồ khốn nạn!",
    "đm thằng này nói chuyện như cc, vl thật",
    "Đ . m cái thằng chó này",
    "do ngu, cam mom di thang cho",
    "Đồ rác rưởi, loại như mày chỉ đáng bị khinh bỉ.",
    "địt mẹ mày",
    "nguuuuu vãi lồn",
    "What the fuck is this shit",
    "sh1t, that f*cking thing again",
]


@pytest.fixture(scope="module")
def moderation() -> Moderation:
    return load_moderation(ModerationSettings(_env_file=None))  # type: ignore[call-arg]


@pytest.mark.parametrize("text", CLEAN)
def test_harmless_texts_are_clean(moderation: Moderation, text: str) -> None:
    (finding,) = moderation.classify([text])
    assert finding.label is Label.CLEAN
    assert finding.marks == ()


@pytest.mark.parametrize("text", OFFENSIVE)
def test_foul_texts_are_not_clean_and_say_why(moderation: Moderation, text: str) -> None:
    (finding,) = moderation.classify([text])
    assert finding.label is not Label.CLEAN
    assert finding.marks


def test_one_foul_sentence_late_in_a_long_text_is_found(moderation: Moderation) -> None:
    long = " ".join(CLEAN[:7] * 20)
    before, after = moderation.classify([long, f"{long} {OFFENSIVE[0]} {long}"])
    assert before.label is Label.CLEAN
    assert after.label is not Label.CLEAN


def test_a_long_text_is_classified_to_its_end(moderation: Moderation) -> None:
    clean = "trời đẹp " * 11_000
    for text in (f"{clean}địt mẹ mày", "a" * 100_000 + " địt mẹ mày"):
        (finding,) = moderation.classify([text])
        assert finding.label is not Label.CLEAN
        assert text[finding.marks[-1].start :] == "địt mẹ mày"


def test_a_text_is_classified_alike_in_any_company(moderation: Moderation) -> None:
    texts = [*CLEAN, "", *OFFENSIVE, " ".join(CLEAN * 9)]
    together = moderation.classify(texts)
    alone = [moderation.classify([text])[0] for text in texts]
    assert [finding.label for finding in together] == [finding.label for finding in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_it_is_small_named_and_has_a_card(moderation: Moderation) -> None:
    folder = ModerationSettings(_env_file=None).phobert_onnx_dir  # type: ignore[call-arg]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MAX_BYTES
    card = (folder / "README.md").read_text()
    assert moderation.by.model in card
    assert moderation.by.sha256 in card
    assert set(moderation.by.thresholds) == {Label.OFFENSIVE, Label.HATE}


def test_it_needs_no_pytorch_and_no_network() -> None:
    code = """
import sys
def refuse(event, _):
    if event == "socket.connect":
        raise RuntimeError("it asks the network")
sys.addaudithook(refuse)
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["optimum"] = None
from common.moderation.loading import load_moderation
from common.settings import ROOT, ModerationSettings
print(load_moderation(ModerationSettings()).classify(["địt mẹ mày"])[0].label)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout in {"OFFENSIVE\n", "HATE\n"}, done.stderr
