"""The languages of multilingual Whisper, to validate requests.

Source: openai/whisper, whisper/tokenizer.py (LANGUAGES); `yue` came with large-v3 and is the
only one that older weights lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

AUTO: Final = "auto"
"""The value of a request that asks to detect the language."""

LANGUAGES: Final[Mapping[str, str]] = {
    "af": "Afrikaans",
    "am": "Amharic",
    "ar": "Arabic",
    "as": "Assamese",
    "az": "Azerbaijani",
    "ba": "Bashkir",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "bo": "Tibetan",
    "br": "Breton",
    "bs": "Bosnian",
    "ca": "Catalan",
    "cs": "Czech",
    "cy": "Welsh",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "fi": "Finnish",
    "fo": "Faroese",
    "fr": "French",
    "gl": "Galician",
    "gu": "Gujarati",
    "ha": "Hausa",
    "haw": "Hawaiian",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "ht": "Haitian Creole",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "jw": "Javanese",
    "ka": "Georgian",
    "kk": "Kazakh",
    "km": "Khmer",
    "kn": "Kannada",
    "ko": "Korean",
    "la": "Latin",
    "lb": "Luxembourgish",
    "ln": "Lingala",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mg": "Malagasy",
    "mi": "Maori",
    "mk": "Macedonian",
    "ml": "Malayalam",
    "mn": "Mongolian",
    "mr": "Marathi",
    "ms": "Malay",
    "mt": "Maltese",
    "my": "Burmese",
    "ne": "Nepali",
    "nl": "Dutch",
    "nn": "Nynorsk",
    "no": "Norwegian",
    "oc": "Occitan",
    "pa": "Punjabi",
    "pl": "Polish",
    "ps": "Pashto",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sa": "Sanskrit",
    "sd": "Sindhi",
    "si": "Sinhala",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sn": "Shona",
    "so": "Somali",
    "sq": "Albanian",
    "sr": "Serbian",
    "su": "Sundanese",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "tg": "Tajik",
    "th": "Thai",
    "tk": "Turkmen",
    "tl": "Tagalog",
    "tr": "Turkish",
    "tt": "Tatar",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "yi": "Yiddish",
    "yo": "Yoruba",
    "yue": "Cantonese",
    "zh": "Chinese",
}
"""Code to English name, in the codes' order."""

_OTHER_NAMES: Final[Mapping[str, str]] = {
    # Other names (whisper/tokenizer.py, TO_LANGUAGE_CODE).
    "castilian": "es",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "myanmar": "my",
    "panjabi": "pa",
    "pushto": "ps",
    "sinhalese": "si",
    "valencian": "ca",
    # Codes of ISO 639-1 for which Whisper has others, or none of their own.
    "in": "id",
    "iw": "he",
    "jv": "jw",
    "nb": "no",
}
_ISO_639: Final = """
afr:af amh:am ara:ar asm:as aze:az bak:ba bel:be bul:bg ben:bn tib:bo bod:bo bre:br bos:bs cat:ca
cze:cs ces:cs wel:cy cym:cy dan:da ger:de deu:de gre:el ell:el eng:en spa:es est:et baq:eu eus:eu
per:fa fas:fa fin:fi fao:fo fre:fr fra:fr glg:gl guj:gu hau:ha heb:he hin:hi hrv:hr hat:ht hun:hu
arm:hy hye:hy ind:id ice:is isl:is ita:it jpn:ja jav:jw geo:ka kat:ka kaz:kk khm:km kan:kn kor:ko
lat:la ltz:lb lin:ln lao:lo lit:lt lav:lv mlg:mg mao:mi mri:mi mac:mk mkd:mk mal:ml mon:mn mar:mr
may:ms msa:ms mlt:mt bur:my mya:my nep:ne dut:nl nld:nl nno:nn nor:no nob:no oci:oc pan:pa pol:pl
pus:ps por:pt rum:ro ron:ro rus:ru san:sa snd:sd sin:si slo:sk slk:sk slv:sl sna:sn som:so alb:sq
sqi:sq srp:sr sun:su swe:sv swa:sw tam:ta tel:te tgk:tg tha:th tuk:tk tgl:tl fil:tl tur:tr tat:tt
ukr:uk urd:ur uzb:uz vie:vi yid:yi yor:yo chi:zh zho:zh cmn:zh
"""
"""Codes of ISO 639-2, of both kinds, and of 639-3."""
_CODES: Final[Mapping[str, str]] = {
    **{name.lower(): code for code, name in LANGUAGES.items()},
    **_OTHER_NAMES,
    **dict(pair.split(":") for pair in _ISO_639.split()),
    **{code: code for code in LANGUAGES},
}


def language_code(name: str) -> str | None:
    """Whisper's code for a language as users write it, in any case; None: not supported.

    That is a code (``vi``, ``eng``), a locale (``en-US``, ``pt_BR``), or a name (``English``).
    """
    written = name.strip().lower()
    return _CODES.get(written) or _CODES.get(written.replace("_", "-").partition("-")[0])


WRITTEN_WITHOUT_SPACES: Final = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Here Whisper's words carry no leading space (whisper/tokenizer.py, split_to_word_tokens)."""
