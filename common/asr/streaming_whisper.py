"""Whisper for live streams: utterances of a few seconds, decoded repeatedly while they grow.

Whisper's encoder is trained on 30 s, and takes as long for 3 s of speech as for 30. On shorter
input the decoder, which has never seen any, continues after the end. So only the speech and a
second of silence are encoded, and the encoder's output for silence, computed once, fills up the
rest. Measured (base, int8, beam 5, 50 utterances of LibriSpeech test-other,
2 to 29 s long, two threads):

=================================================  ===========  ======
what is encoded                                    word errors  time
=================================================  ===========  ======
30 s                                               11.3 %       40.6 s
speech and 1 s of silence                          51.1 %       25.8 s
speech and 1 s of silence, precomputed silence     11.2 %       23.9 s
=================================================  ===========  ======

Partials are decoded with beam 1. The last hypothesis of an utterance, and those in its pauses, are
decoded with context: at most 14 s of the utterances before, whose text the decoder is forced to
begin with, and then continues. Measured as above, on streams of 7.5 min each (the time is that of
the first one):

=====================================  ======================  ======
audio                                  word errors             time
=====================================  ======================  ======
the utterance, beam 1                  18.8 %  18.4 %  16.1 %    27 s
the utterance, beam 5                  15.9 %  16.1 %            45 s
with 10 s before it, beam 5            13.3 %  12.9 %            89 s
with 10 s before it, beam 1            12.5 %  13.1 %  14.7 %    52 s
with 14 s before it, beam 1            13.3 %  13.1 %  13.8 %    49 s
=====================================  ======================  ======

In Vietnamese (30 utterances of VIVOS, two orders): 33.7 and 34.1 % with context, 36.7 and 36.4 %
without. An utterance without context is decoded with beam 5. Earlier hypotheses of an utterance are
not forced: beginning with the words that two consecutive hypotheses agreed on, finals had 3 points
more word errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ctranslate2
import numpy as np
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens

from common.asr import guards
from common.asr.engine import DecodingOptions, Samples
from common.asr.faster_whisper import FRAMES, SAMPLES_PER_FRAME, FasterWhisper, joined, view
from common.asr.guards import TOKENS_PER_S, DecodingResult
from common.asr.segments import segments_of
from common.asr.streaming import PrecedingAudio, RecognitionRequest
from common.domain.stream import Hypothesis
from common.domain.values import MAX_WINDOW_MS, SAMPLES_PER_MS, Segment, Span, Word
from common.errors import EngineFailed

BEAM_SIZE = 5
SILENT_FRAMES = 100
"""Silence encoded with the speech: a second."""
FRAMES_PER_POSITION = 2
"""The encoder halves the number of frames."""
BATCH = 4
"""Hypotheses decoded together; the first has to wait for the last."""
SPARE_TOKENS = 10
"""Beyond `TOKENS_PER_S`; few, to limit the cost of a loop."""
LEAST_TOKENS_PER_S = 1
"""No speech is slower: with fewer, the decoder stopped after the context."""
REPEATED_WORDS = 4
"""So many words in a row are seldom repeated within a minute, except by a decoder in a loop."""


class StreamingWhisper(FasterWhisper):
    """Whisper on CTranslate2 as a `common.asr.streaming.Recognizer`.

    Raises:
        EngineFailed: the weights do not load.
    """

    def __init__(
        self, weights: Path, *, threads: int = 1, device: str = "cpu", compute_type: str = "int8"
    ) -> None:
        super().__init__(weights, threads=threads, device=device, compute_type=compute_type)
        self._repair_tokenizer()
        silence = np.zeros(MAX_WINDOW_MS * SAMPLES_PER_MS, np.float32)
        try:
            (encoded,) = self._encode([self._features(silence)])
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(reason=error) from error
        self._silence = np.array(encoded)

    def recognize(self, wanted: Sequence[RecognitionRequest]) -> list[Hypothesis]:
        """See `Recognizer.recognize`."""
        try:
            found = dict[int, Hypothesis]()
            alike: dict[tuple[bool, int], list[int]] = {}
            for index, each in enumerate(wanted):
                alike.setdefault((each.full, _beam_size(each)), []).append(index)
            for (full, beam_size), indices in sorted(alike.items(), reverse=True):
                for start in range(0, len(indices), BATCH):
                    batch = indices[start : start + BATCH]
                    recognized = self._recognize_batch(
                        [wanted[index] for index in batch], full, beam_size
                    )
                    found.update(zip(batch, recognized, strict=True))
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(reason=error) from error
        return [found[index] for index in range(len(wanted))]

    def forget(self, stream: str) -> None:
        """Nothing to do: no state is kept between calls."""

    def _recognize_batch(
        self, wanted: Sequence[RecognitionRequest], full: bool, beam_size: int
    ) -> list[Hypothesis]:
        encoded = [self._encode_short(_audio(each)) for each in wanted]
        tokenizers = [self._tokenizer(DecodingOptions(each.language)) for each in wanted]
        given = [
            tokenizer.encode(each.before.text) if each.before else []
            for each, tokenizer in zip(wanted, tokenizers, strict=True)
        ]
        longest_s = max(_seconds(each.samples) for each in wanted)
        decodings = self._decode(joined(encoded), tokenizers, given, longest_s, beam_size)
        return [
            self._full(*each) if full else _quick(each[0], each[3])
            for each in zip(wanted, tokenizers, given, decodings, encoded, strict=True)
        ]

    def _encode_short(self, samples: Samples) -> ctranslate2.StorageView:
        """The encoder's output for the speech, then silence: shape (1, 1500, width)."""
        frames = -(-len(samples) // SAMPLES_PER_FRAME) + SILENT_FRAMES
        frames = min(FRAMES, frames + frames % FRAMES_PER_POSITION)
        (speech,) = self._encode([self._features(samples)[..., :frames]])
        start = frames // FRAMES_PER_POSITION
        return view(np.concatenate([np.asarray(speech), self._silence[:, start:]], axis=1))

    def _decode(
        self,
        encoded: ctranslate2.StorageView,
        tokenizers: Sequence[Tokenizer],
        given: Sequence[list[int]],
        longest_s: float,
        beam_size: int,
    ) -> list[DecodingResult]:
        """The results after the tokens ``given``, for audio of at most ``longest_s``."""
        prompts = [
            self._model.get_prompt(tokenizer, [], without_timestamps=True) + forced
            for tokenizer, forced in zip(tokenizers, given, strict=True)
        ]
        most = max(map(len, given)) + SPARE_TOKENS + round(TOKENS_PER_S * longest_s)
        results = self._model.model.generate(
            encoded,
            prompts,
            beam_size=beam_size,
            return_scores=True,
            return_no_speech_prob=True,
            # CTranslate2 writes at most half of this, forced tokens included.
            max_length=min(self._model.max_length, 2 * most),
            suppress_tokens=get_suppressed_tokens(tokenizers[0], [-1]),
        )
        return [
            self._decoding(result, tokenizer, given=len(forced))
            for result, tokenizer, forced in zip(results, tokenizers, given, strict=True)
        ]

    def _full(
        self,
        request: RecognitionRequest,
        tokenizer: Tokenizer,
        given: list[int],
        decoding: DecodingResult,
        encoded: ctranslate2.StorageView,
    ) -> Hypothesis:
        """Words with times, with the guards of recordings."""
        audio = _audio(request)
        # CTranslate2 writes no more, forced tokens included.
        is_cut_off = len(given) + len(decoding.tokens) >= self._model.max_length // 2
        if request.before is not None and (
            is_cut_off or _is_misled(request, request.before, decoding)
        ):
            (alone,) = self._recognize_batch([replace(request, before=None)], True, BEAM_SIZE)
            return alone
        if guards.needs_retry(decoding):
            # Instead of higher temperatures, which take seconds: all 30 s encoded.
            (whole,) = self._encode([self._features(audio)])
            (again,) = self._decode(whole, [tokenizer], [[]], _seconds(audio), BEAM_SIZE)
            if guards.best([decoding, again]) is again:
                decoding, encoded = again, whole
        tokens = [*given, *decoding.tokens]
        words = self._align(encoded, tokens, len(audio), tokenizer, len(given))
        before_ms = (len(audio) - len(request.samples)) // SAMPLES_PER_MS
        own = [_earlier(word, before_ms) for word in words]
        return Hypothesis(
            segments_of(decoding, own, request.samples, keep_words=True), _is_doubtful(decoding)
        )


def _beam_size(request: RecognitionRequest) -> int:
    """With context a beam search finds no better text."""
    return BEAM_SIZE if request.full and request.before is None else 1


def _audio(request: RecognitionRequest) -> Samples:
    """The audio before the utterance, and the utterance."""
    if request.before is None:
        return request.samples
    return np.concatenate([request.before.samples, request.samples])


def _seconds(samples: Samples) -> float:
    return len(samples) / SAMPLES_PER_MS / 1000


def _is_misled(
    request: RecognitionRequest, before: PrecedingAudio, decoding: DecodingResult
) -> bool:
    """Whether the context misled the decoder: an utterance is better decoded without it.

    An utterance has hardly any pauses, so too little or too much text shows it, as does repeated
    text.
    """
    seconds = _seconds(request.samples)
    least = max(1, LEAST_TOKENS_PER_S * (seconds - 1))
    most = SPARE_TOKENS + TOKENS_PER_S * seconds
    return (
        guards.needs_retry(decoding)
        or not least <= len(decoding.tokens) < most
        or repeats(decoding.text, before.text)
    )


def repeats(text: str, before: str) -> bool:
    """Whether `REPEATED_WORDS` in a row, the last of them in ``text``, occurred before."""
    earlier, own = guards.plain(before).split(), guards.plain(text).split()
    words = earlier + own
    seen = set[tuple[str, ...]]()
    for end in range(REPEATED_WORDS, len(words) + 1):
        phrase = tuple(words[end - REPEATED_WORDS : end])
        if end > len(earlier) and phrase in seen:
            return True
        seen.add(phrase)
    return False


def _earlier(word: Word, by_ms: int) -> Word:
    start_ms, end_ms = (max(0, ms - by_ms) for ms in (word.span.start_ms, word.span.end_ms))
    return replace(word, span=Span(start_ms, end_ms))


def _quick(request: RecognitionRequest, decoding: DecodingResult) -> Hypothesis:
    """The text alone; a phrase that Whisper is known to invent is doubtful."""
    text = decoding.text
    whole = Span(0, len(request.samples) // SAMPLES_PER_MS)
    doubtful = _is_doubtful(decoding) or guards.is_known_phrase(text)
    return Hypothesis((Segment(whole, text),) if text.strip() else (), doubtful)


def _is_doubtful(decoding: DecodingResult) -> bool:
    return guards.is_silence(decoding) or guards.needs_retry(decoding)
