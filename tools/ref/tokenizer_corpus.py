#!/usr/bin/env python3
"""Makes tests/fixtures/tokenizer: a seeded corpus, small tokenizers of our own, and what Hugging Face `tokenizers` makes
of every line, as checksums.

    python tools/ref/tokenizer_corpus.py [--real models/cache/tokenizers] [--train]

Pinned: tokenizers 0.23.3 (the reference), Python >= 3.10. The files:
  corpus.txt        one text a line; \\n, \\r, \\0 and \\\\ are escapes
  own/NAME.json     a tokenizer trained here on the generated text (no third-party vocabulary)
  own/NAME.bin      per line a little-endian u32: the CRC-32 of the ids (i32), the byte offsets (i32 begin, end) where they
                    are compared (see below) and decode(ids) + NUL + decode(ids, skip_special_tokens); its lowest bit is
                    replaced: 1 = with offsets
  variants.json     changes to an own tokenizer that switch on one feature each, with the indices of the lines they run on
  variants.bin      the same per variant and line
  spm/              sentencepiece_fixture.py
  real.json, real/  ("classes": see class_checksum); the same for models/demo and for public tokenizers that scripts/get_tokenizers.sh fetches; only checksums
                    are kept here
and fuzz/corpus/tokenizer.
Decoded text is taken up to its first NUL. Offsets are not compared where Unicode normalization changed the line (the
reference gives a composed character the place of its first part, we give it all parts), where a normalizer replaces
several characters (it gives the place of the last one), and where unknown characters are dropped or reordered (its
offsets slip).
"""
import argparse, copy, hashlib, json, os, random, struct, unicodedata, zlib

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers, normalizers, AddedToken

assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
OUT = os.path.join(ROOT, "tests", "fixtures", "tokenizer")

SENTENCES = """The tower in this picture was finished in the year of the great storm.
Which river runs through the capital of that country, and where does it end?
She didn't say they're late; we've all been there, I'm sure you'd agree, it'll pass.
A model keeps the name of a city near the words that point at it.
What is the capital of this country? Answer in a few words.
Der Zug fährt über die Brücke, und die Möwen schreien übermäßig laut.
Straßenbahnhaltestellen gibt es in jeder größeren Stadt; Fußgänger müssen warten.
Le garçon a mangé une crêpe près de l'église, puis il s'est tu.
Où est passée la clé du château ? Elle était là hier, n'est-ce pas ?
El niño corrió detrás del pingüino; ¿quién lo habría dicho?
¡Qué frío hace en la montaña cuando no sale el sol!
O coração da cidade não é a praça, são as pessoas que lá estão.
Perché l'acqua è così fredda? Perciò nessuno vuole nuotare laggiù.
Příliš žluťoučký kůň skákal přes plot a vůbec se neunavil.
Zażółcona ściana domu stoi obok źródła, które nigdy nie wysycha.
Az öreg tűzoltó öt hűvös üveg vizet ivott, mielőtt útnak indult.
Çocuklar ağaçtan düşen yapraklarla oynuyor; İstanbul'da ışıklar yandı.
Đường phố buổi sáng rất đông người và xe máy chạy khắp nơi.
Þetta er lítið hús við sjóinn og þar býr gömul kona ein.
Välkommen till hjärtat av ön, där allt är gjort av trä.
Река замёрзла рано, и рыбаки вернулись домой без улова.
Какая столица у этой страны? Ответь одним словом, пожалуйста.
Їжак приніс яблуко до лісу, а з'їв його аж увечері.
Το πλοίο έφυγε από το λιμάνι πριν ξημερώσει η μέρα.
Ποια είναι η πρωτεύουσα αυτής της χώρας; Απάντησε σύντομα.
הספינה יצאה מן הנמל לפני עלות השחר ולא שבה עוד.
שָׁלוֹם לכולם, מה שלומכם היום?
غادرت السفينة الميناء قبل الفجر ولم تعد بعد ذلك.
مَا هِيَ عَاصِمَةُ هٰذَا الْبَلَدِ؟
این کشتی پیش از طلوع آفتاب بندر را ترک کرد.
नदी के किनारे बैठा बूढ़ा आदमी कहानी सुना रहा था।
इस देश की राजधानी क्या है?
নদীর ধারে একটি ছোট ঘর আছে, সেখানে কেউ থাকে না।
இந்த நாட்டின் தலைநகரம் எது என்று சொல்லுங்கள்.
ఈ దేశ రాజధాని ఏది? ఒక మాటలో చెప్పండి.
เมืองหลวงของประเทศนี้คืออะไร ตอบสั้น ๆ
ເມືອງຫຼວງຂອງປະເທດນີ້ແມ່ນຫຍັງ
ဤနိုင်ငံ၏မြို့တော်သည် အဘယ်နည်း။
ეს ქალაქი მდინარის პირას დგას და ძალიან ძველია.
Այս քաղաքը գտնվում է գետի ափին և շատ հին է։
የዚህ አገር ዋና ከተማ ማን ናት?
这座塔建于很久以前，没有人记得是谁画的图纸。
这个国家的首都是哪里？请用几个字回答。
這隻貓跳過了圍牆，然後消失在巷子裡。
この国の首都はどこですか。短く答えてください。
カタカナとひらがなと漢字が混ざった文をﾊﾝｶｸで書く。
이 나라의 수도는 어디입니까? 짧게 대답해 주세요.
강물은 얼어붙었고 어부들은 빈손으로 돌아왔다.
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᎠᏍᏓᏯ
ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ
""".strip().split("\n")

