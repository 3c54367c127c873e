#!/usr/bin/env python3
"""Writes the tiny model: DeepSeek-V2-Lite's layout in miniature, random weights from a seed.

    make_model.py OUT_DIR

OUT_DIR must already hold tokenizer.json (see make_tokenizer.py). Writes config.json,
generation_config.json and model.safetensors (bf16). Needs numpy only; the bytes are the same on
every machine, because the weights come from raw PCG64 words and not from a library's distribution.
"""
import argparse
import hashlib
import json
import math
import pathlib
import struct

import numpy as np

SEED = 20

# Rows of embed_tokens and lm_head; the tokenizer has 1,025 tokens, so 15 ids have no token.
VOCAB_SIZE = 1040

# How strongly each linear layer stretches a unit-variance input. With ones everywhere the random
# model would answer almost uniformly and attend almost evenly; these give logits of standard
# deviation near 2, peaked attention scores and decided routing, so that an error shows.
GAINS = {"q_proj": 2.0, "kv_a_proj_with_mqa": 1.5, "kv_b_proj": 1.0, "o_proj": 0.8,
         "gate_proj": 1.4, "up_proj": 1.4, "down_proj": 0.8, "gate": 1.6, "lm_head": 2.0}


def model_config(bos_token_id, eos_token_id):
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 176,
        "kv_lora_rank": 64,
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v2",
        "moe_intermediate_size": 24,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 32,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 4,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "use_cache": True,
        "v_head_dim": 32,
        "vocab_size": VOCAB_SIZE,
    }


def layer_shapes(c, layer):
    """Names within one layer, with [out_features, in_features]."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    latent = c["kv_lora_rank"]
    shapes = {
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
        "self_attn.q_proj": [heads * (nope + rope), hidden],
        "self_attn.kv_a_proj_with_mqa": [latent + rope, hidden],
        "self_attn.kv_a_layernorm": [latent],
        "self_attn.kv_b_proj": [heads * (nope + value), latent],
        "self_attn.o_proj": [hidden, heads * value],
    }
    if layer < c["first_k_dense_replace"]:
        mlps = {"mlp": c["intermediate_size"]}
    else:
        shapes["mlp.gate"] = [c["n_routed_experts"], hidden]
        width = c["moe_intermediate_size"]
        mlps = {f"mlp.experts.{e}": width for e in range(c["n_routed_experts"])}
        mlps["mlp.shared_experts"] = width * c["n_shared_experts"]
    for prefix, width in mlps.items():
        shapes[f"{prefix}.gate_proj"] = [width, hidden]
        shapes[f"{prefix}.up_proj"] = [width, hidden]
        shapes[f"{prefix}.down_proj"] = [hidden, width]
    return shapes


def tensor_shapes(c):
    table = [c["vocab_size"], c["hidden_size"]]
    shapes = {"model.embed_tokens": table, "lm_head": table, "model.norm": [c["hidden_size"]]}
    for layer in range(c["num_hidden_layers"]):
        for name, shape in layer_shapes(c, layer).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def uniform(name, count):
    """`count` float32 numbers, uniform in [-1, 1), that depend on SEED and `name` alone."""
    digest = hashlib.sha256(f"{SEED} {name}".encode()).digest()
    words = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(count)
    # The upper 24 bits are exact in float32.
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def weight_values(name, shape):
    values = uniform(name, math.prod(shape))
    leaf = name.split(".")[-2]
    if leaf.endswith("norm"):
        return np.float32(1) + np.float32(0.2) * values
    if leaf == "embed_tokens":
        return np.float32(math.sqrt(3)) * values
    # sqrt(3 / fan_in) makes the variance of a product row 1, the uniform's own variance being 1/3.
    return np.float32(GAINS[leaf] * math.sqrt(3 / shape[1])) * values


def bf16_bytes(values):
    """Little-endian bf16, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2").tobytes()


def write_safetensors(path, shapes):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, shape in shapes.items():
        begin = len(data)
        data += bf16_bytes(weight_values(name, shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return len(data)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    tokenizer = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    bos, eos = (token["id"] for token in tokenizer["added_tokens"][:2])
    config = model_config(bos, eos)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {
        "bos_token_id": bos, "eos_token_id": eos, "do_sample": True, "temperature": 0.3,
        "top_p": 0.95})
    size = write_safetensors(out / "model.safetensors", tensor_shapes(config))
    print(f"{out}/model.safetensors: {size} bytes of weights")


if __name__ == "__main__":
    main()
