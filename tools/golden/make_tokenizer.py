#!/usr/bin/env python3
"""Trains the tiny model's byte-level BPE tokenizer: DeepSeek-V2's pipeline, 1,025 tokens.

    make_tokenizer.py OUT_DIR

Writes OUT_DIR/tokenizer.json and OUT_DIR/tokenizer_config.json in the JSON form of
DeepSeek-V2-Lite's own files. Ids are laid out as there: first the 243 byte symbols (bytes C0, C1
and F5-FF cannot occur in UTF-8 and have none), then id 243+k is the result of merge k, then the
added tokens. The training text is composed from the word lists below with a fixed seed, so the
files are the same on every machine.
"""
import argparse
import json
import os
import pathlib
import random

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Before the import: one thread, one order of ties.

from tokenizers import Tokenizer, models, trainers  # noqa: E402

NUM_MERGES = 779
SEED = 11

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"  # special: false, so skip_special_tokens keeps it.

# The letters that a word is made of, code points in hexadecimal.
LETTERS = """
0041-005A 0061-007A 00B5 00C0-00D6 00D8-00F6 00F8-01BA 01BC-01BF 01C4-0293 0295-02AF 0370-0373
0376 0377 037B-037D 037F 0386 0388-038A 038C 038E-03A1 03A3-03F5 03F7-0481 048A-052F 0531-0556
10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15
1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE
1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115
2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B
2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF
FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2
10CC0-10CF2 118A0-118DF 1E900-1E943
"""

CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}"
    "{% set add_generation_prompt = false %}{% endif %}"
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")

# What the training text is composed of. Each list is one register of text; the weights below say
# how often a line is of that register.
ENGLISH = """
the a an of to in and is was that it for with on as are this be at by from or not have has his her
they we you which one all were there been their more when who will would what up out if about into
than them can only other new some time could these two may then do first any my now such like our
over man even most made after also did many before must through years where much your way well
down should because each just those people how too little state good very make world still own see
men work long here get both between life being under never day same another know while last might
us great old year off come since against go came right used take three expert router latent token
attention worker gateway page layer step model request stream answer question system assistant
user hello please write explain number sentence paper river mountain winter summer garden letter
music station engine kitchen morning evening window science history language question computation
""".split()
ACCENTED = """
café naïve über Führer señor mañana élève garçon Ångström smörgåsbord œuvre Straße coração não São
Łódź żółty příliš kůň dvě più perché città élan déjà vu façade jalapeño Zürich Malmö Tromsø Kraków
Škoda český İstanbul şehir güneş năm người không được
""".split()
CYRILLIC = """
привет мир слово работа время человек день город река гора зима лето вопрос ответ модель сервер
страница слой шаг запрос и в не на что он как это по но они мы
""".split()
GREEK = """
και το να του η της με που την από για στο είναι λόγος κόσμος νερό ήλιος άνθρωπος ημέρα γλώσσα
αριθμός
""".split()
CJK = """
你好 世界 我们 学习 语言 模型 问题 回答 时间 中国 人 大 小 山 水 的 是 在 了 不 有 和 东京 日本語 の は です
こんにちは カタカナ テスト 한국어 안녕 세계 모델 질문
""".split()
EMOJI = "🙂 😀 🎉 👍 🚀 ❤️ 👩‍💻 🇩🇪".split()
CODE = ["for (int i = 0; i < n; ++i) {", "  return x + y;", "}", "def forward(self, x):",
        "    if x is None:", "        return None", "#include <vector>", "std::vector<int> ids;",
        "const auto& page = pages[i];", "print(f\"{name}: {value}\")", "x = x * 2 - 1  # half",
        "SELECT id, name FROM users WHERE id = 7;", "{\"role\": \"user\", \"content\": \"hi\"}",
        "http://example.org/index.html?q=1&r=2", "// -----------------------------",
        "a[i] += b[j];", "\tmov rax, [rbp-8]", "    self.weight = weight",
        "        for k in range(10):"]
END = [".", ".", ".", ",", "!", "?", ";", ":", "...", " -"]
CJK_END = ["。", "，", "！", "？", "、", "」"]


