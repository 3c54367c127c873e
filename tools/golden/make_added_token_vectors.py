#!/usr/bin/env python3
"""Records what Hugging Face `tokenizers` makes of random added tokens.

    make_added_token_vectors.py MODEL_DIR OUT_DIR

Reads MODEL_DIR/tokenizer.json and gives it, many times over, other added tokens (any content, any
flags) and another post-processor. Writes OUT_DIR/added_tokens_random.jsonl; tests/golden/README.md
describes it. Everything comes from a fixed seed, so the file is the same on every machine.
"""
import argparse
import json
import os
import pathlib

from make_tokenizer_vectors import RandomText, write_lines
from tokenizers import Tokenizer

NUM_TOKENIZERS = 80
NUM_TEXTS = 40  # for each
NUM_ID_LISTS = 10

FLAGS = ["single_word", "lstrip", "rstrip", "normalized", "special"]
# Contents that meet each other, spaces, words, and the symbols in which byte-level BPE writes bytes.
CONTENTS = ["<s>", "</s>", "<s", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "｜", "a", "ab", "abc", "b c",
            " ", "  ", "\t", "\n", "\n\n", "\u3000", "\u00a0", " x", "x ", " the", "the", "1", "12",
            "é", "Ġ", "Ċ", "ø", "ĠĠ", "!", "!!", "<", ">", "日本", "🙂", "e\u0301", "\u0301", "_"]
SPACES = [" ", " ", " ", "\t", "\n", "\r\n", "\u0085", "\u00a0", "\u1680", "\u2003", "\u2028",
          "\u202f", "\u3000", "\u200b", "\ufeff"]  # the last two look like it but are not
WORDS = ["a", "b", "Z", "9", "_", "é", "日", "\u0301", "\u200d", "٣", "½", ".", "-", "🙂", "ab",
         "the", "x"]


def added_tokens(text, vocab):
    """A list for tokenizer.json with the ids that `tokenizers` itself would give."""
    tokens, next_id = [], len(vocab)
    contents = {}
    while len(contents) < 1 + text.below(12):
        if text.below(4):
            content = text.pick(CONTENTS)
        else:
            content = "".join(text.pick(text.pick([WORDS, SPACES, CONTENTS]))
                              for _ in range(1 + text.below(3)))
        contents[content] = None
    for content in contents:
        token = {"id": vocab.get(content, next_id), "content": content}
        next_id += content not in vocab
        for flag in FLAGS:
            token[flag] = text.below(3) == 0
        tokens.append(token)
    return tokens


def post_processor(text, tokens):
    def special(token):
        return {"SpecialToken": {"id": token["content"], "type_id": 0}}

    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                  "use_regex": True}
    around = [text.pick(tokens) if text.below(2) else None for _ in range(2)]
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "pair": pair,
                "single": [*map(special, filter(None, around[:1])), pair[0],
                           *map(special, filter(None, around[1:]))],
                "special_tokens": {t["content"]: {"id": t["content"], "ids": [t["id"]],
                                                  "tokens": [t["content"]]}
                                   for t in around if t}}
    return text.pick([None, byte_level, template,
                      {"type": "Sequence", "processors": [byte_level, template]}])


def string(text, tokens):
    parts = []
    for _ in range(1 + text.below(9)):
        kind = text.below(10)
        if kind < 4:
            parts.append(text.pick(tokens)["content"])
        elif kind < 7:
            parts.append("".join(text.pick(SPACES) for _ in range(1 + text.below(3))))
        elif kind < 9:
            parts.append(text.pick(WORDS))
        else:
            parts.append(text.string(4))
    return "".join(parts)


def encode(tokenizer, string):
    """None where `tokenizers` panics: a token whose text and space the one before it took."""
    try:
        return tokenizer.encode(string, add_special_tokens=True).ids
    except BaseException as error:  # pyo3's PanicException is no Exception
        if type(error).__name__ != "PanicException":
            raise
        return None


def make_case(text, definition):
    tokens = added_tokens(text, definition["model"]["vocab"])
    processor = post_processor(text, tokens)
    tokenizer = Tokenizer.from_str(
        json.dumps({**definition, "added_tokens": tokens, "post_processor": processor}))
    assert all(tokenizer.token_to_id(t["content"]) == t["id"] for t in tokens)
    vocab_size = len(definition["model"]["vocab"])
    texts, id_lists = {}, []
    while len(texts) < NUM_TEXTS:
        one = string(text, tokens)
        ids = encode(tokenizer, one)
        if ids is not None:
            texts[one] = ids
    for _ in range(NUM_ID_LISTS):
        ids = [text.pick(tokens)["id"] if text.below(2) else text.below(vocab_size)
               for _ in range(1 + text.below(6))]
        id_lists.append([ids, tokenizer.decode(ids, skip_special_tokens=False),
                         tokenizer.decode(ids, skip_special_tokens=True)])
    return {"added_tokens": tokens, "post_processor": processor,
            "texts": [list(item) for item in texts.items()], "id_lists": id_lists}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    os.environ["RUST_BACKTRACE"] = "0"  # the panics that encode() catches are written to stderr
    definition = json.loads((args.model / "tokenizer.json").read_text(encoding="utf-8"))
    text = RandomText(4, CONTENTS)
    write_lines(args.out / "added_tokens_random.jsonl",
                [make_case(text, definition) for _ in range(NUM_TOKENIZERS)])


if __name__ == "__main__":
    main()
