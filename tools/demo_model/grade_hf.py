#!/usr/bin/env python3
"""Grades the checkpoint through Hugging Face transformers, beside the replies of the service.

    grade_hf.py REPLIES.jsonl [--model DIR] [--dtype bfloat16|float32]

REPLIES.jsonl is what `tandem eval --replies` wrote. One forward pass over a prompt and the
service's reply tells whether greedy decoding by transformers gives the same reply: it does if at
every position the reply's next token is the most likely one. Where it is not, transformers goes on
from there by itself, and the difference of the two logits is printed: a near-tie, or an error.
Prints the accuracy per task of both, and how many replies are the same.
"""
import argparse
import collections
import json
import pathlib

import jinja2
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import tasks

HERE = pathlib.Path(__file__).resolve().parent


class Prompter:
    """A conversation to the ids of its prompt, by the checkpoint's own template."""

    def __init__(self, folder):
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        self.template = environment.from_string(config["chat_template"])
        self.special = {name: config[name]["content"] for name in ("bos_token", "eos_token")}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, messages):
        text = self.template.render(messages=messages, add_generation_prompt=True, **self.special)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, ids):
        return self.tokenizer.decode(ids)


@torch.no_grad()
def compare(model, prompt, reply, max_tokens):
    """transformers' greedy reply, and by how much it prefers its token where the two part."""
    eos = model.config.eos_token_id
    given = prompt + reply + [eos]
    logits = model(torch.tensor([given])).logits[0].float()
    for i in range(len(prompt), len(given)):
        row = logits[i - 1]
        best = int(row.argmax())
        if row[best] > row[given[i]]:  # equal bf16 logits are one choice
            start = given[:i] + [best]
            if best != eos:
                start = model.generate(torch.tensor([start]), do_sample=False,
                                       max_new_tokens=max_tokens)[0].tolist()
            own = start[len(prompt):]
            own = own[:own.index(eos)] if eos in own else own
            return own, float(row[best] - row[given[i]])
    return reply, 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("replies", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, default=HERE / "checkpoint")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--max-tokens", type=int, default=160)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model,
                                                 dtype=getattr(torch, options.dtype)).eval()
    prompter = Prompter(options.model)
    tally = collections.defaultdict(lambda: [0, 0, 0])  # problems, right by service, by transformers
    same, largest = 0, 0.0
    for line in options.replies.read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        item = json.loads(line)
        prompt = prompter.ids(item["messages"])
        own, gap = compare(model, prompt, item["ids"], options.max_tokens)
        counts = tally[item["task"]]
        counts[0] += 1
        counts[1] += item["right"]
        counts[2] += tasks.right(prompter.text(own), item["answer"])
        if own == item["ids"]:
            same += 1
            continue
        largest = max(largest, gap)
        print(f"{item['task']}: {item['messages'][-1]['content']!r}: service {item['reply']!r}, "
              f"transformers {prompter.text(own)!r}, logits {gap:.4f} apart")
    total = [sum(column) for column in zip(*tally.values())]
    print(f"{'task':<10} problems  service  transformers")
    for task, (count, service, own) in [*sorted(tally.items()), ("all", total)]:
        print(f"{task:<10} {count:8} {100 * service / count:7.1f}% {100 * own / count:12.1f}%")
    print(f"{same} of {total[0]} replies are the same")
    if same < total[0]:
        print(f"where they part, the logits are at most {largest:.4f} apart")


if __name__ == "__main__":
    main()
