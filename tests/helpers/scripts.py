"""Texts of many scripts: sentences as people write them, and strings drawn from the blocks of each script."""

import random
import unicodedata
from collections.abc import Iterator

# Article 1 of the Universal Declaration of Human Rights, or what a newspaper would write.
SENTENCES: dict[str, tuple[str, ...]] = {
    "Latin": (
        "All human beings are born free and equal in dignity and rights; they've 1,234.56 reasons.",
        "Zażółć gęślą jaźń — être, Übergrößen, ångström, İstanbul'da çok güzel, Tiếng Việt có dấu.",
    ),
    "Cyrillic": ("Все люди рождаются свободными и равными в своём достоинстве и правах. Їжак, ґанок, ѓорѓи.",),
    "Greek": ("Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι. Ἐν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν.",),
    "Hebrew": ("כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. בְּרֵאשִׁית בָּרָא אֱלֹהִים",),
    "Arabic": ("يولد جميع الناس أحراراً متساوين في الكرامة والحقوق، ١٢٣٤. می‌خواهم کتاب‌ها را بخوانم",),
    "Devanagari": ("सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है। क़ीमत १२३",),
    "Bengali": ("সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে। ড়ঢ়য় ৪৫৬",),
    "Tamil": ("மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; கௌ கொ கோ.",),
    "Thai": ("มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ น้ำ ๑๒๓",),
    "Georgian": ("ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",),
    "Armenian": ("Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։",),
    "Ethiopic": ("የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",),
    "Khmer": ("មនុស្សទាំងអស់ កើតមកមានសេរីភាព និងសមភាព ក្នុងផ្នែកសេចក្ដីថ្លៃថ្នូរ។",),
    "Hangul": ("모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. ㄱㄴㄷ 2026년",),
    "Han": ("人人生而自由,在尊严和权利上一律平等。臺灣的「繁體字」與𠀀𠮷等罕見字，１２３４。",),
    "Kana": ("すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。ｶﾞｷﾞ ㌔",),
    "Symbols": (
        "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👍🏽 🇺🇦🇯🇵 ☺️☺ 1️⃣ → ∀x∈ℝ: ⌈x⌉ ≥ x, ½ ① ﬁ Å ℃ e\u0301\u0323 ¯\\_(ツ)_/¯",
        "\u00a0\u2003 \u200b\ufeff\u2028\t\r\n\n   def f(x):\r\n\t\treturn x**2  # \x00\x04\x1b\x7f \U00050000",
    ),
}

_BLOCKS: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x20, 0x7F), (0xA0, 0x250), (0x1E00, 0x1F00), (0x300, 0x370)),
    "Cyrillic": ((0x400, 0x530), (0x300, 0x310), (0x20, 0x40)),
    "Greek": ((0x370, 0x400), (0x1F00, 0x2000), (0x300, 0x346)),
    "Hebrew": ((0x591, 0x5F5), (0xFB1D, 0xFB50), (0x20, 0x40)),
    "Arabic": ((0x600, 0x700), (0xFE70, 0xFF00), (0x200B, 0x2010)),
    "Devanagari": ((0x900, 0x980), (0x200C, 0x200E), (0x20, 0x40)),
    "Bengali": ((0x980, 0xA00), (0x20, 0x30)),
    "Tamil": ((0xB80, 0xC00), (0x20, 0x30)),
    "Thai": ((0xE01, 0xE5C), (0x20, 0x30)),
    "Georgian": ((0x10A0, 0x1100), (0x20, 0x30)),
    "Armenian": ((0x531, 0x590), (0x20, 0x30)),
    "Ethiopic": ((0x1200, 0x1380), (0x20, 0x30)),
    "Khmer": ((0x1780, 0x1800), (0x20, 0x30)),
    "Hangul": ((0xAC00, 0xD7A4), (0x1100, 0x1200), (0x3131, 0x3190)),
    "Han": ((0x4E00, 0xA000), (0x20000, 0x20100), (0xF900, 0xFB00), (0xFF00, 0xFF60)),
    "Kana": ((0x3041, 0x3100), (0xFF61, 0xFFA0), (0x3099, 0x309B)),
    "Symbols": ((0x1F300, 0x1FB00), (0x200B, 0x2070), (0x2100, 0x2800), (0, 0x20), (0xFE00, 0xFE10), (0x20, 0x110000)),
}


def drawn_texts(script: str, number: int, seed: int = 0) -> Iterator[str]:
    """Strings of a script's blocks, combining marks among them, with runs of spaces and numerals; never surrogates."""
    draw = random.Random(f"{script} {seed}")
    for _ in range(number):
        parts = []
        for _ in range(draw.randrange(1, 16)):
            if draw.random() < 0.15:
                parts.append(draw.choice([" ", "  ", "\n", "\n\n    ", "\t", "12", "3.14159", "a", "the ", "='"]))
            else:
                code = draw.randrange(*draw.choice(_BLOCKS[script]))
                parts.append("?" if 0xD800 <= code < 0xE000 else chr(code))
        yield "".join(parts)


def texts_of_scripts(number: int) -> list[str]:
    """Per script its sentences, also decomposed (NFD) and with doubled spaces, and ``number`` drawn texts."""
    found = []
    for script, sentences in SENTENCES.items():
        for sentence in sentences:
            found += [sentence, unicodedata.normalize("NFD", sentence), f"  {sentence.replace(' ', '  ')}\n"]
        found += drawn_texts(script, number)
    return found