CODE = r"""for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    if (x == NULL) { return -1; }
def f(x, y=3): return {k: v**2 for k, v in zip(x, y)}
\tprintf("%d\\n", value);
SELECT name, COUNT(*) FROM items WHERE size >= 10 GROUP BY name;
https://example.org/a/b?c=d&e=%20f#g-h_i
<div class="map" id='m1'>text &amp; more</div>
x = np.zeros((3, 4), dtype=np.float32)[..., None]
git commit -m "fix: don't" && make -j2 >/dev/null 2>&1
#include <stdint.h>\nint main(void) { return 0; }\n
{"key": [1, 2.5e-3, null, true], "nested": {"a": "b"}}
let r: Result<Vec<u8>, _> = s.bytes().map(|b| Ok(b)).collect();
\\frac{a_{i}^{2}}{\\sqrt{2\\pi}} e^{-x^2/2}
user@example.com; 192.168.0.1:8080; C:\\Users\\me\\file.txt
A_LONG_CONSTANT_NAME = 0xDEADBEEF | (1u << 31)
""".strip("\n").split("\n")
CODE = [c.replace("\\t", "\t").replace("\\n", "\n").replace("\\\\", "\\") for c in CODE]

SPACES = [" ", "  ", "   ", "        ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", " \n ", "\u00a0", "\u2003", "\u3000",
          "\u200b", "\u2028", "\x0b", "\x0c", "\x85", "\u202f", "\u1680", "\u180e", "\ufeff", "\u2060", "\x1c", "\x00"]
