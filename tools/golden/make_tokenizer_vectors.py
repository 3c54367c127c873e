#!/usr/bin/env python3
"""Records what Hugging Face `tokenizers` and Jinja make of random text with the tiny tokenizer.

    make_tokenizer_vectors.py MODEL_DIR OUT_DIR

Reads MODEL_DIR/tokenizer.json and tokenizer_config.json. Writes OUT_DIR/tokenizer_random.jsonl,
OUT_DIR/detokenizer_random.jsonl and OUT_DIR/chat_template.json; tests/golden/README.md describes
them. Text and ids come from fixed seeds, so the files are the same on every machine.
"""
import argparse
import json
import pathlib
import random

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

NUM_STRINGS = 10000
NUM_ID_LISTS = 1500
NUM_CONVERSATIONS = 200

# What random strings are made of: (weight, code points as inclusive ranges).
ALPHABETS = [
    (16, [(0x61, 0x7A)]),  # lower case
    (5, [(0x41, 0x5A)]),  # upper case
    (6, [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)]),  # ASCII punctuation
    (9, [(0x20, 0x20)]),
    (4, [(0x30, 0x39)]),
    (4, [(0x0A, 0x0A), (0x0D, 0x0D), (0x0A, 0x0A), (0x0D, 0x0D), (0x09, 0x09)]),
    # Everything that \s matches, and what looks like it but is not.
    (6, [(0x09, 0x0D), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
         (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)]),
    (2, [(0x1C, 0x1F), (0x180E, 0x180E), (0x200B, 0x200D), (0x2060, 0x2060), (0xFEFF, 0xFEFF)]),
    (1, [(0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x9F)]),  # control characters
    (5, [(0xC0, 0x24F)]),  # Latin with accents
    (2, [(0xA1, 0xBF)]),
    (3, [(0x300, 0x36F), (0x483, 0x489), (0x20D0, 0x20F0), (0xFE00, 0xFE0F)]),  # combining marks
    (3, [(0x370, 0x3FF), (0x1F00, 0x1FFE)]),  # Greek
    (5, [(0x400, 0x52F)]),  # Cyrillic
    (2, [(0x531, 0x556), (0x10A0, 0x10C5), (0x13A0, 0x13F5), (0x1C90, 0x1CBF), (0x2C00, 0x2CF3),
         (0xA640, 0xA69B), (0xA722, 0xA78E), (0xAB70, 0xABBF)]),  # further cased scripts
    (3, [(0x5D0, 0x5EA), (0x620, 0x6FF), (0x905, 0x939), (0xE01, 0xE30), (0x1780, 0x17B3)]),
    (6, [(0x4E00, 0x9FA5)]),
    # The edges of the third and the fifth pattern.
    (3, [(0x7FF, 0x801), (0x9FA4, 0x9FA8), (0xABFE, 0xAC01), (0xD7FB, 0xD7FF), (0x2017, 0x2020),
         (0x2FFF, 0x3003), (0xFEFF, 0xFF10), (0xFF19, 0xFF21), (0xFF3A, 0xFF41), (0xFF5A, 0xFF5F)]),
    (4, [(0x3040, 0x30FF)]),  # kana
    (3, [(0xAC00, 0xD7A3), (0x1100, 0x11F9)]),  # Hangul syllables and jamo
    # Digits: decimal (Nd), letter-like (Nl) and other (No).
    (3, [(0x660, 0x669), (0x966, 0x96F), (0xFF10, 0xFF19), (0x1D7CE, 0x1D7FF)]),
    (2, [(0x2160, 0x2188), (0x3007, 0x3007), (0x3021, 0x3029), (0x10140, 0x10174)]),
    (2, [(0xB2, 0xB3), (0xB9, 0xB9), (0xBC, 0xBE), (0x2460, 0x249B), (0x3220, 0x3229)]),
    (3, [(0x2010, 0x2027), (0x20A0, 0x20BF), (0x2190, 0x21FF), (0x2500, 0x257F)]),  # symbols
    (4, [(0x1F600, 0x1F64F), (0x1F300, 0x1F5FF), (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF)]),
    (2, [(0x10400, 0x1044F), (0x104B0, 0x104FB), (0x10C80, 0x10CF2), (0x118A0, 0x118DF),
         (0x1E900, 0x1E943)]),  # cased scripts of the supplementary planes
    (2, [(0x20000, 0x2A6DF), (0x1D400, 0x1D7CB)]),
    (1, [(0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)]),  # private use
    (1, [(0xFFF9, 0xFFFD), (0xE0020, 0xE007F), (0x30000, 0x3134A)]),
]
# Pieces that matter as a whole. ADDED stands for one of the tokenizer's added tokens.
ADDED = None
PIECES = [ADDED, ADDED, ADDED, "<｜", "｜>", "<｜User", "<｜end▁of▁sentence", "\r\n", "\n\n",
          "  ", "    ", "\u3000\u3000", "e\u0301", "👩\u200d💻", "🇩🇪", "❤\ufe0f", " the", "ing",
          " Führer", "привет", " λόγος", "你好", "世界", "한국어", "こんにちは", "...", "http://",
          "'s", "n't", "12345", "½", "ﬁ", "İ"]


