#!/usr/bin/env python3
"""Trains the demo model's byte-level BPE tokenizer: DeepSeek-V2's pipeline, 768 ids.

    make_tokenizer.py OUT_DIR

Writes OUT_DIR/tokenizer.json and OUT_DIR/tokenizer_config.json. The training text is conversations
of tasks.py from a fixed seed, and each letter as a word by itself, so that spelling has a token for
every letter. Pipeline, file layout and chat template are those of tools/golden/make_tokenizer.py.
"""
import argparse
import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "golden"))
import make_tokenizer as golden  # noqa: E402
from tokenizers import Tokenizer, trainers  # noqa: E402

import tasks  # noqa: E402

VOCAB_SIZE = 768  # with the two special tokens
SEED = 1


def training_lines(count):
    rng = random.Random(SEED)
    weights = {task: 1 for task in tasks.TASKS} | {"about": 3}
    for _ in range(count):
        _, problems = tasks.conversation(rng, weights)
        for problem in problems:
            yield f"User: {problem.question}\n\nAssistant: {problem.reply}"
    for letter in "abcdefghijklmnopqrstuvwxyz":
        yield f" {letter}" * 20000


def train():
    """Vocabulary in id order and merges, as [left, right]."""
    symbols = golden.byte_symbols()
    tokenizer = Tokenizer.from_str(json.dumps(golden.pipeline()))
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - 2, initial_alphabet=symbols,
                                  special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(training_lines(20000), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    vocab = [token for token, _ in sorted(trained["vocab"].items(), key=lambda item: item[1])]
    merges = [m.split(" ") if isinstance(m, str) else m for m in trained["merges"]]
    assert vocab[:len(symbols)] == symbols, "the byte symbols are not the first ids"
    assert vocab[len(symbols):] == [a + b for a, b in merges], "a merge has not the next id"
    return vocab, merges


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    vocab, merges = train()
    golden.write_tokenizer(out, vocab, merges, [golden.BOS, golden.EOS])
    print(f"{out}/tokenizer.json: {len(vocab) + 2} tokens, {len(merges)} merges")


if __name__ == "__main__":
    main()
