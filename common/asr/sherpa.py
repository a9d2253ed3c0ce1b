"""Networks for recordings on sherpa-onnx: transducers, CTC models, SenseVoice and Moonshine.

They need a fraction of Whisper's time, and each knows what it was trained on: one or a few
languages, often no punctuation, often no case. `common.weights.sherpa` says which kinds there are;
the folder's metadata says which kind it is.

Windows are decoded one by one. So a text depends on its window alone: in a batch, shorter windows
would be padded, and 8-bit weights share the scale of their activations. On a CPU a batch gains
nothing, as one window fills a core.

The text of a network that has only capitals is in lower case.

Words have the times at which their pieces were emitted. Moonshine gives no times: there the words
are spread over the audio that is loud, by their letters.
"""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sherpa_onnx import OfflineRecognizer

from common.asr.engine import DecodingOptions, Samples
from common.asr.guards import DecodingResult
from common.asr.pieces import Emission, Pieces, begins_word
from common.asr.segments import loud_span, segments_of
from common.domain.glossary import MOST_HOTWORDS
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS, Segment, Span, Word
from common.errors import EngineFailed, WeightsMissing, WeightsUnusable
from common.weights.sherpa import Kind, Network, has_only_capitals, network_in, read_tokens

MIN_SAMPLES = SAMPLE_RATE // 2
"""Shorter windows are padded with silence: convolutions need some frames."""
EMISSION = Emission(lead_ms=60, last_ms=160)
"""Not measured: networks that see all of the audio emit a piece soon after its start."""
WENET_EMISSION = Emission(lead_ms=250, last_ms=70)
"""WeNet's are trained for streams as well: measured as in `common.asr.zipformer`, half of 30 clips
had the first piece between 240 and 300 ms after the start, the last one within 60 ms of the end."""
INT16 = 32_768
"""WeNet's features are those of 16-bit samples."""
BEAM_SIZE = 4
"""Hypotheses of the beam search that hotwords need (sherpa-onnx's default)."""
HOTWORDS_SCORE = 1.5
"""What a hotword adds to the log probability of each of its pieces (sherpa-onnx's default)."""
_NO_LETTER = re.compile(r"[^\w']+")


