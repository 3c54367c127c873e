"""The demo model for training: DeepSeek-V2's layers with experts multiplied group by group.

Equal to transformers' DeepseekV2ForCausalLM with the same weights (`compare_hf.py` shows it); only
the layout of the parameters differs. The 64 experts of a layer are one tensor, gate and up are
fused, and the rotary dimensions are split in halves where the checkpoint interleaves them.
"""
import math

import torch
from torch import nn
from torch.nn import functional

CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 766,
    "eos_token_id": 767,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "kv_lora_rank": 64,
    "max_position_embeddings": 2560,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 64,
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
    "v_head_dim": 64,
    "vocab_size": 768,
}


def yarn_frequencies(c):
    """Radians per position of each rotary pair: YaRN, https://arxiv.org/abs/2309.00071, 3.2."""
    dim, base, yarn = c["qk_rope_head_dim"], c["rope_theta"], c["rope_scaling"]

    def pair_with(rotations):
        length = yarn["original_max_position_embeddings"]
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_with(yarn["beta_fast"])), 0)
    high = min(math.ceil(pair_with(yarn["beta_slow"])), dim - 1)
    plain = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    ramp = ((torch.arange(dim // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    return (plain / yarn["factor"] * ramp + plain * (1 - ramp)).float()


def softmax_scale(c):
    yarn = c["rope_scaling"]
    stretch = 0.1 * yarn["mscale_all_dim"] * math.log(yarn["factor"]) + 1
    return (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5 * stretch**2


class GroupedExperts(torch.autograd.Function):
    """y[t] = sum over k of weights[t, k] * down[e](silu(gate[e](x[t])) * up[e](x[t])), e = chosen[t, k].

    x: [rows, hidden]; chosen, weights: [rows, top_k]; gate_up: [experts, 2 * width, hidden], gate
    first; down: [experts, hidden, width]. The rows are sorted by expert, so that each expert is two
    matrix products.
    """

    @staticmethod
    def forward(ctx, x, chosen, weights, gate_up, down):
        rows, top_k = chosen.shape
        flat = chosen.reshape(-1)
        order = torch.argsort(flat, stable=True)
        ends = torch.bincount(flat, minlength=gate_up.shape[0]).cumsum(0).tolist()
        spans = list(zip(range(len(ends)), [0] + ends[:-1], ends))
        token = order // top_k
        sorted_x = x[token]
        hidden = x.new_empty(len(token), gate_up.shape[1])
        for e, begin, end in spans:
            torch.mm(sorted_x[begin:end], gate_up[e].t(), out=hidden[begin:end])
        gate, up = hidden.chunk(2, dim=1)
        product = functional.silu(gate).mul_(up)
        out = x.new_empty(len(token), x.shape[1])
        for e, begin, end in spans:
            torch.mm(product[begin:end], down[e].t(), out=out[begin:end])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        parts = out[place].view(rows, top_k, -1)
        ctx.spans = spans
        ctx.save_for_backward(sorted_x, order, place, weights, gate_up, down, hidden, product,
                              parts)
        return torch.bmm(weights.unsqueeze(1), parts).squeeze(1)

    @staticmethod
    def backward(ctx, grad):
        sorted_x, order, place, weights, gate_up, down, hidden, product, parts = ctx.saved_tensors
        rows, top_k = weights.shape
        grad_weights = torch.bmm(parts, grad.unsqueeze(2)).squeeze(2)
        grad_out = grad[order // top_k].mul_(weights.reshape(-1)[order].unsqueeze(1))
        grad_product = torch.empty_like(product)
        grad_down = torch.empty_like(down)
        for e, begin, end in ctx.spans:
            torch.mm(grad_out[begin:end], down[e], out=grad_product[begin:end])
            torch.mm(grad_out[begin:end].t(), product[begin:end], out=grad_down[e])
        gate, up = hidden.chunk(2, dim=1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        grad_hidden = torch.empty_like(hidden)
        grad_gate, grad_up = grad_hidden.chunk(2, dim=1)
        torch.mul(grad_product, silu, out=grad_up)
        slope = sigmoid.add_(silu.mul_(1 - sigmoid))  # d silu(z) / dz = s + z s (1 - s)
        torch.mul(grad_product.mul_(up), slope, out=grad_gate)
        grad_x = torch.empty_like(sorted_x)
        grad_gate_up = torch.empty_like(gate_up)
        for e, begin, end in ctx.spans:
            torch.mm(grad_hidden[begin:end], gate_up[e], out=grad_x[begin:end])
            torch.mm(grad_hidden[begin:end].t(), sorted_x[begin:end], out=grad_gate_up[e])
        return (grad_x[place].view(rows, top_k, -1).sum(1), None, grad_weights, grad_gate_up,
                grad_down)


def linear(gain, *shape):
    """A weight [..., out, in] that stretches a unit-variance input by `gain`."""
    return nn.Parameter(torch.randn(shape) * (gain / math.sqrt(shape[-1])))


class Mlp(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.gate_up = linear(1, 2 * width, hidden)
        self.down = linear(0.3, hidden, width)

    def forward(self, x):
        gate, up = functional.linear(x, self.gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.down)


class Moe(nn.Module):
    """Softmax over all experts, the best six by their probability, no renormalisation."""

    def __init__(self, c):
        super().__init__()
        hidden, width, count = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
        self.top_k = c["num_experts_per_tok"]
        self.router = linear(1, count, hidden)
        self.gate_up = linear(1, count, 2 * width, hidden)
        self.down = linear(1, count, hidden, width)
        self.shared = Mlp(hidden, width * c["n_shared_experts"])

    def forward(self, x, real, wanted):
        """real: [rows] 1 for a token, 0 for padding; wanted: the rows whose output is returned, or
        None for all. Also the balance loss (1 when all experts get the same) and each expert's
        share, both over all rows."""
        scores = functional.linear(x, self.router).softmax(-1)
        weights, chosen = scores.topk(self.top_k, dim=-1)
        with torch.no_grad():
            load = torch.bincount(chosen.reshape(-1), real.repeat_interleave(self.top_k),
                                  minlength=scores.shape[1])
            load = (load / load.sum()).float()
        balance = scores.shape[1] * (load @ (real @ scores)) / real.sum()
        if wanted is not None:
            x, weights, chosen = x[wanted], weights[wanted], chosen[wanted]
        routed = GroupedExperts.apply(x, chosen, weights, self.gate_up, self.down)
        return routed + self.shared(x), balance, load


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.nope, self.rope = c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        self.latent, self.value = c["kv_lora_rank"], c["v_head_dim"]
        self.scale = softmax_scale(c)
        self.q = linear(1, self.heads * (self.nope + self.rope), hidden)
        self.kv_a = linear(1, self.latent + self.rope, hidden)
        self.kv_norm = nn.Parameter(torch.ones(self.latent))
        self.kv_b = linear(1, self.heads * (self.nope + self.value), self.latent)
        self.o = linear(0.3, hidden, self.heads * self.value)

    @staticmethod
    def rotate(x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def forward(self, x, blocks, cos, sin):
        """x: [rows, hidden], the rows of the blocks one after the other; blocks: (batch, length)
        each; cos, sin: [rows, rope / 2]."""
        rows = len(x)
        q = functional.linear(x, self.q).view(rows, self.heads, -1)
        q_nope, q_rope = q.split([self.nope, self.rope], dim=-1)
        latent, k_rope = functional.linear(x, self.kv_a).split([self.latent, self.rope], dim=-1)
        latent = functional.rms_norm(latent, (self.latent,), self.kv_norm, 1e-6)
        kv = functional.linear(latent, self.kv_b).view(rows, self.heads, -1)
        k_nope, v = kv.split([self.nope, self.value], dim=-1)
        q_rope = self.rotate(q_rope, cos[:, None], sin[:, None])
        k_rope = self.rotate(k_rope, cos, sin)
        sizes = [batch * length for batch, length in blocks]
        out = []
        for (batch, length), *parts in zip(
                blocks, *(t.split(sizes) for t in (q_nope, q_rope, k_nope, k_rope, v))):
            qn, qr, kn, kr, value = (t.view(batch, length, -1, t.shape[-1]).transpose(1, 2)
                                     for t in parts)
            # All heads share the rotary key.
            scores = (qr.reshape(batch, 1, -1, self.rope) @ kr.transpose(2, 3)).view(
                batch, self.heads, length, length)
            future = torch.full((length, length), -math.inf).triu_(1)
            weights = torch.add((scores + qn @ kn.transpose(2, 3)) * self.scale, future).softmax(-1)
            out.append((weights @ value).transpose(1, 2).reshape(batch * length, -1))
        return functional.linear(torch.cat(out), self.o)


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        hidden = c["hidden_size"]
        self.eps = c["rms_norm_eps"]
        self.attention_norm = nn.Parameter(torch.ones(hidden))
        self.attention = Attention(c)
        self.mlp_norm = nn.Parameter(torch.ones(hidden))
        dense = index < c["first_k_dense_replace"]
        self.mlp = Mlp(hidden, c["intermediate_size"]) if dense else Moe(c)

    def norm(self, x, weight):
        return functional.rms_norm(x, weight.shape, weight, self.eps)

    def forward(self, x, blocks, cos, sin, real, wanted=None):
        x = x + self.attention(self.norm(x, self.attention_norm), blocks, cos, sin)
        if isinstance(self.mlp, Mlp):
            return x + self.mlp(self.norm(x, self.mlp_norm)), None, None
        y, balance, load = self.mlp(self.norm(x, self.mlp_norm), real, wanted)
        return (x if wanted is None else x[wanted]) + y, balance, load


class DemoModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]))
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.lm_head = linear(0.3, c["vocab_size"], c["hidden_size"])
        self.register_buffer("frequencies", yarn_frequencies(c), persistent=False)

    def forward(self, ids, positions, blocks, real, wanted):
        """ids, positions, real: [rows] of blocks (batch, length) one after the other; wanted: the
        rows whose logits are returned. Also the mean balance loss and [moe_layers, experts] load."""
        angle = positions[:, None].float() * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        x = functional.embedding(ids, self.embed)
        balances, loads = [], []
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            x, balance, load = layer(x, blocks, cos, sin, real, wanted if last else None)
            if load is not None:
                balances.append(balance)
                loads.append(load)
        x = functional.rms_norm(x, self.norm.shape, self.norm, self.config["rms_norm_eps"])
        logits = functional.linear(x, self.lm_head)
        return logits, torch.stack(balances).mean(), torch.stack(loads)


def interleaved(weight, rope):
    """Rows [..., rope] in halves to pairs: row i and row rope / 2 + i become 2i and 2i + 1."""
    halves = weight.unflatten(-2, (2, rope // 2))
    return halves.transpose(-3, -2).flatten(-3, -2)


def hugging_face_tensors(model):
    """The weights under the names and in the layout of DeepSeek-V2's checkpoints, fp32."""
    c = model.config
    nope, rope, latent = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
    tensors = {"model.embed_tokens.weight": model.embed, "lm_head.weight": model.lm_head,
               "model.norm.weight": model.norm}

    def put_mlp(prefix, gate_up, down):
        gate, up = gate_up.chunk(2)
        tensors[prefix + "gate_proj.weight"] = gate
        tensors[prefix + "up_proj.weight"] = up
        tensors[prefix + "down_proj.weight"] = down

    for i, layer in enumerate(model.layers):
        name, a = f"model.layers.{i}.", layer.attention
        q = a.q.unflatten(0, (a.heads, nope + rope))
        q = torch.cat([q[:, :nope], interleaved(q[:, nope:], rope)], dim=1).flatten(0, 1)
        kv_a = torch.cat([a.kv_a[:latent], interleaved(a.kv_a[latent:], rope)])
        tensors[name + "input_layernorm.weight"] = layer.attention_norm
        tensors[name + "post_attention_layernorm.weight"] = layer.mlp_norm
        tensors[name + "self_attn.q_proj.weight"] = q
        tensors[name + "self_attn.kv_a_proj_with_mqa.weight"] = kv_a
        tensors[name + "self_attn.kv_a_layernorm.weight"] = a.kv_norm
        tensors[name + "self_attn.kv_b_proj.weight"] = a.kv_b
        tensors[name + "self_attn.o_proj.weight"] = a.o
        if isinstance(layer.mlp, Mlp):
            put_mlp(name + "mlp.", layer.mlp.gate_up, layer.mlp.down)
            continue
        tensors[name + "mlp.gate.weight"] = layer.mlp.router
        for e in range(c["n_routed_experts"]):
            put_mlp(f"{name}mlp.experts.{e}.", layer.mlp.gate_up[e], layer.mlp.down[e])
        put_mlp(name + "mlp.shared_experts.", layer.mlp.shared.gate_up, layer.mlp.shared.down)
    return {key: value.detach().contiguous() for key, value in tensors.items()}
