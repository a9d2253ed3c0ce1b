"""How long an ONNX model takes to load, how fast it is on one core, and what memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import psutil

from common.domain.moderation import Thresholds
from common.moderation.inputs import Batch
from common.moderation.onnx import OnnxModerator

SAMPLES = (
    "Bác sĩ nói bệnh nhân đã qua cơn nguy kịch và có thể về nhà vào cuối tuần này.",
    "Hôm nay trời mưa to quá, mọi người nhớ mang theo áo mưa nhé!",
    "Cảm ơn bạn nhiều, bài viết rất hay và bổ ích ❤️",
    "Mày ngu như bò, câm mồm đi đồ khốn nạn!",
    "đm thằng này nói chuyện như cc, vl thật :)))",
    "Bọn nó toàn lũ chó chết, đuổi hết về nước đi.",
    "Dự án đường sắt đô thị Hà Nội sẽ được nghiệm thu vào tháng 12/2025.",
    "Anh ấy là một giáo viên dạy toán ở trường trung học phổ thông Nguyễn Huệ.",
    "ko biet lam sao luon a, ai chi minh voi",
    "You are such an idiot, shut up.",
    "Thank you all for coming, the meeting starts at nine.",
    "Con đường này vừa làm xong đã hỏng, tiền thuế của dân đi đâu hết rồi?",
    "Ăn cơm chưa em? Tối nay nhà mình nấu canh chua cá lóc.",
    "Đồ rác rưởi, loại như mày chỉ đáng bị khinh bỉ.",
    "Ủa sao kỳ vậy ta 😂😂😂",
    "Kính thưa quý vị và các bạn, sau đây là bản tin thời sự lúc mười chín giờ.",
)
"""Sample texts: spoken, typed, clean, offensive, English."""

SYLLABLES = 20
ROUNDS = 5
SECONDS_A_ROUND = 0.5


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, the seconds that it took to import and load it, and the memory it added (MB)."""

    moderator: OnnxModerator
    seconds: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Segments of 20 syllables a second of processor time, on one core.

    ``bare`` is that of onnxruntime alone on the same batches, in a session of its own making.
    ``memory_mb`` is what the process takes after the first of it, without that session.
    """

    segments: float
    bare: float | None
    memory_mb: float

    @property
    def ratio(self) -> float | None:
        """How many times as long as the bare run ours takes."""
        return None if self.bare is None else self.bare / self.segments


def load(folder: Path, labels: str | None, thresholds: Thresholds) -> Loaded:
    """Load the model in ``folder`` and classify one text, which loads everything lazy.

    Raises:
        ModerationUnusable: something is missing or broken.
    """
    before, started = _memory_mb(), time.perf_counter()
    moderator = OnnxModerator(folder, labels=labels, thresholds=thresholds)
    moderator.scores(SAMPLES[:1])
    return Loaded(moderator, time.perf_counter() - started, _memory_mb() - before)


def measure(moderator: OnnxModerator, *, bare: bool) -> Speed:
    """Run for a few seconds, and the bare session by turns with it where one is wanted."""
    texts = segments()
    batches = list(moderator.inputs.batches(texts))
    runs: list[Callable[[], object]] = [lambda: moderator.scores(texts)]
    _seconds(runs[0])
    memory = _memory_mb()
    if bare:
        session = _bare_session(moderator.graph)
        runs.append(lambda: _run_bare(session, batches))
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, taken in zip(runs, seconds, strict=True):
            taken.append(_seconds(run))
    speeds = [len(texts) / median(taken) for taken in seconds]
    return Speed(speeds[0], speeds[1] if bare else None, memory)


def segments(count: int = 32) -> list[str]:
    """Stretches of the samples, 20 syllables long, as the segments of a transcript are."""
    syllables = " ".join(SAMPLES).split() * 5
    starts = range(0, count * 7, 7)
    return [" ".join(syllables[at : at + SYLLABLES]) for at in starts]


def _seconds(run: Callable[[], object]) -> float:
    """Processor seconds of one run, the mean of as many as fit into a round."""
    started, runs = time.process_time(), 0
    while (passed := time.process_time() - started) < SECONDS_A_ROUND or not runs:
        run()
        runs += 1
    return passed / runs


def _bare_session(graph: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _run_bare(session: Any, batches: Sequence[Batch]) -> None:
    for batch in batches:
        session.run(None, batch.feeds)


def _memory_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6
