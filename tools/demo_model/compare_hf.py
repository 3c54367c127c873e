#!/usr/bin/env python3
"""Shows that the training model and transformers' DeepseekV2ForCausalLM are one function.

    compare_hf.py CHECKPOINT_DIR STATE.pt

Both run the same conversations with the weights of STATE.pt in fp32, one of them 20 turns long;
fails if the logits differ by more than 1e-5 of their norm. CHECKPOINT_DIR gives the tokenizer.
"""
import argparse
import json
import pathlib
import random
import tempfile

import torch
from safetensors.torch import save_file
from transformers import DeepseekV2ForCausalLM

import data
import tasks
from model import CONFIG, DemoModel, hugging_face_tensors

LIMIT = 1e-5


def hugging_face(model):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        save_file(hugging_face_tensors(model), path / "model.safetensors",
                  metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(CONFIG))
        return DeepseekV2ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("state", type=pathlib.Path)
    options = parser.parse_args()
    model = DemoModel(CONFIG)
    model.load_state_dict(torch.load(options.state, weights_only=False)["model"])
    reference = hugging_face(model)
    rng = random.Random(4)
    even = dict.fromkeys(tasks.TASKS, 1)
    conversations = [tasks.conversation(rng, even) for _ in range(12)]
    conversations.append(tasks.conversation(rng, even, turns=20))
    encoder = data.Encoder(options.checkpoint / "tokenizer.json")
    worst = 0.0
    for conversation in conversations:
        batch = data.Batch(encoder, [conversation])
        logits, _, _ = batch.run(model)
        expected = reference(batch.ids.unsqueeze(0)).logits[0][batch.wanted]
        worst = max(worst, float((logits - expected).norm() / expected.norm()))
    print(f"the training model's logits differ from transformers' by at most {worst:.1e}")
    assert worst < LIMIT, f"over {LIMIT}"


if __name__ == "__main__":
    main()