class SherpaOnnx:
    """The engine ``sherpa-onnx``; see `common.asr.engine.SpeechEngine`.

    A ``beam_size`` above 1, or hotwords, need a transducer: others take the best token of each
    frame. ``initial_prompt``, ``temperatures`` and ``task`` have no meaning here. Probabilities are
    those of the tokens where sherpa-onnx gives them (transducers); else they are 1.0.

    Args:
        weights: A folder as `common.weights.sherpa` describes it.
        threads: Cores this process may use.

    Raises:
        WeightsMissing: There is no such folder.
        WeightsUnusable: Its network is incomplete, malformed, or for live streams only.
        EngineFailed: The network does not load.
    """

    name = "sherpa-onnx"
    encoder = "onnxruntime"

    def __init__(self, weights: Path, *, threads: int = 1) -> None:
        if not weights.is_dir():
            raise WeightsMissing(model=weights.name, engine=self.name)
        try:
            self._network = network_in(weights, streaming=False)
        except (ValueError, OSError) as error:
            raise WeightsUnusable(model=weights.name, engine=self.name, reason=error) from error
        self._letters = self._network.letters()
        self._has_only_capitals = has_only_capitals(self._letters)
        self._threads = threads
        self._recognizers: dict[int, OfflineRecognizer] = {}
        self._recognizer(beam_size=1)

    def languages(
        self,
        windows: Sequence[Samples],
        *,
        quick: bool = False,  # noqa: ARG002
    ) -> list[Mapping[str, float]]:
        """See `SpeechEngine.languages`: these networks detect none."""
        return [{} for _ in windows]

    def transcribe(
        self, windows: Sequence[Samples], options: DecodingOptions
    ) -> list[tuple[Segment, ...]]:
        """See `SpeechEngine.transcribe`."""
        hotwords, beam_size = "", 1
        if self._network.kind.has_hotwords:
            hotwords = self._hotwords(options.hotwords or "")
            beam_size = max(options.beam_size, BEAM_SIZE if hotwords else 1)
        recognizer = self._recognizer(beam_size)
        return [self._segments(recognizer, window, hotwords, options) for window in windows]

    def align(
        self,
        windows: Sequence[Samples],
        texts: Sequence[Sequence[str]],  # noqa: ARG002
        options: DecodingOptions,  # noqa: ARG002
    ) -> list[tuple[Word, ...] | None]:
        """See `SpeechEngine.align`: sherpa-onnx gives the times only of what it has decoded."""
        return [None for _ in windows]

    def _recognizer(self, beam_size: int) -> OfflineRecognizer:
        """The network with this kind of search, which it has since it was loaded."""
        if beam_size not in self._recognizers:
            try:
                loaded = _load(self._network, self._threads, beam_size)
            except (RuntimeError, ValueError, OSError) as error:
                raise EngineFailed(reason=error) from error
            self._recognizers = {beam_size: loaded}  # one at a time: each holds the whole network
        return self._recognizers[beam_size]

    def _segments(
        self,
        recognizer: OfflineRecognizer,
        window: Samples,
        hotwords: str,
        options: DecodingOptions,
    ) -> tuple[Segment, ...]:
        if not len(window):
            return ()
        result = self._decode(recognizer, window, hotwords)
        pieces = Pieces(
            result.text,
            result.tokens,
            [round(time * 1000) for time in result.timestamps],
            result.ys_log_probs,
        )
        if self._has_only_capitals:
            pieces = pieces.in_lower_case()
        whole = Span(0, len(window) // SAMPLES_PER_MS)
        if pieces.emitted_ms:
            is_wenet = self._network.kind is Kind.WENET_CTC
            words = pieces.words(WENET_EMISSION if is_wenet else EMISSION, whole)
        else:
            words = _spread(pieces.text.split(), loud_span(window))
        decoding = DecodingResult(pieces.text, pieces.avg_logprob, no_speech_prob=0.0)
        return segments_of(decoding, words, window, keep_words=options.word_timestamps)

    def _decode(self, recognizer: OfflineRecognizer, window: Samples, hotwords: str) -> Any:
        audio = np.pad(window, (0, max(0, MIN_SAMPLES - len(window))))
        if self._network.kind is Kind.WENET_CTC:
            audio = audio * INT16
        try:
            stream = recognizer.create_stream(hotwords or None)
            stream.accept_waveform(SAMPLE_RATE, audio)
            recognizer.decode_stream(stream)
        except (RuntimeError, ValueError, IndexError) as error:
            raise EngineFailed(reason=error) from error
        return stream.result

    def _hotwords(self, text: str) -> str:
        """The phrases, separated by commas, in sherpa-onnx's form.

        They have the network's case. Those with letters that the network never writes are left out:
        sherpa-onnx would reject them with a line on stderr.
        """
        known = self._letters
        text = unicodedata.normalize("NFC", text)
        if known == known.upper():
            text = text.upper()
        elif known == known.lower():
            text = text.lower()
        phrases = [" ".join(_NO_LETTER.sub(" ", each).split()) for each in re.split(r"[,\n]", text)]
        spelled = [each for each in phrases if each and set(each) <= {*known, " "}]
        return "/".join(spelled[:MOST_HOTWORDS])


def _load(network: Network, threads: int, beam_size: int) -> OfflineRecognizer:
    parts = network.parts
    common: dict[str, Any] = {"tokens": str(parts.tokens), "num_threads": threads}
    model = str(parts.networks[0])
    match network.kind:
        case Kind.TRANSDUCER | Kind.NEMO_TRANSDUCER:
            return _load_transducer(network, common, beam_size)
        # from_wenet_ctc adds noise to the features, so that the same audio has varying texts.
        case Kind.ZIPFORMER_CTC | Kind.WENET_CTC:
            return OfflineRecognizer.from_zipformer_ctc(model, **common)
        case Kind.NEMO_CTC:
            return OfflineRecognizer.from_nemo_ctc(model, **common)
        case Kind.SENSE_VOICE:
            # With "inverse text normalization" it writes punctuation and digits.
            return OfflineRecognizer.from_sense_voice(model, use_itn=True, **common)
        case _:
            return OfflineRecognizer.from_moonshine(
                encoder=model,
                preprocessor=str(parts.network("preprocess")),
                uncached_decoder=str(parts.network("uncached_decode")),
                cached_decoder=str(parts.network("cached_decode")),
                **common,
            )


def _load_transducer(
    network: Network, common: Mapping[str, Any], beam_size: int
) -> OfflineRecognizer:
    encoder, decoder, joiner = map(str, network.parts.networks)
    searching: dict[str, Any] = {}
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".vocab") as vocabulary:
        if beam_size > 1:
            # Hotwords are split into the pieces of this vocabulary, likelier ones first. The order
            # of the tokens is that of byte pair encoding.
            tokens = read_tokens(network.parts.tokens)
            vocabulary.writelines(f"{token}\t{-index}\n" for token, index in tokens.items())
            vocabulary.flush()
            searching = {
                "decoding_method": "modified_beam_search",
                "max_active_paths": beam_size,
                "hotwords_score": HOTWORDS_SCORE,
                "modeling_unit": _unit(tokens),
                "bpe_vocab": vocabulary.name,
            }
        return OfflineRecognizer.from_transducer(
            encoder,
            decoder,
            joiner,
            model_type="nemo_transducer" if network.kind is Kind.NEMO_TRANSDUCER else "transducer",
            **searching,
            **common,
        )


def _unit(tokens: Mapping[str, int]) -> str:
    """Of what the tokens are made, as sherpa-onnx calls it."""
    pieces = any(token.startswith("\u2581") and len(token) > 1 for token in tokens)
    characters = any(begins_word(token) and not token.startswith(" ") for token in tokens)
    return (
        "+".join(unit for unit, used in (("cjkchar", characters), ("bpe", pieces)) if used)
        or "cjkchar"
    )


def _spread(words: Sequence[str], span: Span) -> list[Word]:
    """The words in equal time for each of their letters."""
    letters = sum(map(len, words))
    spread, before = [], 0
    for word in words:
        start, end = (
            span.start_ms + span.duration_ms * at // letters for at in (before, before + len(word))
        )
        spread.append(Word(f" {word}", Span(start, end), 1.0))
        before += len(word)
    return spread
