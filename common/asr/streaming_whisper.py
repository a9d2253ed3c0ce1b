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

Partials are decoded with beam 1. An utterance's last hypothesis, and those in its pauses, are heard
together with what came before: 14 s at most of the utterances just told, whose text the decoder is
forced to begin with, and then continues. Measured as above, on streams of 7.5 min each (the time is
that of the first one):

=====================================  ======================  ======
what is heard                          word errors             time
=====================================  ======================  ======
the utterance, beam 1                  18.8 %  18.4 %  16.1 %    27 s
the utterance, beam 5                  15.9 %  16.1 %            45 s
with 10 s before it, beam 5            13.3 %  12.9 %            89 s
with 10 s before it, beam 1            12.5 %  13.1 %  14.7 %    52 s
with 14 s before it, beam 1            13.3 %  13.1 %  13.8 %    49 s
=====================================  ======================  ======

In Vietnamese (30 utterances of VIVOS, two orders) 33.7 and 34.1 % with what came before, 36.7 and
36.4 % without. Whoever has nothing before him is heard with beam 5. Nothing is held to what was
heard of the same utterance before: forced to begin with the words that two hypotheses in a row had
agreed on, finals had 3 points more of wrong words.
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
"""Of silence encoded with the speech: a second."""
FRAMES_PER_POSITION = 2
"""The encoder halves the number of frames."""
BATCH = 4
"""Hypotheses decoded together; the first of them has to wait for the last."""
SPARE_TOKENS = 10
"""Beyond `TOKENS_PER_S`; a loop is to cost little."""
LEAST_TOKENS_PER_S = 1
"""Nobody speaks slower: less, and the decoder took what was given for all there is."""
REPEATED_WORDS = 4
"""So many words in a row are seldom said twice within a minute; a decoder in a loop writes them."""


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
                    heard = self._recognize_batch(
                        [wanted[index] for index in batch], full, beam_size
                    )
                    found.update(zip(batch, heard, strict=True))
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(reason=error) from error
        return [found[index] for index in range(len(wanted))]

    def forget(self, stream: str) -> None:
        """Nothing is kept from call to call."""

    def _recognize_batch(
        self, wanted: Sequence[RecognitionRequest], full: bool, beam_size: int
    ) -> list[Hypothesis]:
        sounds = [_sound(each) for each in wanted]
        encoded = [self._encode_short(sound) for sound in sounds]
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
        """What the encoder makes of the speech, and of silence behind: shape (1, 1500, width)."""
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
        """What is said after the tokens ``given``, in at most ``longest_s``."""
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
            # Of this CTranslate2 writes half, where forced tokens count too.
            max_length=min(self._model.max_length, 2 * most),
            suppress_tokens=get_suppressed_tokens(tokenizers[0], [-1]),
        )
        return [
            self._decoding(result, tokenizer, given=len(forced))
            for result, tokenizer, forced in zip(results, tokenizers, given, strict=True)
        ]

    def _full(
        self,
        heard: RecognitionRequest,
        tokenizer: Tokenizer,
        given: list[int],
        decoding: DecodingResult,
        encoded: ctranslate2.StorageView,
    ) -> Hypothesis:
        """Words with times, guarded as those of recordings are."""
        sound = _sound(heard)
        # CTranslate2 writes no more, and what it was given counts too.
        is_cut_off = len(given) + len(decoding.tokens) >= self._model.max_length // 2
        if heard.before is not None and (is_cut_off or _goes_astray(heard, heard.before, decoding)):
            (alone,) = self._recognize_batch([replace(heard, before=None)], True, BEAM_SIZE)
            return alone
        if guards.needs_retry(decoding):
            # Not the ladder of temperatures, which takes seconds: 30 s, encoded for real.
            (whole,) = self._encode([self._features(sound)])
            (again,) = self._decode(whole, [tokenizer], [[]], _seconds(sound), BEAM_SIZE)
            if guards.best([decoding, again]) is again:
                decoding, encoded = again, whole
        tokens = [*given, *decoding.tokens]
        words = self._align(encoded, tokens, len(sound), tokenizer, len(given))
        before_ms = (len(sound) - len(heard.samples)) // SAMPLES_PER_MS
        own = [_earlier(word, before_ms) for word in words]
        return Hypothesis(
            segments_of(decoding, own, heard.samples, keep_words=True), _is_doubtful(decoding)
        )


def _beam_size(heard: RecognitionRequest) -> int:
    """Who knows what came before needs no search, and finds no better text by one."""
    return BEAM_SIZE if heard.full and heard.before is None else 1


def _sound(heard: RecognitionRequest) -> Samples:
    """What came before the utterance, and the utterance."""
    if heard.before is None:
        return heard.samples
    return np.concatenate([heard.before.samples, heard.samples])


def _seconds(samples: Samples) -> float:
    return len(samples) / SAMPLES_PER_MS / 1000


def _goes_astray(
    heard: RecognitionRequest, before: PrecedingAudio, decoding: DecodingResult
) -> bool:
    """Whether what is heard after something else is better heard alone.

    An utterance has hardly any pauses: there is too little text for it, or too much, or the decoder
    says again what it has said already.
    """
    seconds = _seconds(heard.samples)
    least = max(1, LEAST_TOKENS_PER_S * (seconds - 1))
    most = SPARE_TOKENS + TOKENS_PER_S * seconds
    return (
        guards.needs_retry(decoding)
        or not least <= len(decoding.tokens) < most
        or repeats(decoding.text, before.text)
    )


def repeats(text: str, before: str) -> bool:
    """Whether `REPEATED_WORDS` in a row, at the end of which is ``text``, were there already."""
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


def _quick(heard: RecognitionRequest, decoding: DecodingResult) -> Hypothesis:
    """The text alone; where it is one of those that Whisper invents it is not worth showing."""
    text = decoding.text
    whole = Span(0, len(heard.samples) // SAMPLES_PER_MS)
    doubtful = _is_doubtful(decoding) or guards.is_known_phrase(text)
    return Hypothesis((Segment(whole, text),) if text.strip() else (), doubtful)


def _is_doubtful(decoding: DecodingResult) -> bool:
    return guards.is_silence(decoding) or guards.needs_retry(decoding)
