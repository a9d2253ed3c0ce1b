"""Vietnamese text becomes words as PhoBERT wants them."""

from __future__ import annotations

import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.moderation.segmentation import PIECE, segment_words
from tests.support.programs import run_python


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Bác sĩ bây giờ có thể bị ung thư", "Bác_sĩ bây_giờ có_thể bị ung_thư"),
        ("Đại học Quốc gia Hà Nội.", "Đại_học Quốc_gia Hà_Nội ."),
        ("học sinh, sinh viên", "học_sinh , sinh_viên"),
        ("giá 1.000,5 đồng...", "giá 1.000,5 đồng ..."),
        ("", ""),
        (" \n\t ", ""),
        ("😀😀", "😀 😀"),
        ("_", "_"),
    ],
)
def test_the_syllables_of_a_word_are_joined(text: str, words: str) -> None:
    assert segment_words(text) == words


def test_decomposed_letters_are_the_same_letters() -> None:
    text = "Bác sĩ bây giờ"
    assert segment_words(unicodedata.normalize("NFD", text)) == segment_words(text)


def test_what_is_segmented_stays_so() -> None:
    once = segment_words("Bác sĩ bây giờ có thể báo tin cho bệnh nhân ở thành phố Hồ Chí Minh")
    assert "_" in once
    assert segment_words(once) == once


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_keeps_its_letters_and_digits(text: str) -> None:
    def kept(of: str) -> list[str]:
        return [char for char in unicodedata.normalize("NFC", of) if char.isalnum()]

    assert kept(segment_words(text)) == kept(text)


@pytest.mark.parametrize("text", ["a" * 1_000_000, "không " * 40_000, "!?" * 100_000])
def test_a_long_text_is_segmented_whole(text: str) -> None:
    assert len(segment_words(text).replace(" ", "").replace("_", "")) == len(text.replace(" ", ""))


def test_threads_do_not_disturb_each_other() -> None:
    texts = [f"số {number} là bác sĩ ở bệnh viện" for number in range(PIECE)]
    expected = [segment_words(text) for text in texts]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(segment_words, texts)) == expected


def test_it_brings_in_neither_the_rest_of_underthesea_nor_pytorch() -> None:
    program = (
        "import sys\n"
        "from common.moderation.segmentation import segment_words\n"
        "assert segment_words('bác sĩ') == 'bác_sĩ'\n"
        "heavy = {'underthesea', 'joblib', 'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