EMOJI = ["😀", "🎉", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "🇫🇷", "🇯🇵🇵🇪", "👍🏽", "❤️", "☕", "🧑🏿\u200d🚀", "1️⃣", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", "🫨", "🐻\u200d❄️", "☎︎", "♂"]
MARKS = ["e\u0301", "n\u0303", "u\u0308\u0301", "a\u0323\u0302", "\u0041\u030a", "o\u0302\u0300", "q\u0307\u0323", "\u0301", "x\u0336y\u0336",
         "\u1100\u1161\u11a8", "\u0915\u093c", "\u09c7\u09be", "\u05e9\u05c1\u05bc", "\u212b", "\u2126", "ﬁ", "①", "½", "㎏", "Ⅳ", "ｗｉｄｅ", "ǆ", "İ", "ẞ", "ŉ",
         "a\u0327\u0301\u0323", "\u1e0b\u0323", "\u0344", "\u3099か\u3099", "ﾊﾞ", "\u0f73"]
SPECIALS = ["<s>", "</s>", "<unk>", "<image>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>",
            "<pad>", "<|", "|>", "<tool_call>", "</think>", "<mask>", "[INST]", "<s", "<<s>>", "<0x0A>", "<0xE2>"]
DIGITS = ["7", "42", "365", "1984", "10000", "1,234,567.89", "3.14159", "-273.15", "2024-02-29", "12:34:56", "1e-05", "٣٤٥", "१२३",
          "０１２", "²³", "٪50", "¼", "+49 (0)30 123456", "0b1010", "1st 2nd 3rd", "00000000000000000", "Ⅻ", "౩", "1’000"]
RARE = [(0x2E80, 0x2FD5), (0x3400, 0x4DB5), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (0x20000, 0x2A6D6), (0x2EBF0, 0x2EE5D),
        (0x0370, 0x03FF), (0x0400, 0x052F), (0x0900, 0x0DFF), (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1E00, 0x1FFF), (0x2000, 0x2BFF),
        (0xA000, 0xA4C6), (0x10000, 0x100FA), (0x12000, 0x12399), (0x1D400, 0x1D7FF), (0xE000, 0xE00F), (0xFB00, 0xFDFF), (0xFE00, 0xFFFD),
        (0x31350, 0x323AF), (0x1E4D0, 0x1E4F9), (0x10D40, 0x10D65), (0x80, 0x2FF)]


def rare(rng):
    while True:
        lo, hi = rng.choice(RARE)
        c = chr(rng.randint(lo, hi))
        if unicodedata.category(c) != "Cs":
            return c


def words(rng):
    return rng.choice(SENTENCES).split(" ")


def make_line(rng, k):
    kind = k % 18
    s = rng.choice(SENTENCES)
    if kind in (0, 1):
        return s
    if kind == 2:  # languages mixed
        return " ".join(rng.choice(words(rng)) for _ in range(rng.randint(2, 12)))
    if kind == 3:
        return rng.choice(CODE)
    if kind == 4:  # odd white space between words
        return "".join(w + rng.choice(SPACES) for w in words(rng)[:8])
    if kind == 5:
        return "".join(rng.choice([rng.choice(EMOJI), rng.choice(EMOJI), rng.choice(words(rng)), " "]) for _ in range(rng.randint(2, 10)))
    if kind == 6:
        return "".join(rng.choice([rng.choice(MARKS), rng.choice("abcdeou"), rng.choice(words(rng)), " "]) for _ in range(rng.randint(2, 10)))
    if kind == 7:
        return rng.choice(["", " ", "x"]).join(rng.choice([rng.choice(DIGITS), str(rng.randint(0, 10 ** rng.randint(1, 14))), rng.choice(words(rng))]) for _ in range(rng.randint(1, 6)))
    if kind in (8, 9):  # special tokens in the text
        glue = rng.choice(["", " ", "  ", "\n"])
        return glue.join(rng.choice([rng.choice(SPECIALS), rng.choice(SPECIALS), rng.choice(words(rng)), ""]) for _ in range(rng.randint(2, 8)))
    if kind == 10:
        return "".join(rare(rng) if rng.random() < 0.7 else rng.choice(" .,a") for _ in range(rng.randint(3, 20)))
    if kind == 11:  # case and apostrophes
        return " ".join(rng.choice([str.upper, str.lower, str.title, str.swapcase])(w) for w in words(rng)[:7]) + rng.choice(["'s", "'LL", "'Ve", "’s", "'ſ", "'T'", ""])
    if kind == 12:
        return unicodedata.normalize(rng.choice(["NFD", "NFKD", "NFKC"]), s)
    if kind == 13:  # runs
        c = rng.choice(["a", " ", "=", "-", "é", "的", "\t", "1", "!?", "ab", "😀", "\u0301", "\n"])
        return rng.choice(words(rng)) + c * rng.randint(2, 40) + rng.choice(words(rng))
    if kind == 14:  # white space at the ends
        return rng.choice(SPACES) + " ".join(words(rng)[:5]) + rng.choice(SPACES)
    if kind == 15:
        return "USER: <image>\n" + s + " ASSISTANT:" + rng.choice(["", " " + rng.choice(words(rng)) + "</s>"])
    if kind == 16:  # a word cut anywhere and joined to another alphabet
        a, b = rng.choice(words(rng)), rng.choice(words(rng))
        return a[:rng.randint(0, len(a))] + b[rng.randint(0, len(b)):] + rng.choice(".,;:!?()[]{}«»\"'…—–/\\|@#$%^&*~`") * rng.randint(1, 3) + a
    n = rng.randint(1, 30)  # ASCII noise
    return "".join(chr(rng.randint(32, 126)) for _ in range(n))


def make_corpus():
    rng = random.Random(20240606)
    fixed = ["", " ", "  ", "\n", "a", "▁", "▁▁a", "Ġ", "<s>", "<s> a", "a <s>", " <s> ", "\x00", "a\x00b", "\u0301", "é", "e\u0301", "'s", "don't", "x" * 300, " " * 70,
             "\u2581\u2581", "<image>", "USER: <image>\nWhat is this? ASSISTANT:"]
    lines = fixed + [make_line(rng, k) for k in range(5400)]
    return lines


def escape(s):
    return s.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\0")


# ---- own tokenizers ------------------------------------------------------------------------------------------
LLAMA3_SPLIT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
QWEN_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")


def byte_level(prefix=False, trim=True, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex}


def split(pattern, behaviour="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behaviour, "invert": invert}


def seq(kind, *items):
    return {"type": "Sequence", {"n": "normalizers", "p": "pretokenizers", "o": "processors", "d": "decoders"}[kind]: list(items)}


def replace(a, b, kind="String"):
    return {"type": "Replace", "pattern": {kind: a}, "content": b}


def metaspace(scheme, split_=True):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split_}


def template(before=(), after=(), ids=None):
    sp = lambda t: {"SpecialToken": {"id": t, "type_id": 0}}
    single = [sp(t) for t in before] + [{"Sequence": {"id": "A", "type_id": 0}}] + [sp(t) for t in after]
    return {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in sorted(set(before) | set(after))}}


