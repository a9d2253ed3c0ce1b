"""Compare silence detection with pydub's: speed, and equal results.

Run ``python -m scripts.bench.silence [RECORDING]``; without a recording it generates one.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydub import AudioSegment
from pydub.silence import detect_nonsilent as pydub_detect_nonsilent

from common.audio.decode import MonoDecoder
from common.audio.silence import SilenceOptions, detect_nonsilent
from common.domain.values import SAMPLE_RATE

WANTED = 50
"""Least factor over pydub; below it the program fails."""


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--minutes", type=int, default=10)
    asked = parser.parse_args()
    if asked.recording:
        samples = np.concatenate(list(islice(MonoDecoder(asked.recording), asked.minutes)))
    else:
        samples = made_up(asked.minutes)
    options = SilenceOptions()
    started = time.process_time()
    ours = detect_nonsilent(samples, options)
    between = time.process_time()
    theirs = pydub_detect_nonsilent(
        AudioSegment(samples.tobytes(), frame_rate=SAMPLE_RATE, sample_width=2, channels=1),
        min_silence_len=options.min_silence_ms,
        silence_thresh=options.threshold_dbfs,
    )
    ended = time.process_time()
    ours_s, theirs_s = between - started, ended - between
    equal = [list(span) for span in ours] == theirs
    ratio = theirs_s / ours_s
    print(  # noqa: T201 - what this program is for
        f"{len(samples) / SAMPLE_RATE / 60:.0f} min, {len(ours)} sounds: pydub {theirs_s:.2f} s, "
        f"here {ours_s * 1000:.0f} ms CPU, {ratio:.0f} times faster (wanted: {WANTED}); "
        f"{'equal' if equal else 'DIFFERENT'}"
    )
    return 0 if equal and ratio >= WANTED else 1


def made_up(minutes: int) -> NDArray[np.int16]:
    """Noise that swells and fades like sentences, over background hiss."""
    random = np.random.default_rng(0)
    time_s = np.arange(minutes * 60 * SAMPLE_RATE) / SAMPLE_RATE
    swell = np.clip(np.sin(2 * np.pi * time_s / 7.3), 0, 1) * 0.2 + 0.002
    noise = random.standard_normal(len(time_s)) * swell * 32_767
    return noise.clip(-32_768, 32_767).astype(np.int16)


if __name__ == "__main__":
    sys.exit(main())