class RandomText:
    """Random strings; uses only random.random(), which Python keeps reproducible."""

    def __init__(self, seed, added):
        self._rng = random.Random(seed)
        self._added = added
        self._total = sum(weight for weight, _ in ALPHABETS)

    def below(self, n):
        return int(self._rng.random() * n)

    def pick(self, items):
        return items[self.below(len(items))]

    def alphabet(self):
        at = self.below(self._total)
        for weight, ranges in ALPHABETS:
            at -= weight
            if at < 0:
                return ranges

    def character(self, ranges):
        first, last = self.pick(ranges)
        return chr(first + self.below(last - first + 1))

    def string(self, mean_length):
        """A string of runs, each from one alphabet, or of whole pieces; length is geometric."""
        text = ""
        while not text or self._rng.random() > 1.5 / mean_length:
            if self._rng.random() < 0.06:
                piece = self.pick(PIECES)
                text += self.pick(self._added) if piece is ADDED else piece
                continue
            ranges = self.alphabet()
            text += self.character(ranges)
            while self._rng.random() < 0.45:
                text += self.character(ranges)
        return text


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{path}: {len(rows)} lines, {path.stat().st_size} bytes")


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def string_rows(tokenizer, plain, text):
    """[text, ids], then plain ids or null, then the decoded text, where different."""
    rows, seen = [], set()
    while len(rows) < NUM_STRINGS:
        string = text.string(60 if len(rows) % 200 == 199 else 5)
        if string in seen:
            continue
        seen.add(string)
        ids, plain_ids = encode(tokenizer, string), encode(plain, string)
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        row = [string, ids]
        if plain_ids != ids or decoded != string:
            row.append(plain_ids if plain_ids != ids else None)
        if decoded != string:
            row.append(decoded)
        rows.append(row)
    return rows


def id_rows(tokenizer, text):
    """[ids, decoded text], then the text without special tokens, where different."""
    rows = []
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    for i in range(NUM_ID_LISTS):
        count = 1 + text.below(8)
        # Every other list is drawn from the byte symbols and the last tokens: broken UTF-8 and
        # special tokens next to it.
        if i % 2:
            ids = [text.below(size) for _ in range(count)]
        else:
            ids = [text.below(243) if text.below(8) else size - 1 - text.below(3)
                   for _ in range(count)]
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        rows.append([ids, decoded] if skipped == decoded else [ids, decoded, skipped])
    return rows


def fixed_conversations():
    def message(role, content):
        return {"role": role, "content": content}

    hello = message("user", "Hello")
    turns = [message("system", "You are a helpful assistant"), hello,
             message("assistant", "Hi there"), message("user", "Who are you"),
             message("assistant", "   I am an assistant   "), message("user", "Another question")]
    return [
        [], [hello], turns, turns[:3], [turns[0]], [message("assistant", "First word")],
        [hello, turns[0], message("user", "again")],  # a system message in the middle
        [hello, message("tool", "skipped"), message("User", "skipped"), message("", "skipped")],
        [message("developer", "An unknown role alone is skipped")],
        [message("user", "")], [message("system", ""), message("user", ""), turns[2]],
        [message("user", "  leading and trailing \n\n"), message("assistant", " ")],
        [message("user", "<｜end▁of▁sentence｜> in the user's text <｜User｜>")],
        [message("user", "{{ bos_token }} {% if x %} & <b>\"quoted\"</b> \\n 'single'")],
        [message("user", "line\r\nbreaks\rof\u2028all\u0085kinds")],
        [message("user", "你好，世界！🙂"), message("assistant", " Привет, мир. Ürün "), hello],
    ]


def random_conversation(text):
    messages = []
    for _ in range(1 + text.below(4)):
        role = text.pick(["user", "user", "assistant", "assistant", "system", "tool"])
        messages.append({"role": role, "content": text.string(10)})
    return messages


def chat_cases(config, tokenizer, text):
    # The same switches as in transformers' apply_chat_template.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(config["chat_template"])
    conversations = [(m, p) for m in fixed_conversations() for p in (False, True)]
    while len(conversations) < NUM_CONVERSATIONS:
        conversations.append((random_conversation(text), text.below(4) > 0))
    cases = []
    for messages, add_generation_prompt in conversations:
        rendered = template.render(messages=messages, add_generation_prompt=add_generation_prompt,
                                   bos_token=config["bos_token"]["content"],
                                   eos_token=config["eos_token"]["content"])
        cases.append({"messages": messages, "add_generation_prompt": add_generation_prompt,
                      "text": rendered, "ids": encode(tokenizer, rendered)})
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    definition = json.loads((args.model / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((args.model / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    plain = Tokenizer.from_str(json.dumps({**definition, "added_tokens": []}))
    added = [token["content"] for token in definition["added_tokens"]]

    write_lines(args.out / "tokenizer_random.jsonl",
                string_rows(tokenizer, plain, RandomText(1, added)))
    write_lines(args.out / "detokenizer_random.jsonl", id_rows(tokenizer, RandomText(2, added)))
    cases = chat_cases(config, tokenizer, RandomText(3, added))
    path = args.out / "chat_template.json"
    body = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    path.write_text("[\n" + body + "\n]\n", encoding="utf-8", newline="\n")
    print(f"{path}: {len(cases)} conversations, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
