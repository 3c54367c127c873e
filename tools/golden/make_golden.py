#!/usr/bin/env python3
"""Runs the tiny model through Hugging Face transformers and records what it answers.

    make_golden.py MODEL_DIR

Writes MODEL_DIR/expected.json and MODEL_DIR/expected.safetensors; tests/golden/README.md describes
both. Every step of a greedy answer recomputes the whole sequence without a cache, so the ids do not
depend on the reference's own cache code. Takes about a minute on one core.
"""
import argparse
import json
import pathlib
import random

import torch
import transformers
from safetensors.torch import save
from transformers import DeepseekV2ForCausalLM

GREEDY_TOKENS = 32
# Below this distance between the best and the second logit, f32 rounding might choose otherwise.
LEAST_MARGIN = 2e-3

# name, number of ids, seed, positions whose logits are kept: enough of them that one expert chosen
# otherwise in bf16 does not decide a prompt's bf16 error. The page size is 64. The seeds are such
# that no greedy answer passes a near tie, an added token or an id without a token.
PROMPTS = [
    ("one", 1, 1, {0}),
    ("short", 17, 22, set(range(17))),
    ("page", 64, 43, set(range(0, 64, 3))),
    ("page_plus_one", 65, 54, set(range(0, 65, 4)) | {63}),
    ("medium", 300, 5, set(range(11, 300, 16)) | {63, 64, 127, 128, 255, 256, 299}),
    ("long", 700, 6, set(range(27, 700, 32)) | {63, 64, 511, 512, 699}),
]
MASKED_PROMPT = ("masked", 9, 267)


def load(path, dtype):
    model, info = DeepseekV2ForCausalLM.from_pretrained(path, dtype=dtype,
                                                        output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], f"{key}: {sorted(info[key])[:3]}"
    check_softmax_scale(model)
    return model.eval()


def check_softmax_scale(model):
    """Refuses versions of transformers that leave YaRN's factor out of the softmax scale."""
    config = model.config
    rope = config.rope_parameters
    factor = 0.1 * rope["mscale_all_dim"] * float(torch.tensor(rope["factor"]).double().log()) + 1
    expected = factor**2 / (config.qk_nope_head_dim + config.qk_rope_head_dim)**0.5
    for layer in model.model.layers:
        found = layer.self_attn.scaling
        assert abs(found - expected) < 1e-7, (
            f"transformers {transformers.__version__} scales scores by {found}, not {expected}")


@torch.no_grad()
def all_logits(model, ids):
    """Logits [len(ids), vocab] as float32, from one uncached pass."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


@torch.no_grad()
def greedy(model, ids, num_tokens):
    """The greedy continuation over the first `num_tokens` ids, and its smallest margin."""
    answer, margin = [], float("inf")
    for _ in range(GREEDY_TOKENS):
        row = all_logits(model, ids + answer)[-1, :num_tokens]
        best = torch.topk(row, 2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        answer.append(int(best.indices[0]))
    return answer, round(margin, 6)


def random_ids(count, seed, num_tokens):
    rng = random.Random(seed)
    return [int(rng.random() * num_tokens) for _ in range(count)]


def record_prompt(model, name, ids, positions, first_added, tensors):
    positions = sorted(positions)
    logits = all_logits(model, ids)[positions]
    tensors[f"{name}.logits"] = logits.contiguous()
    answer, margin = greedy(model, ids, model.config.vocab_size)
    assert margin >= LEAST_MARGIN, f"{name}: a near tie ({margin}); take another seed"
    assert max(answer) < first_added, f"{name}: more than plain text; take another seed"
    print(f"{name}: {len(ids)} ids, logits' deviation {float(logits.std()):.3f}, margin {margin}")
    return {"name": name, "ids": ids, "positions": positions, "greedy_ids": answer,
            "greedy_smallest_margin": margin}


def record_masked(model, num_tokens):
    """A prompt whose unmasked answer passes ids without a token, which a server must mask."""
    name, count, seed = MASKED_PROMPT
    ids = random_ids(count, seed, num_tokens)
    unmasked, unmasked_margin = greedy(model, ids, model.config.vocab_size)
    masked, masked_margin = greedy(model, ids, num_tokens)
    margin = min(unmasked_margin, masked_margin)
    assert margin >= LEAST_MARGIN, f"{name}: a near tie ({margin}); take another seed"
    assert max(unmasked) >= num_tokens, f"{name}: the mask changes nothing; take another seed"
    print(f"{name}: {len(ids)} ids, margin {margin}")
    return {"name": name, "ids": ids, "greedy_ids": unmasked, "greedy_ids_masked": masked,
            "greedy_smallest_margin": margin}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    path = parser.parse_args().model
    torch.set_num_threads(1)
    added = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    num_tokens = added[-1]["id"] + 1

    model, tensors, prompts = load(path, torch.float32), {}, []
    for name, count, seed, positions in PROMPTS:
        ids = random_ids(count, seed, num_tokens)
        prompts.append(record_prompt(model, name, ids, positions, added[0]["id"], tensors))
    masked_prompt = record_masked(model, num_tokens)

    model = load(path, torch.bfloat16)
    for prompt in prompts:
        reference = tensors[f"{prompt['name']}.logits"]
        error = all_logits(model, prompt["ids"])[prompt["positions"]] - reference
        prompt["bf16_relative_error"] = round(float(error.norm() / reference.norm()), 6)
        print(f"{prompt['name']}: bf16 relative error {prompt['bf16_relative_error']}")

    (path / "expected.safetensors").write_bytes(save(tensors))
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, fp32, CPU"
    expected = {"reference": versions, "num_tokens": num_tokens, "prompts": prompts,
                "masked_prompt": masked_prompt}
    (path / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
