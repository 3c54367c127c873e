#!/usr/bin/env python3
"""How far the reference's own bf16 run is from its f32 run, position by position.

    make_bf16_errors.py OUT_FILE NAME=GOLDEN_DIR[,CHECKPOINT_DIR] ...

GOLDEN_DIR has expected.json and expected.safetensors, and the checkpoint unless CHECKPOINT_DIR is
given. Writes {NAME: {prompt: [error at each of its positions]}} of the prompts that have a
`bf16_relative_error`: norm of the difference over norm, of a position's logits. The largest models
here take 8 GB of memory and a few minutes on one core.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import DeepseekV2ForCausalLM

CHUNK = 2048


@torch.no_grad()
def logits_at(model, ids, positions):
    cache, rows = None, []
    for first in range(0, len(ids), CHUNK):
        out = model.model(input_ids=torch.tensor([ids[first:first + CHUNK]]),
                          past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.last_hidden_state[0])
    return model.lm_head(torch.cat(rows)[positions]).float()


def errors(golden, checkpoint):
    expected = json.loads((golden / "expected.json").read_text())
    f32 = load_file(golden / "expected.safetensors")
    model = DeepseekV2ForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    answer = {}
    for prompt in expected["prompts"]:
        if "bf16_relative_error" not in prompt:
            continue
        want = f32[prompt["name"] + ".logits"]
        difference = logits_at(model, prompt["ids"], prompt["positions"]) - want
        error = difference.norm(dim=1) / want.norm(dim=1)
        answer[prompt["name"]] = [round(float(e), 5) for e in error]
    return answer


def main():
    out, *models = sys.argv[1:]
    answer = {}
    for model in models:
        name, _, folders = model.partition("=")
        golden, _, checkpoint = folders.partition(",")
        answer[name] = errors(pathlib.Path(golden), checkpoint or golden)
    pathlib.Path(out).write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
