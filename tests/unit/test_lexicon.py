"""The word lists: what they find, where, and what they leave alone."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.domain.moderation import Label, Mark
from common.moderation.lexicon import WORDS_DIR, Lexicon, read_entries
from common.moderation.normalise import fold, normalise

CLEAN, OFFENSIVE, HATE = Label
LEXICON = Lexicon()


def found(text: str) -> list[str]:
    return [text[find.mark.start : find.mark.end] for find in LEXICON.find(text)]


INNOCENT = """
The class will assess the assets in Essex and Sussex.
Scunthorpe and Penistone are towns in England.
The cockpit crew ordered a cocktail and shiitake mushrooms.
Charles Dickens wrote about a Dickensian winter.
He passed the bass to the grasshopper on the grass.
Assassins assembled at the embassy.
The analyst made a thorough analysis of the canal.
Hancock and Babcock discussed peacocks.
The Japanese ambassador arrived in Niger and Nigeria.
He was niggardly with his sniggering.
The matsutake and the shih tzu.
Mishit the ball and hit the wall.
Pushit and Bushitsu are not words.
I titled the constitution and its institution.
The therapist saw grapes and drapery.
Count the counties in the country.
The scrap metal was scraped off.
Swank hotels and swanky bars.
Wankel built an engine.
Arsenal drank parsley and arsenic.
Raccoons and tycoons live in cocoons.
A fagot is a spelling of bundle, a faggoting stitch is a seam.
Montenegro is a country.
The turducken was good, the saturday market too.
Uranus is a planet.
Peniston and Lipschitz met Schitt at the creek.
A retardant slows the fire, ritardando slows the music.
They kick ass in that movie.
Dick Van Dyke sang in Mary Poppins.
The chink in his armour was small, chinks in the wall.
Spick and span, the kitchen shone.
Pussy willows grow by the river.
She has a maine coon.
Moby Dick is a whale.
I am cumbersome, the cucumber is green.
The document accumulates dust.
Circumstances vary.
Hello, shell, and Michelle.
This is a good morning.
I want to hit the road.
Where is the exit?
Cc: An, Bcc: Binh
It costs 5 k, that is all.
See U.S.A. v. A. M. Turing.
The hoe and the garden tools.
Gay and lesbian people marched; queer studies is a field.
He is a Jew, she is a Muslim, they are black.
Thai food and Korean BBQ
What a lol moment
The prickly pear pricked her.
The bloody hell of war
Rooster and hen
Hôm nay trời đẹp quá, mình đi chơi nhé.
Anh Phúc và chị Bích ở Long An.
Bán lon nước ngọt và lon bia.
Con chó nhà tôi rất ngoan.
Con chó sủa cả đêm.
Tôi thích ăn hạt óc chó và uống sữa óc chó.
Cây óc chó và quả óc chó
Lũ chó con thật đáng yêu.
Cái lợn đất đựng tiền
Chợ lớn ở Hà Nội
Em bé bú sữa mẹ.
Mẹ ơi, con về rồi.
Bố mẹ dạy con cái.
Bà nội cho cháu kẹo.
Cháu chào ông bà.
Bò kho và bún bò Huế
Mặt trời mọc ở hướng đông.
Cặp sách của em
Cắt tóc ở tiệm
Đi đứng cẩn thận
Đít nồi đen thui
Đu đủ chín cây
Dù mẹ có đi xa
Đũa tre và bát sứ
Đeo khẩu trang khi ra đường
Nghỉ ngơi và ngủ trưa
Nguyễn Ngữ Nghĩa
Ngũ cốc nguyên hạt
Người nghèo và người giàu
Mày mò sửa máy
Tàu hỏa và tàu thủy
Cộng sản và tư bản
Đảng và nhà nước
Quảng Nam, Quảng Ngãi
Thằng bé ngoan lắm.
Bọn mình đi học.
Chúng tôi là người Việt Nam.
Xin cảm ơn quý vị.
Điểm số của học sinh
Diếp cá và rau thơm
Lớn lên em làm bác sĩ.
Lôi kéo và lồng đèn
Buổi sáng, buổi tối, bưởi Năm Roi
Cúc họa mi
Năm 1975, lúc 10:30, giá 1.000.000 đồng
Dê, heo, gà, vịt, trâu
Vải thiều và vài quả cam
Thần kinh học và khoa học
Máu hiến tặng
Phò tá nhà vua
Bắc kỳ, Trung kỳ và Nam kỳ
Câu cá và cầu thang
Khung cửa và khung hình
Lao động và lão hóa
Duma Quốc gia Nga, Bàn Môn Điếm
Nhà cửa sáng sủa, đồ đạc rơi vãi
Hoàn cảnh éo le, dáng đi uốn éo
Trứng cút lộn
Ỉu xìu như bánh đa
Hom nay troi dep qua
Cho toi hai lon bia va mot dia rau
Con cho nha toi rat ngoan
Dung de lau qua nhe
Me oi con ve roi
Dit nồi
Bich, Phuc, Dung, Long, Dong, Cuc, Hang
Cac ban khoe khong
Cái này có được không ạ
k sao đâu, mn cứ đi
🐶🐱💐❤️😂
""".strip().splitlines()


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_has_no_listed_word(text: str) -> None:
    assert found(text) == []


OFFENDING = {
    OFFENSIVE: [
        *("[fuck] this", "what the [FUCK]", "you are [fucking] late", "we are [fucked]"),
        *("those [motherfuckers]", "[mother fucker]!", "[f*ck] off", "[f**k] off", "[f u c k] off"),
        *("[f.u.c.k] off", "[fuuuuuck]", "[fück]", "[fúck]", "[sh!t] happens", "[s h i t]"),
        *("[bullshit]", "a [shitty] day", "[piece of shit]", "[b1tch]", "[sons of bitches]"),
        *("what an [asshole]", "my [a$$]", "[asssss]", "[cunt]", "you [wanker]", "[sluts]"),
        *("[whores]", "[stfu]", "[địt mẹ mày]", "[Địt con mẹ] nó", "[đ*t]", "[dcm] nhé"),
        *("[đkm] nhé", "[ditme]", "[dit me may]", "[cái lồn]", "[l*n]", "[l0n]", "[con cặc]"),
        *("[con kặk]", "[c4c]", "[đụ má]", "[đầu buồi]", "[như cc]", "[clm]", "[xạo lol]"),
        *("[ngu vcl]", "[con mẹ nó] chứ", "[vô học]"),
    ],
    HATE: [
        *("[niggers]", "[n1gger]", "[faggots]", "[kill yourself]", "[white trash]", "a [retard]"),
        *("those [kikes]", "[đồ chó đẻ]", "[thằng ngu]", "[đồ n g u]", "[đồ nguuuu]"),
        *("thằng [óc chó]", "[lũ súc vật]", "[con đĩ mẹ mày]", "[đồ c.hó]", "[thang cho de]"),
        *("[bò đỏ]",),
    ],
}
"""Texts with the word that gives offence in brackets."""


@pytest.mark.parametrize(
    ("bracketed", "label"), [(text, label) for label, texts in OFFENDING.items() for text in texts]
)
def test_an_offending_text_is_found_and_decided(bracketed: str, label: Label) -> None:
    before, word, after = re.split(r"[][]", bracketed)
    (find,) = LEXICON.find(before + word + after)
    assert find.mark == Mark(len(before), len(before) + len(word), label, "list")
    assert find.decides


@pytest.mark.parametrize(
    "text",
    [
        *("Dick is here", "the rooster is a cock", "oh damn", "a pack of fags", "dyke"),
        *("đéo biết", "vcl", "ngu", "mất dạy", "sủa", "cứt", "150 cc", "vãi lồn", "đ.m", "DM"),
        "ĐMM",
    ],
)
def test_a_word_with_another_meaning_only_marks(text: str) -> None:
    (find,) = LEXICON.find(text)
    assert not find.decides


def test_finds_are_returned_in_order_with_their_places() -> None:
    text = "👨\u200d👩\u200d👧 Đồ n g u, &lt;fuck&gt; ăn hạt óc chó đ . m 🖕🏻"
    assert found(text) == ["Đồ n g u", "fuck", "đ . m", "🖕🏻"]


def test_the_longest_phrase_is_meant() -> None:
    assert found("địt con mẹ mày") == ["địt con mẹ mày"]
    assert found("son of a bitch") == ["son of a bitch"]


listed = st.sampled_from(
    ["fuck", "địt mẹ", "đ.m", "n g u", "con mẹ nó", "sh1t", "óc chó", "ditme", "🖕🏻", "asssss"]
)
other = st.sampled_from(
    [
        *("hôm nay", "class", "👨\u200d👩\u200d👧", "a\u0301\u0300", "&amp;", "https://a.vn/x"),
        *("\u200b", "k", "1.000"),
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(listed, other, st.text(max_size=5))).map(" , ".join))
def test_finds_lie_inside_the_text_in_order_and_on_listed_words(text: str) -> None:
    end = 0
    for find in LEXICON.find(text):
        assert end <= find.mark.start < find.mark.end <= len(text)
        end = find.mark.end
        again = LEXICON.find(text[find.mark.start : find.mark.end])
        assert again
        assert again[0].mark.start == 0


@settings(deadline=None, max_examples=200)
@given(st.lists(other), listed, st.lists(other))
def test_listed_words_are_found_in_any_text(before: list[str], word: str, after: list[str]) -> None:
    text = " , ".join([*before, word, *after])
    start = len("".join(f"{piece} , " for piece in before))
    assert (start, start + len(word)) in {
        (find.mark.start, find.mark.end) for find in LEXICON.find(text)
    }


INITIAL = "ngh?|gh?|gi?|kh?|nh|ph|th|tr|ch|qu|[bcdhlmnprstvx]"
FINAL = "ch|nh|ng|[cmnptiyou]"
SYLLABLE = re.compile(rf"(?:{INITIAL})?[aeiouy]{{1,3}}(?:{FINAL})?")
"""Any Vietnamese syllable without its diacritics, and many that are none."""


def test_no_english_entry_can_be_vietnamese() -> None:
    entries = [normalise(entry.phrase).words for entry in read_entries(WORDS_DIR / "en.txt")]
    assert not [words for words in entries if all(map(SYLLABLE.fullmatch, map(fold, words)))]


def test_no_entry_is_listed_twice() -> None:
    for name in ("vi.txt", "en.txt"):
        phrases = [normalise(entry.phrase).words for entry in read_entries(WORDS_DIR / name)]
        assert not [phrase for phrase, times in Counter(phrases).items() if times > 1]


def test_every_entry_can_be_found() -> None:
    for name in ("vi.txt", "en.txt"):
        for entry in read_entries(WORDS_DIR / name):
            finds = [(find.mark.label, find.decides) for find in LEXICON.find(entry.phrase)]
            assert finds == ([(entry.label, entry.decides)] if entry.label else []), entry.phrase