def letters_class():
    """The inside of the character class, each range as literal characters."""
    parts = []
    for item in LETTERS.split():
        ends = [chr(int(code, 16)) for code in item.split("-")]
        parts.append("-".join(ends))
    return "".join(parts)


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def pipeline():
    """tokenizer.json without added tokens, vocabulary and merges."""
    punctuation = "!-/:-~！-／：-～‘-‟\u3000-。"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            split("[\r\n]"),
            split("\\s?[" + letters_class() + "]+"),
            split("\\s?[" + punctuation + "]+"),
            split("\\s+$"),
            split("[一-\u9fa5\u0800-一\uac00-\ud7ff]+"),
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                           "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "vocab": {}, "merges": []},
    }


def byte_symbols():
    """The 243 symbols of the bytes that UTF-8 can hold, in the order of their code points.

    A printable byte is its own symbol; the others take the code points from U+0100 on.
    """
    symbols, spare = [], 0x100
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            symbol = chr(byte)
        else:
            symbol = chr(spare)
            spare += 1
        if byte not in (0xC0, 0xC1) and byte < 0xF5:
            symbols.append(symbol)
    return sorted(symbols)


def training_lines(count):
    """Lines of text in several scripts; only random() is used, which Python keeps reproducible."""
    rng = random.Random(SEED)

    def pick(items):
        return items[int(rng.random() * len(items))]

    def words(items, least, most):
        # The minimum of two draws favours the front of the list, as language does.
        n = least + int(rng.random() * (most - least + 1))
        return [items[int(min(rng.random(), rng.random()) * len(items))] for _ in range(n)]

    for _ in range(count):
        kind = rng.random()
        if kind < 0.50:
            line = " ".join(words(ENGLISH, 5, 14))
            if rng.random() < 0.7:
                line = line[0].upper() + line[1:]
            yield line + pick(END)
        elif kind < 0.60:
            yield " ".join(words(ACCENTED + ENGLISH[:20], 3, 8)) + pick(END)
        elif kind < 0.68:
            yield " ".join(words(CYRILLIC, 3, 8)) + pick(END)
        elif kind < 0.73:
            yield " ".join(words(GREEK, 3, 8)) + pick(END)
        elif kind < 0.81:
            yield "".join(words(CJK, 3, 9)) + pick(CJK_END)
        elif kind < 0.84:
            yield " ".join(words(ENGLISH, 1, 4)) + " " + pick(EMOJI) + " "
        elif kind < 0.90:
            yield f"{pick(ENGLISH)} {int(rng.random() * 10000)}, {rng.random():.3f}"
        else:
            yield pick(CODE)


def train():
    """Vocabulary in id order and merges, as [left, right]."""
    tokenizer = Tokenizer.from_str(json.dumps(pipeline()))
    symbols = byte_symbols()
    trainer = trainers.BpeTrainer(vocab_size=len(symbols) + NUM_MERGES, initial_alphabet=symbols,
                                  special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(training_lines(20000), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    vocab = [token for token, _ in sorted(trained["vocab"].items(), key=lambda item: item[1])]
    merges = [m.split(" ") if isinstance(m, str) else m for m in trained["merges"]]
    assert vocab[:len(symbols)] == symbols, "the byte symbols are not the first ids"
    assert vocab[len(symbols):] == [a + b for a, b in merges], "a merge has not the next id"
    return vocab, merges


def added_token(token_id, content, special):
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": True, "special": special}


def config_token(content):
    return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True,
            "rstrip": False, "single_word": False}


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(out, vocab, merges, added):
    """tokenizer.json and tokenizer_config.json of the pipeline; `added` are BOS, EOS and others."""
    tokenizer = pipeline()
    tokenizer["added_tokens"] = [added_token(len(vocab) + i, content, content in (BOS, EOS))
                                 for i, content in enumerate(added)]
    tokenizer["model"]["vocab"] = {token: i for i, token in enumerate(vocab)}
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in merges]
    write_json(out / "tokenizer.json", tokenizer)
    write_json(out / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "bos_token": config_token(BOS),
        "clean_up_tokenization_spaces": False, "eos_token": config_token(EOS), "legacy": True,
        "model_max_length": 16384, "pad_token": config_token(EOS), "sp_model_kwargs": {},
        "unk_token": None, "tokenizer_class": "LlamaTokenizerFast", "chat_template": CHAT_TEMPLATE})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    vocab, merges = train()
    write_tokenizer(out, vocab, merges, [BOS, EOS, USER])
    print(f"{out}/tokenizer.json: {len(vocab) + 3} tokens, {len(merges)} merges")


if __name__ == "__main__":
    main()
