"""Whisper for live streams: utterances of a few seconds, heard again and again while they grow.

Whisper's encoder is trained on 30 s, and takes as long over 3 s of speech as over 30. It would take
less, but then the decoder, which has never seen so little, talks on after the end. So here only the
speech and a second of silence are encoded, and what the encoder makes of silence, known beforehand,
takes the place of the rest. Measured (base, int8, beam 5, 50 utterances of LibriSpeech test-other,
2 to 29 s long, two threads):

=================================================  ===========  ======
what is encoded                                    word errors  time
=================================================  ===========  ======
30 s                                               11.3 %       40.6 s
speech and 1 s of silence                          51.1 %       25.8 s
speech and 1 s of silence, known silence behind    11.2 %       23.9 s
=================================================  ===========  ======

An utterance's last hypothesis, and those in its pauses, are decoded with beam 5 and aligned; the
others with beam 1. None is held to what was heard before: forced to begin with the words that two
hypotheses in a row had agreed on, finals had 3 points more of wrong words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import numpy as np
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens

from common.asr import guards
from common.asr.engine import DecodingOptions, Samples
from common.asr.faster_whisper import FRAMES, SAMPLES_PER_FRAME, FasterWhisper, joined, view
from common.asr.guards import Decoding
from common.asr.segments import segments_of
from common.asr.streaming import Heard
from common.domain.stream import Hypothesis
from common.domain.values import MAX_WINDOW_MS, SAMPLES_PER_MS, Segment, Span
from common.errors import EngineFailed

BEAM_SIZE = 5
SILENT_FRAMES = 100
"""Of silence encoded with the speech: a second."""
FRAMES_PER_POSITION = 2
"""The encoder halves the number of frames."""
BATCH = 4
"""Hypotheses decoded together; the first of them has to wait for the last."""
TOKENS_PER_S = 20
SPARE_TOKENS = 16
"""Nobody speaks faster: who goes on is in a loop, which is to cost little."""


class StreamingWhisper(FasterWhisper):
    """Whisper on CTranslate2 as a `common.asr.streaming.Recognizer`.

    Raises:
        EngineFailed: the weights do not load.
    """

    def __init__(
        self, weights: Path, *, threads: int = 1, device: str = "cpu", compute_type: str = "int8"
    ) -> None:
        super().__init__(weights, threads=threads, device=device, compute_type=compute_type)
        silence = np.zeros(MAX_WINDOW_MS * SAMPLES_PER_MS, np.float32)
        try:
            (encoded,) = self._encode([self._features(silence)])
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(reason=error) from error
        self._silence = np.array(encoded)

    def hear(self, wanted: Sequence[Heard]) -> list[Hypothesis]:
        """See `Recognizer.hear`."""
        try:
            found = dict[int, Hypothesis]()
            for full in (True, False):
                alike = [index for index, each in enumerate(wanted) if each.full is full]
                for start in range(0, len(alike), BATCH):
                    batch = alike[start : start + BATCH]
                    heard = self._hear_together([wanted[index] for index in batch], full=full)
                    found.update(zip(batch, heard, strict=True))
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(reason=error) from error
        return [found[index] for index in range(len(wanted))]

    def forget(self, stream: str) -> None:
        """Nothing is kept from call to call."""

    def _hear_together(self, wanted: Sequence[Heard], *, full: bool) -> list[Hypothesis]:
        encoded = [self._encode_short(each.samples) for each in wanted]
        tokenizers = [self._tokenizer(DecodingOptions(each.language)) for each in wanted]
        decodings = self._decode(joined(encoded), wanted, tokenizers, full=full)
        return [
            self._full(*each) if full else _quick(each[0], each[2])
            for each in zip(wanted, tokenizers, decodings, encoded, strict=True)
        ]

    def _encode_short(self, samples: Samples) -> ctranslate2.StorageView:
        """What the encoder makes of the speech, and of silence behind: shape (1, 1500, width)."""
        frames = -(-len(samples) // SAMPLES_PER_FRAME) + SILENT_FRAMES
        frames = min(FRAMES, frames + frames % FRAMES_PER_POSITION)
        (speech,) = self._encode([self._features(samples)[..., :frames]])
        start = frames // FRAMES_PER_POSITION
        return view(np.concatenate([np.asarray(speech), self._silence[:, start:]], axis=1))

    def _decode(
        self,
        encoded: ctranslate2.StorageView,
        wanted: Sequence[Heard],
        tokenizers: Sequence[Tokenizer],
        *,
        full: bool,
    ) -> list[Decoding]:
        prompts = [
            self._model.get_prompt(tokenizer, [], without_timestamps=True)
            for tokenizer in tokenizers
        ]
        longest_s = max(len(each.samples) for each in wanted) / SAMPLES_PER_MS / 1000
        most = max(map(len, prompts)) + SPARE_TOKENS + round(TOKENS_PER_S * longest_s)
        results = self._model.model.generate(
            encoded,
            prompts,
            beam_size=BEAM_SIZE if full else 1,
            return_scores=True,
            return_no_speech_prob=True,
            max_length=min(self._model.max_length, most),
            suppress_tokens=get_suppressed_tokens(tokenizers[0], [-1]),
        )
        return [
            self._decoding(result, tokenizer)
            for result, tokenizer in zip(results, tokenizers, strict=True)
        ]

    def _full(
        self,
        heard: Heard,
        tokenizer: Tokenizer,
        decoding: Decoding,
        encoded: ctranslate2.StorageView,
    ) -> Hypothesis:
        """Words with times, guarded as those of recordings are."""
        if guards.needs_retry(decoding):
            # Not the ladder of temperatures, which takes seconds: 30 s, encoded for real.
            (whole,) = self._encode([self._features(heard.samples)])
            (again,) = self._decode(whole, [heard], [tokenizer], full=True)
            if guards.best([decoding, again]) is again:
                decoding, encoded = again, whole
        words = self._align(encoded, decoding, heard.samples, tokenizer)
        return Hypothesis(
            segments_of(decoding, words, heard.samples, keep_words=True), _is_doubtful(decoding)
        )


def _quick(heard: Heard, decoding: Decoding) -> Hypothesis:
    """The text alone; where it is one of those that Whisper invents it is not worth showing."""
    text = decoding.text
    whole = Span(0, len(heard.samples) // SAMPLES_PER_MS)
    doubtful = _is_doubtful(decoding) or guards.is_known_phrase(text)
    return Hypothesis((Segment(whole, text),) if text.strip() else (), doubtful)


def _is_doubtful(decoding: Decoding) -> bool:
    return guards.is_silence(decoding) or guards.needs_retry(decoding)
