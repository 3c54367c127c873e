#!/usr/bin/env python3
"""Makes the checkpoint of a training state: bf16 safetensors in the Hugging Face layout.

    export.py STATE.pt OUT_DIR

Writes OUT_DIR/model.safetensors, config.json and generation_config.json; make_tokenizer.py wrote
the tokenizer beside them.
"""
import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

from model import CONFIG, DemoModel, hugging_face_tensors


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("state", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    model = DemoModel(CONFIG)
    model.load_state_dict(torch.load(options.state, weights_only=False)["model"])
    tensors = {name: t.to(torch.bfloat16) for name, t in hugging_face_tensors(model).items()}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    write_json(options.out / "config.json", CONFIG)
    write_json(options.out / "generation_config.json", {
        "bos_token_id": CONFIG["bos_token_id"], "eos_token_id": CONFIG["eos_token_id"],
        "do_sample": False})
    print(f"{path}: {len(tensors)} tensors, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
