"""Variant spellings: short forms, phonetic spellings, disguises.

Only unambiguous forms are listed. Offensive short forms stay short, as they weigh differently from
the words that they abbreviate: all spellings of one become one.
"""

from __future__ import annotations


def _forms(table: str) -> dict[str, str]:
    """Each form with its meaning, from lines ``meaning: form form ...``."""
    meanings: dict[str, str] = {}
    for line in table.strip().splitlines():
        meaning, forms = line.split(":")
        meanings.update(dict.fromkeys(forms.split(), meaning))
    return meanings


MEANT = _forms("""
à: ah àh ak àk áh ák
anh em: ae
biết: bik bjk bjt pik
bây giờ: bjờ bjo bjg
chị: chj cj
cũng: cx cũg cug cg
gì: j ji gj
hôm nay: hnay
không: k ko kô hk hok khum khg khog khôg hem
luôn: lun lunn
làm: lm
mình: mik mìk mìh
mọi người: mn mng
người: ng ngừi
người ta: ngta nta
nhiều: nhìu nhju
như thế nào: ntn
nhưng: nhg nhưg nhưq
nữa: nx
phải: fai fải
quen: wen
quá: wa wá
quê: wê
rồi: r rùi rồy
thích: thik thjk thix
thôi: hoy thoy
thằng: thằg
trai: zai
trong: trog
trung quốc: tq
trước: trc
trời: trùi
việt nam: vn
vui: zui
vô: zô dzô
vậy: z zậy zị zạ zay dzậy
về: zề
với: vs vz zới
xong: xog
yêu: iu
ví dụ: vd
đang: đag dag
đi: ik
đúng: đúg
được: đc dc
ông: ôg
clm: clmn
cặc: kặc kặk cặk kẹc
vcl: vkl vcll vkll vlcl
vl: vll
vãi lồn: vailon vãilồn
đcm: dcm đkm dkm đcmm dcmm đkmm dkmm cdm cđm
đm: dm đmm dmm đme dme đuma
đéo: đíu đêó déo
đĩ: đỹ đỷ đỉ
địt: djt đjt địk
địt mẹ: ditme địtme đitme
lồn: loz lz lòn lìn
ỉa: ĩa
""")
"""Short forms and phonetic spellings."""

DISGUISED = _forms("""
ass: ass
asshole: asshole
bitch: bitch
buồi: buoi buồi
chó: chó
clm: clm
clmm: clmm
cunt: cunt
cặc: cac cặc căc
cứt: cứt
dick: dick
faggot: faggot
fuck: fuck
fucking: fucking
lol: lol
lồn: lon lồn lôn loz
ngu: ngu
nigga: nigga
nigger: nigger
pussy: pussy
shit: shit
slut: slut
vcl: vcl
vkl: vkl
whore: whore
đcm: đcm dcm
đm: đm
đéo: deo đéo
đĩ: đĩ
địt: dit đit địt
đụ: đụ
""")
"""Words disguised by signs, digits and spaces, by the forms that remain without those."""

STARRED = (
    *("đụ", "địt", "đĩ", "đéo", "lồn", "buồi", "cứt", "chó", "ngu", "cặc"),
    *("dick", "bitch", "cunt", "slut", "whore", "pussy", "nigger", "nigga", "faggot", "asshole"),
    *("shit", "fucking", "fuck"),
)
"""Words whose letters are replaced by stars. Of words that look alike so, the last is meant."""

DOUBLED = _forms("""
ass: as
asshole: ashole
asses: ases
boobs: bobs
cool: col
faggot: fagot
good: god
hell: hel
nigga: niga
nigger: niger
poop: pop
pussy: pusy
""")
"""Words with a double letter, by the form that they have after stretched letters are reduced."""
