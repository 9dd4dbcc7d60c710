"""Which script a letter is of, which scripts a language is written in, and how dense they are."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np

# A script is the first word of its letters' names in Unicode; CJK is Han.
_LANGUAGES = {
    "LATIN": "af ast br bs ca ceb co cs cy da de en eo es et eu fi fil fo fr fy ga gd gl gn ha hr ht hu id ig is "
    "it jv la lb lg ln lt lv mg mi ms mt nb nl nn no ny oc om pap pl pt qu rm ro rw sc sk sl sm sn so sq "
    "ss st su sv sw tk tl tn to tr ts ve vi war wo xh yo zu",
    "CYRILLIC": "ab ba be bg ce cv kv ky mk mn os ru sah tg tt udm uk",
    "LATIN CYRILLIC": "az kk sh sr uz",
    "GREEK": "el",
    "ARABIC": "ar arz ckb fa ps sd ug ur",
    "ARABIC LATIN": "ku",
    "HEBREW": "he iw yi",
    "DEVANAGARI": "bho hi mai mr ne sa",
    "BENGALI": "as bn",
    "GURMUKHI": "pa",
    "GUJARATI": "gu",
    "ORIYA": "or",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "THAI": "th",
    "LAO": "lo",
    "TIBETAN": "bo dz",
    "MYANMAR": "my",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
    "ETHIOPIC": "am ti",
    "KHMER": "km",
    "THAANA": "dv",
    "CJK BOPOMOFO": "yue zh",
    "CJK HIRAGANA KATAKANA": "ja",
    "HANGUL CJK": "ko",
}
_THREE_LETTERS = dict(
    pair.split(":")
    for pair in (
        "afr:af ara:ar ben:bn bul:bg cat:ca ces:cs cmn:zh dan:da deu:de ell:el eng:en est:et eus:eu fas:fa fin:fi "
        "fra:fr fre:fr ger:de gle:ga glg:gl guj:gu heb:he hin:hi hrv:hr hun:hu hye:hy ind:id isl:is ita:it jpn:ja "
        "kan:kn kat:ka kaz:kk khm:km kor:ko lat:la lav:lv lit:lt mal:ml mar:mr mkd:mk mon:mn msa:ms nld:nl nob:nb "
        "nor:no pol:pl por:pt ron:ro rus:ru sin:si slk:sk slv:sl spa:es sqi:sq srp:sr swa:sw swe:sv tam:ta tel:te "
        "tha:th tur:tr ukr:uk urd:ur vie:vi zho:zh"
    ).split()
)
_SCRIPTS = ("", *dict.fromkeys(" ".join(_LANGUAGES).split()))  # a script's number is its place
_OTHER = len(_SCRIPTS)  # of letters of all other scripts
_DENSITY = {"CJK": 3, "HIRAGANA": 2, "KATAKANA": 2, "HANGUL": 2}


def name_language(code: str) -> str:
    """The two letters of a code: "de" for "de", "de-AT", "de_DE" and "deu"; other codes as they are."""
    start = code.replace("_", "-").partition("-")[0].lower()
    return _THREE_LETTERS.get(start, start)


def scripts_of(language: str) -> tuple[str, ...]:
    """Scripts of a language by its code, `()` where the table does not know it."""
    name = name_language(language)
    return next((tuple(scripts.split()) for scripts, codes in _LANGUAGES.items() if name in codes.split()), ())


def share_of_letters(lines: Sequence[str], scripts: Sequence[str]) -> np.ndarray:
    """Share of the letters of each line that are of one of `scripts`; 1 for a line without letters.

    Returns:
        `[N]` float64.
    """
    wanted = np.zeros(_OTHER + 1, bool)
    wanted[[_SCRIPTS.index(script) for script in scripts]] = True
    points, ends = _code_points(lines)
    script = _script_table()[points]
    letters, right = _sum_lines(script > 0, ends), _sum_lines(wanted[script], ends)
    return np.where(letters > 0, right / np.maximum(letters, 1), 1.0)


def measure_lines(lines: Sequence[str]) -> np.ndarray:
    """Lengths that are alike in all scripts: characters, where a Han one counts 3, kana and Hangul 2.

    An English sentence has about 3 times the characters of its Chinese translation and 2 times those of
    its Japanese or Korean one.

    Returns:
        `[N]` int64.
    """
    points, ends = _code_points(lines)
    density = np.array([_DENSITY.get(script, 1) for script in (*_SCRIPTS, "")], np.int64)
    return _sum_lines(density[_script_table()[points]], ends)


def _code_points(lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All characters one after the other, and where each line ends."""
    points = np.frombuffer("".join(lines).encode("utf-32-le", "surrogatepass"), np.uint32)
    return points, np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)))


def _sum_lines(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    return np.diff(before[np.concatenate([np.zeros(1, np.int64), ends])])


@functools.cache
def _script_table() -> np.ndarray:
    """`[0x110000]` uint8: the number of the script of every letter, 0 for what is no letter.

    Modifier letters are nobody's: Japanese writes its long vowels with one, transcriptions use them anywhere.
    """
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    numbers = {script: number for number, script in enumerate(_SCRIPTS) if number}
    for point in range(0x33480):  # above there are no letters
        character = chr(point)
        if unicodedata.category(character) in ("Lu", "Ll", "Lt", "Lo"):
            name = unicodedata.name(character, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
            table[point] = numbers.get(name.partition(" ")[0], _OTHER)
    return table
