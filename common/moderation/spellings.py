"""How people write otherwise what they mean: short forms, sound spellings, disguises.

Only forms that mean one thing are here; the normaliser leaves the others as they are.
"""

from __future__ import annotations


def _pairs(table: str) -> dict[str, str]:
    """From lines ``meaning: form form ...``."""
    pairs: dict[str, str] = {}
    for line in table.strip().splitlines():
        meaning, forms = line.split(":")
        pairs.update(dict.fromkeys(forms.split(), meaning.strip()))
    return pairs


MEANT = _pairs("""
không: k ko kô kh hk hok hông hong khum khg khog khôg hem hok hăm
được: đc dc đk đươc đựơc dk
gì: j ji gj dì
rồi: r rùi rồy rùii roài òi
vậy: z zậy zị dị zạ zay dzậy zậ dậy
với: vs vz zới dới
mình: mik mìk mìh mh mk mừn
biết: bik bít bít bit bik bjt bik pik bt
quá: wa wá qá qua' wóa
yêu: iu yêuu êu
người: ng ngừi ngừ ngừời ngươi'
người ta: ngta nta
mọi người: mn mng mnguoi
như thế nào: ntn
nữa: nx nựa nửa'
làm: lm
nói: ns nóa
cũng: cx cũg cug cg cũn
trước: trc trk
à: ah àh ak àk áh ák
đi: ik đy
nhưng: nhg nhưg nhug nhưq
thích: thik thjk thix thít thik
đang: đag dag đg
trong: trog
xong: xog
đúng: đúg
không: hôn'
ông: ôg
thằng: thằg thg
luôn: lun luôn' lunn
nhiều: nhìu nhìu nhju nhiu
vui: zui dui
vô: zô dzô
về: zề dìa
thôi: hoy thui thoy hoi
chị: chj cj chụy chuỵ
hôm nay: hnay
vợ: vk
chồng: ck
gia đình: gđ
phải: fai fải phảy
quen: wen
quê: wê
trời: trùi trùiii chời giời
trai: zai
bây giờ: bjo bjờ bjg
ví dụ: vd
ngon: ngonn
học sinh: hs
anh em: ae
bạn: bn pạn
đẹp: đẹp' dẹp'
điện thoại: đt
việt nam: vn
trung quốc: tq
cộng sản: cs
""")
"""Short forms and sound spellings, in lower case, with what they mean."""

HIDDEN = _pairs("""
địt: dit đit địt djt djt
lồn: lon lồn lôn loz
cặc: cac cặc căc cak kac
buồi: buoi buồi
đéo: deo đéo
ngu: ngu
chó: chó
cứt: cứt cut'
đụ: đụ
đĩ: đĩ
đm: đm dm
vcl: vcl
vkl: vkl
vl: vl
đcm: đcm dcm
clm: clm
clmm: clmm
lol: lol
fuck: fuck fuk
fucking: fucking
shit: shit
bitch: bitch
cunt: cunt
dick: dick
pussy: pussy
nigger: nigger
nigga: nigga
faggot: faggot
whore: whore
slut: slut
asshole: asshole
ass: ass
""")
"""What people hide behind signs, digits and spaces: ``đ.m``, ``n g u``, ``sh1t``."""

MASKED = tuple(
    "đụ địt đĩ đéo lồn buồi cứt chó ngu cặc dick bitch cunt slut whore pussy nigger nigga faggot "
    "asshole shit fucking fuck".split()
)
"""Words that people write with stars for letters; of those with one mask the last is meant."""

PROFANE = _pairs("""
đm: dm đmm dmm đme dme duma đuma
đcm: dcm đkm dkm đcmm dcmm cdm cđm đkmm dkmm
vcl: vkl vcll vkll vlcl
vl: vll
địt: djt đjt địk
địt mẹ: ditme địtme đitme
lồn: loz lz lozz lòn lìn
đéo: đíu đêó déo đ
cặc: kặc cặk cak kak kẹc
đĩ: đỹ đỷ đỉ đĩi
ỉa: ĩa
vãi lồn: vailon vãilồn vlon vler vlin
con mẹ nó: cmn cmnr'
""")

DOUBLED = _pairs("""
ass: as
asshole: ashole
pussy: pusy
nigger: niger
nigga: niga
faggot: fagot
good: god
cool: col
hell: hel
all: al
boob: bob
too: to'
""")
"""Words that lose a letter of their own when stretched letters are brought back to one."""