def token(content, id_, special=True, lstrip=False, rstrip=False, single_word=False, normalized=False):
    return {"id": id_, "content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip, "normalized": normalized, "special": special}


def train(lines, size, special, pre=None, norm=None, alphabet=None, limit=None):
    tok = Tokenizer(models.BPE(unk_token=None))
    if pre: tok.pre_tokenizer = pre
    if norm: tok.normalizer = norm
    kw = {"limit_alphabet": limit} if limit else {}
    tok.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet or [],
                                                       show_progress=False, max_token_length=16, **kw))
    return json.loads(tok.to_str())


def own_tokenizers(lines):
    rng = random.Random(7)
    text = [l for l in lines if "<" not in l and len(l) > 8 and "\0" not in l]
    rng.shuffle(text)
    out = {}
    bytes_ = ["<0x%02X>" % b for b in range(256)]
    llama_dec = seq("d", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0})
    norm = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    for name, pre in (("llama2", None), ("llama2-metaspace", metaspace("first", False))):
        # short stretches of text as training words, so that some merges cross spaces as in the original
        parts = [" ".join(l.split(" ")[i:i + 3]) for l in text for i in range(0, 9, 3)]
        j = train(parts, 1500, ["<unk>", "<s>", "</s>"] + bytes_, norm=norm, limit=280)
        j["model"].update(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        j["added_tokens"] = [token(t, i) for i, t in enumerate(["<unk>", "<s>", "</s>"])]
        if pre:
            j["normalizer"] = None
            j["pre_tokenizer"] = pre
        j["post_processor"] = template(["<s>"], ids={"<s>": 1})
        j["decoder"] = llama_dec
        out[name] = j
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    j = train(text, 1300, ["<|endoftext|>"], pre=pre_tokenizers.ByteLevel(add_prefix_space=False), alphabet=alphabet)
    j["post_processor"] = byte_level(True, False)
    j["decoder"] = byte_level(True)
    j["model"].update(continuing_subword_prefix="", end_of_word_suffix="")
    j["model"]["merges"] = [" ".join(m) for m in j["model"]["merges"]]
    out["gpt2"] = j
    llama3 = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    j = train(text, 1300, [], pre=llama3, alphabet=alphabet)
    n = len(j["model"]["vocab"])
    for w in ["Ġpicture", "Ġcapitales", "ocean", "Ġа", "Ġ" * 40, "==" * 9, "ĊĊĊ"]:  # reachable only as whole pieces
        if w not in j["model"]["vocab"]:
            j["model"]["vocab"][w] = n
            n += 1
    j["model"]["ignore_merges"] = True
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<image>"]
    j["added_tokens"] = [token(t, n + i) for i, t in enumerate(names)]
    j["post_processor"] = seq("o", byte_level(True, False), template(names[:1], ids={names[0]: n}))
    j["decoder"] = byte_level(True)
    out["llama3"] = j
    qwen = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    j = train(text, 1300, [], pre=qwen, norm=normalizers.NFC(), alphabet=alphabet)
    n = len(j["model"]["vocab"])
    j["added_tokens"] = [token(t, n + i, special=t[1] == "|") for i, t in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</think>"])]
    j["post_processor"] = byte_level(False, False, False)
    j["decoder"] = byte_level(False, False, False)
    out["qwen"] = j
    out.update(slow_styles(text, alphabet))
    return out


def slow_styles(text, alphabet):
    """Styles whose checkpoints often lack tokenizer.json, put together as transformers' converters do."""
    out = {}
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    j = train(text, 1300, special, pre=pre_tokenizers.ByteLevel(add_prefix_space=False), alphabet=alphabet)
    j["model"]["merges"] = [" ".join(m) for m in j["model"]["merges"]]
    j["post_processor"] = template(["</s>"], ids={"</s>": 2})
    j["decoder"] = byte_level(True)
    out["opt"] = j
    j = train(text, 1300, ["<|endoftext|>"], pre=pre_tokenizers.ByteLevel(add_prefix_space=False), alphabet=alphabet)
    j["model"]["merges"] = [" ".join(m) for m in j["model"]["merges"]]
    n = len(j["model"]["vocab"])
    runs = [" " * k for k in range(31, 1, -1)] + ["\t" * k for k in range(9, 1, -1)]
    j["added_tokens"] += [token(t, n + i, special=False, normalized=True) for i, t in enumerate(runs)]
    j["decoder"] = byte_level(True)
    out["codegen"] = j
    for name, lower in (("bert", True), ("bert-cased", False)):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        norm = normalizers.BertNormalizer(lowercase=lower)
        tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tok.normalizer, tok.pre_tokenizer = norm, pre_tokenizers.BertPreTokenizer()
        tok.train_from_iterator(text, trainers.WordPieceTrainer(vocab_size=1300, special_tokens=special, show_progress=False, limit_alphabet=500))
        j = json.loads(tok.to_str())
        if lower:
            j["post_processor"] = template(["[CLS]"], ["[SEP]"], ids={"[CLS]": 2, "[SEP]": 3})
        else:
            j["post_processor"] = {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}
            j["model"]["max_input_chars_per_word"] = 20
        j["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": lower}
        out[name] = j
    return out


# ---- variants: one feature each -------------------------------------------------------------------------------
def variants(own):
    v = []
    B = "bert"

    def add(name, base, model=None, **top):
        v.append({"name": name, "base": base, "set": top, "model": model or {}})

    L, G, M = "llama2", "gpt2", "llama2-metaspace"
    for n, x in (("lowercase", {"type": "Lowercase"}), ("nfd", {"type": "NFD"}), ("nfkc", {"type": "NFKC"}), ("nfkd", {"type": "NFKD"}), ("nfc", {"type": "NFC"}),
                 ("strip", {"type": "Strip", "strip_left": True, "strip_right": True}), ("strip-left", {"type": "Strip", "strip_left": True, "strip_right": False}),
                 ("strip-right", {"type": "Strip", "strip_left": False, "strip_right": True}), ("prepend", {"type": "Prepend", "prepend": "ab"}),
                 ("accents", seq("n", {"type": "NFD"}, {"type": "StripAccents"})),
                 ("replace-regex", replace("\\s+", " ", "Regex")), ("replace-word", replace("the", "THE")), ("replace-empty", replace(" {2,}|e(?=r)", "", "Regex")),
                 ("nested", seq("n", {"type": "Lowercase"}, seq("n", replace("e", "oo"), {"type": "Prepend", "prepend": "▁"})))):
        add("norm-" + n, L, normalizer=x)
    add("norm-none", L, normalizer=None)
    bl = byte_level(False, True, False)
    add("bytelevel-prefix", G, pre_tokenizer=byte_level(True))
    add("bytelevel-whole", G, pre_tokenizer=byte_level(True, True, False))
    for b in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        add("punctuation-" + b, G, pre_tokenizer=seq("p", {"type": "Punctuation", "behavior": b}, bl))
        for inv in (False, True):
            tag = b + ("-invert" if inv else "")
            add("split-string-" + tag, G, pre_tokenizer=seq("p", split("a", b, inv, "String"), bl))
            add("split-regex-" + tag, G, pre_tokenizer=seq("p", split("[aeiou\\d]+", b, inv), bl))
            add("split-empty-" + tag, G, pre_tokenizer=seq("p", split("x*", b, inv), bl))
    for n, r in (("word", "\\w+"), ("not-word", "\\W"), ("space-class", "[\\s\\d]+|[^\\s\\w]"), ("hex", "\\h{2}"), ("behind", "(?<=[a-z])(?=[A-Z])|(?<!e)r"), ("case", "(?i:THE|й)"),
                 ("possessive", " ?\\p{L}++| ?\\p{N}++|[^\\s]"), ("marks", "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|\\p{N}{1,3}|\\s+"),
                 ("not-letter", "\\P{L}+"), ("han", "\\p{Han}"), ("anchors", "^a|n$|\\A.|\\z"), ("escapes", "[\\x61\\u0065\\x{6f}]|\\t|\\v"), ("atomic", "(?>a|ab)c|b+?"), ("dot", "..")):
        add("regex-" + n, G, pre_tokenizer=seq("p", split(r), bl))
    for ind in (True, False):
        add("digits-%d" % ind, G, pre_tokenizer=seq("p", {"type": "Digits", "individual_digits": ind}, bl))
    add("whitespace", G, pre_tokenizer=seq("p", {"type": "Whitespace"}, bl))
    add("whitespace-split", G, pre_tokenizer=seq("p", {"type": "WhitespaceSplit"}, bl))
    for scheme in ("always", "first", "never"):
        for sp in (True, False):
            add("metaspace-%s-%d" % (scheme, sp), M, pre_tokenizer=metaspace(scheme, sp))
        add("decode-metaspace-" + scheme, M, decoder=metaspace(scheme))
    for prefix in (True, False):
        add("trim-%d" % prefix, G, post_processor=byte_level(prefix, True), pre_tokenizer=byte_level(prefix))
    ids = {"<s>": 1, "</s>": 2}
    add("template-both", L, post_processor=template(["<s>", "<s>"], ["</s>"], ids=ids))
    add("template-eos", L, post_processor=template([], ["</s>"], ids=ids))
    add("post-none", L, post_processor=None)
    add("trim-after-template", L, post_processor=seq("o", template(["<s>"], ids=ids), byte_level(True, True)), normalizer=None)
    add("decode-none", L, decoder=None)
    add("decode-fallback", L, decoder={"type": "ByteFallback"})
    add("decode-fuse-only", L, decoder={"type": "Fuse"})
    add("decode-strip", L, decoder=seq("d", {"type": "Strip", "content": "e", "start": 2, "stop": 0}, replace("[aou]", "*", "Regex")))
    add("decode-bytelevel-on-text", L, decoder=byte_level())
    for fuse in (True, False):
        add("unk-fuse-%d" % fuse, L, model={"byte_fallback": False, "fuse_unk": fuse})
    add("unk-none", L, model={"byte_fallback": False, "unk_token": None})
    add("ignore-merges", G, model={"ignore_merges": True})
    few = {k: i for k, i in own[L]["model"]["vocab"].items() if not (k.startswith("<0x") and k not in ("<0xC3>", "<0xA9>", "<0xA8>", "<0x0A>"))}
    add("unk-some-bytes", L, model={"vocab": few, "fuse_unk": True})
    add("unk-some-bytes-apart", L, model={"vocab": few, "fuse_unk": False})
    base = own[L]["added_tokens"]
    n = len(own[L]["model"]["vocab"])
    flags = lambda **k: base + [token("<image>", n, **k), token("the", n + 1, special=False, **k), token("<tool_call>", n + 2, special=False, **k)]
    add("added-plain", L, added_tokens=flags())
    add("added-lstrip", L, added_tokens=flags(lstrip=True))
    add("added-rstrip", L, added_tokens=flags(rstrip=True))
    add("added-strip-word", L, added_tokens=flags(lstrip=True, rstrip=True, single_word=True))
    add("added-word", L, added_tokens=flags(single_word=True))
    add("added-normalized", L, added_tokens=flags(normalized=True))
    add("added-normalized-lower", L, added_tokens=flags(normalized=True, single_word=True), normalizer={"type": "Lowercase"})
    add("added-normalized-lstrip", M, added_tokens=flags(normalized=True, lstrip=True))
    add("added-overlap", L, added_tokens=base + [token("<s", n), token("<|", n + 1, special=False), token("<|im_", n + 2), token("<|im_start|><", n + 3), token(" <s>", n + 4), token("  ", n + 5, False)])
    for lower in (True, False):
        for marks in (True, False, None):
            add("bert-%s-%s" % (lower, marks), B, normalizer={"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": marks, "lowercase": lower})
    add("bert-raw", B, normalizer={"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False})
    add("bert-roberta", G, post_processor={"type": "RobertaProcessing", "cls": ["!", 1], "sep": ["<|endoftext|>", 0], "trim_offsets": True, "add_prefix_space": False})
    add("bert-roberta-whole", G, post_processor={"type": "RobertaProcessing", "cls": ["!", 1], "sep": ["<|endoftext|>", 0], "trim_offsets": False, "add_prefix_space": True})
    add("wordpiece-bytes", B, pre_tokenizer={"type": "Whitespace"}, normalizer=None, model={"continuing_subword_prefix": "", "max_input_chars_per_word": 7})
    add("wordpiece-clean", B, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}, pre_tokenizer=None)
    g = len(own[G]["model"]["vocab"])
    add("added-trim", G, post_processor=byte_level(True, True), added_tokens=own[G]["added_tokens"] + [token("<image>", g, lstrip=True, rstrip=True), token(" a ", g + 1, special=False)])
    return v


# ---- seeds for fuzz/fuzz_tokenizer.c: a small tokenizer.json, a NUL, a text --------------------------------------
def fuzz_seeds(own, vs):
    keep = {"llama2": 40, "llama2-metaspace": 40, "gpt2": 30, "llama3": 30, "qwen": 30}
    small = {}
    for name, j in own.items():
        if name not in keep and name != "bert": continue
        j = copy.deepcopy(j)
        if name == "bert":
            v = j["model"]["vocab"]
            j["model"]["vocab"] = {t: i for i, t in enumerate([t for t in v if v[t] < 60] + ["the", "##s", "##er", "wh", "##at"])}
            small[name] = j
            continue
        vocab = sorted(j["model"]["vocab"].items(), key=lambda x: x[1])
        merges = [m if isinstance(m, list) else m.split(" ") for m in j["model"]["merges"]][:keep[name]]
        need = {"".join(m) for m in merges} | {p for m in merges for p in m} | {t["content"] for t in j["added_tokens"]}
        need |= {"<0x%02X>" % b for b in (0xE2, 0x96, 0x81, 0xC3, 0xA9, 0x0A)} | {"a", "b", "e", "th"}
        old = dict(vocab)
        names = [t for t, _ in vocab if t in need] + sorted(t["content"] for t in j["added_tokens"] if t["content"] not in old)
        new = {t: i for i, t in enumerate(names)}
        j["model"].update(vocab={t: i for t, i in new.items() if t in old}, merges=merges)
        for t in j["added_tokens"]: t["id"] = new[t["content"]]
        text = json.dumps(j["post_processor"])
        j["post_processor"] = json.loads(text)
        for p in [j["post_processor"]] + j["post_processor"].get("processors", []):
            for t in p.get("special_tokens", {}).values(): t["ids"] = [new[x] for x in t["tokens"]]
        small[name] = j
    text = "USER: <image>\nWhat's the caf\u00e9 e\u0301 <s> \u2581 12345  \U0001f600<|eot_id|>\t?"
    out = {name: j for name, j in small.items()}
    for v in vs:
        if v["model"].get("vocab") or v["set"].get("added_tokens") or "Template" in json.dumps(v["set"]): continue
        if hashlib.sha256(v["name"].encode()).digest()[0] % 4: continue
        j = copy.deepcopy(small[v["base"]])
        j.update(v["set"])
        j["model"].update(v["model"])
        out[v["name"]] = j
    return {n: json.dumps(j, ensure_ascii=False, separators=(",", ":")).encode() + b"\0" + text.encode() for n, j in out.items()}


# ---- running the reference -------------------------------------------------------------------------------------
def nul(b):
    return b.split(b"\0")[0]


def measure(tok, text, unicode_norm, offsets=True):
    enc = tok.encode(text)
    at = [0]
    for c in text: at.append(at[-1] + len(c.encode()))
    ids = struct.pack("<%di" % len(enc.ids), *enc.ids)
    off = b"".join(struct.pack("<2i", at[a], at[b]) for a, b in enc.offsets)
    dec = nul(tok.decode(enc.ids, skip_special_tokens=False).encode()) + b"\0" + nul(tok.decode(enc.ids).encode())
    compared = offsets and all(unicodedata.normalize(f, text) == text for f in unicode_norm)
    return struct.pack("<I", zlib.crc32(ids + (off if compared else b"") + dec) & ~1 | compared)


def class_checksum():
    """CRC-32 over one byte a code point (no surrogates): what BertNormalizer and the punctuation splitter make of it."""
    bert = lambda **on: normalizers.BertNormalizer(**{**dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False), **on})
    clean, han, marks, punct = bert(clean_text=True), bert(handle_chinese_chars=True), bert(strip_accents=True), pre_tokenizers.Punctuation()
    nfd, out = normalizers.NFD(), bytearray()
    for c in range(0x110000):
        if 0xD800 <= c < 0xE000: continue
        ch = chr(c)
        bits = (clean.normalize_str(ch) == "") | (han.normalize_str(ch) != ch) << 1 | (len(punct.pre_tokenize_str("a" + ch)) > 1) << 2
        out.append(bits | (nfd.normalize_str(ch) == ch and marks.normalize_str(ch) == "") << 3)
    return zlib.crc32(bytes(out))


def forms(j):
    norm = j.get("normalizer") or {}
    if norm.get("type") == "BertNormalizer": return ["NFD"] if norm.get("strip_accents", norm["lowercase"]) is not False else []
    return [f for f in ("NFC", "NFD", "NFKC", "NFKD") if '"%s"' % f in json.dumps(norm)]


def reference(j):
    tok = Tokenizer.from_str(json.dumps(j, ensure_ascii=False))
    tok.no_padding()
    tok.no_truncation()
    return tok


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f: f.write(data)


def run(j, lines, offsets=True):
    tok, f = reference(j), forms(j)
    return b"".join(measure(tok, l, f, offsets) for l in lines)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--real", default=os.path.join(ROOT, "models", "cache", "tokenizers"))
    ap.add_argument("--train", action="store_true", help="train own/*.json anew (the trainer breaks ties differently every time)")
    args = ap.parse_args()
    lines = make_corpus()
    write(os.path.join(OUT, "corpus.txt"), "".join(escape(l) + "\n" for l in lines).encode())
    names = ["llama2", "llama2-metaspace", "gpt2", "llama3", "qwen", "opt", "codegen", "bert", "bert-cased"]
    paths = {name: os.path.join(OUT, "own", name + ".json") for name in names}
    own = {name: json.load(open(path)) for name, path in paths.items() if os.path.exists(path) and not args.train}
    if len(own) < len(names): own = {**own_tokenizers(lines), **own}
    for name, j in own.items():
        write(paths[name], json.dumps(j, ensure_ascii=False, separators=(",", ":")).encode())
        write(os.path.join(OUT, "own", name + ".bin"), run(j, lines))
    picked = sorted(set(range(24)) | set(random.Random(3).sample(range(24, len(lines)), 170)))
    vs, data = variants(own), b""
    for v in vs:
        j = copy.deepcopy(own[v["base"]])
        j.update(v["set"])
        j["model"].update(v["model"])
        offsets = not v["name"].startswith(("norm-replace-", "unk-none", "unk-some-"))
        data += run(j, [lines[i] for i in picked], offsets)
    write(os.path.join(OUT, "variants.json"), json.dumps({"lines": picked, "variants": vs}, ensure_ascii=False, separators=(",", ":")).encode())
    write(os.path.join(OUT, "variants.bin"), data)
    for name, seed in fuzz_seeds(own, vs).items():
        write(os.path.join(ROOT, "fuzz", "corpus", "tokenizer", name), seed)
    dirs = {"demo": os.path.join(ROOT, "models", "demo")}
    for name in sorted(os.listdir(args.real)) if os.path.isdir(args.real) else []:
        dirs[name] = os.path.join(args.real, name)
    real = json.load(open(os.path.join(OUT, "real.json"))) if os.path.exists(os.path.join(OUT, "real.json")) else {}
    for name, path in dirs.items():
        raw = open(os.path.join(path, "tokenizer.json"), "rb").read()
        real[name] = {"sha256": hashlib.sha256(raw).hexdigest()}
        write(os.path.join(OUT, "real", name + ".bin"), run(json.loads(raw), lines))
    if "gpt2" in dirs:  # Phi-2's tokenizer is GPT-2's with runs of spaces and tabs behind it
        raw = open(os.path.join(dirs["gpt2"], "tokenizer.json"), "rb").read()
        j = json.loads(raw)
        n = len(j["model"]["vocab"])
        runs = [" " * k for k in range(31, 1, -1)] + ["\t" * k for k in range(9, 1, -1)]
        j["added_tokens"] += [token(t, n + i, special=False, normalized=True) for i, t in enumerate(runs)]
        j["post_processor"] = None
        real["codegen"] = {"sha256": hashlib.sha256(raw).hexdigest()}
        write(os.path.join(OUT, "real", "codegen.bin"), run(j, lines))
    real["classes"] = class_checksum()
    write(os.path.join(OUT, "real.json"), json.dumps(real, indent=2).encode() + b"\n")
    print("%d lines, %d own, %d variants, %d others" % (len(lines), len(own), len(vs), len(dirs)))


if __name__ == "__main__":
    main()
