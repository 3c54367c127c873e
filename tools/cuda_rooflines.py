#!/usr/bin/env python3
"""Prints the tables of docs/cuda_rooflines.md: what each CUDA kernel reads, writes and computes in
bf16, and the time that a GPU needs for it at least.

    tools/cuda_rooflines.py [CONFIG]

CONFIG is the config.json of a model of V2-Lite's architecture, without query compression; V2-Lite
itself without it. Nothing is measured here: the columns for that are filled in by hand.
"""
import json
import sys
from dataclasses import dataclass, field
from typing import Callable

V2_LITE = {
    "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 27, "first_k_dense_replace": 1,
    "num_attention_heads": 16, "kv_lora_rank": 512, "q_lora_rank": None,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
}

BF16, F32, I32 = 2, 4, 4  # bytes
DECODE_ROWS = (1, 8, 64, 256)
CONTEXTS = (512, 4096)
PREFILL_TOKENS = 4096
EXP_OPERATIONS = 20  # of PortableExp
HEAD_MAPS = "MlaAbsorbQuery, MlaProjectValue"
CARD_CACHED_TOKENS = 200_000
SHOWN_FLOOR = 5e-6  # seconds
# Of the H200, at a context of 512 where it is decode.
GOALS = {"decode 1, context 512": 700, "decode 64, context 512": 7300,
         "decode 256, context 512": 25000, "prefill 4,096": 95000}  # tokens per second
MLA_ROWS, MLA_CONTEXT, MLA_GOAL = 128, 1024, 41e-6  # MlaAbsorbed, seconds


@dataclass(frozen=True)
class Gpu:
    name: str
    bandwidth: float  # bytes per second
    tensor: float     # bf16 operations per second, dense
    f32: float        # operations per second, a fused multiply-add being two
    processors: int


GPUS = (Gpu("A100", 1555e9, 312e12, 19.5e12, 108), Gpu("H200", 4800e9, 989e12, 67e12, 132))


@dataclass(frozen=True)
class Pass:
    """Rows that go through the layers together, of which `outputs` get logits."""
    name: str
    rows: int
    outputs: int
    context: int
    is_prefill: bool = False


@dataclass(frozen=True)
class Kernel:
    """One kernel. Bytes are those of memory: every input once, every output once."""
    name: str
    row_bytes: float
    row_operations: float
    weights: int = 0                                  # bytes of a copy
    copies: Callable[[int], float] = lambda rows: 1   # that so many rows read
    is_matrix: bool = False                           # could be on tensor cores
    in_dense: int = 0                                 # how often in a layer of each kind
    in_moe: int = 0
    of_rows: int = 0                                  # how often in a pass, besides
    of_outputs: int = 0
    starts: int = 1                                   # kernels that it is in fact
    runs: Callable[[Pass], bool] = field(default=lambda a_pass: True)

    def bytes(self, rows):
        return self.weights * self.copies(rows) + rows * self.row_bytes

    def floor(self, gpu, rows, exact=False):
        """Seconds. `exact`: by f32 fused multiply-adds, whose order the contracts fix."""
        peak = gpu.tensor if self.is_matrix and not exact else gpu.f32
        return max(self.bytes(rows) / gpu.bandwidth, rows * self.row_operations / peak)

    def rows_of(self, a_pass):
        return a_pass.rows if self.in_dense + self.in_moe + self.of_rows else a_pass.outputs


class Model:
    def __init__(self, config):
        if config.get("q_lora_rank"):
            sys.exit("A model with query compression: not handled.")
        self.hidden = config["hidden_size"]
        self.vocab = config["vocab_size"]
        self.layers = config["num_hidden_layers"]
        self.dense_layers = config["first_k_dense_replace"]
        self.heads = config["num_attention_heads"]
        self.latent = config["kv_lora_rank"]
        self.nope = config["qk_nope_head_dim"]
        self.rope = config["qk_rope_head_dim"]
        self.value = config["v_head_dim"]
        self.dense_width = config["intermediate_size"]
        self.expert_width = config["moe_intermediate_size"]
        self.shared_width = config["n_shared_experts"] * self.expert_width
        self.experts = config["n_routed_experts"]
        self.top_k = config["num_experts_per_tok"]

    @property
    def moe_layers(self):
        return self.layers - self.dense_layers

    @property
    def cached_bytes(self):
        """Of a token in one layer."""
        return (self.latent + self.rope) * BF16

    def experts_hit(self, rows):
        """Expected, of rows that choose uniformly."""
        return self.experts * (1 - (1 - self.top_k / self.experts) ** rows)

    def attention_parameters(self):
        q = self.heads * (self.nope + self.rope) * self.hidden
        kv_a = (self.latent + self.rope) * self.hidden
        kv_b = self.heads * (self.nope + self.value) * self.latent
        return q + kv_a + kv_b + self.heads * self.value * self.hidden

    def weight_bytes(self):
        norms = self.layers * (2 * self.hidden + self.latent) + self.hidden
        mlp = 3 * self.hidden
        moe = (self.experts * self.hidden
               + mlp * (self.experts * self.expert_width + self.shared_width))
        return BF16 * (2 * self.vocab * self.hidden + norms
                       + self.layers * self.attention_parameters()
                       + self.dense_layers * mlp * self.dense_width + self.moe_layers * moe)

    def weight_bytes_read(self, rows):
        """By a step: the experts hit, and of the embedding the rows alone."""
        expert = 3 * self.hidden * self.expert_width
        unused = self.moe_layers * (self.experts - self.experts_hit(rows)) * expert
        return self.weight_bytes() - BF16 * (unused + (self.vocab - rows) * self.hidden)


def linear(name, inputs, outputs, out_bytes=BF16, **times):
    return Kernel(name, inputs * BF16 + outputs * out_bytes, 2 * inputs * outputs,
                  weights=inputs * outputs * BF16, is_matrix=True, **times)


def silu_mul(name, width, **times):
    return Kernel(name, 3 * width * BF16, width * (EXP_OPERATIONS + 4), **times)


def head_maps(m):
    """W^UK of every head and W^UV of every head, alike while keys and values are as wide."""
    if m.nope != m.value:
        sys.exit("A model with qk_nope_head_dim other than v_head_dim: not handled.")
    return Kernel(HEAD_MAPS, m.heads * (m.nope * BF16 + m.latent * F32),
                  2 * m.heads * m.nope * m.latent, weights=m.heads * m.nope * m.latent * BF16,
                  is_matrix=True, in_dense=2, in_moe=2, runs=lambda p: not p.is_prefill)


def absorbed(m, context):
    """Each latent is read once for all heads."""
    queries = m.heads * (2 * m.latent * F32 + m.rope * BF16)
    return Kernel(f"MlaAbsorbed, {context:,}", m.cached_bytes * context + queries,
                  2 * m.heads * (2 * m.latent + m.rope) * context,
                  is_matrix=True, in_dense=1, in_moe=1, starts=3,
                  runs=lambda p: not p.is_prefill and p.context == context)


def expanded(m, tokens):
    """Keys and values of every head are made once; a row sees half of the tokens in the mean."""
    expand = 2 * m.latent * m.heads * (m.nope + m.value)
    attend = 2 * m.heads * (m.nope + m.rope + m.value) * (tokens + 1) / 2
    row_bytes = m.cached_bytes + m.heads * (m.nope + m.rope + m.value) * BF16
    return Kernel("MlaExpanded", row_bytes, expand + attend,
                  weights=m.latent * m.heads * (m.nope + m.value) * BF16,
                  is_matrix=True, in_dense=1, in_moe=1, runs=lambda p: p.is_prefill)


def kernels_of(m, contexts=CONTEXTS):
    act = m.hidden * BF16
    cached = m.latent + m.rope
    every = {"in_dense": 1, "in_moe": 1}
    expert = m.expert_width * m.hidden * BF16
    activated = m.top_k * m.expert_width * BF16
    choice = m.top_k * (I32 + F32)
    return [
        Kernel("RmsNorm", 2 * act, 4 * m.hidden, weights=act, in_dense=2, in_moe=2, of_outputs=1),
        linear("q_proj", m.hidden, m.heads * (m.nope + m.rope), **every),
        Kernel("Rope", m.rope * (2 * m.heads * BF16 + F32), 3 * m.heads * m.rope, **every),
        linear("kv_a_proj", m.hidden, cached, **every),
        Kernel("LatentAppend", 2 * m.cached_bytes + m.rope * F32, 4 * m.latent + 3 * m.rope,
               weights=m.latent * BF16, **every),
        head_maps(m),
        *[absorbed(m, context) for context in contexts],
        expanded(m, PREFILL_TOKENS),
        linear("o_proj", m.heads * m.value, m.hidden, **every),
        Kernel("Add", 3 * act, m.hidden, in_dense=2, in_moe=3),
        linear("gate, up, down", m.hidden, m.dense_width, in_dense=3),
        silu_mul("SiluMul", m.dense_width, in_dense=1),
        linear("router", m.hidden, m.experts, out_bytes=F32, in_moe=1),
        Kernel("ChooseExperts", m.experts * F32 + choice,
               m.experts * (EXP_OPERATIONS + 4 + 2 * m.top_k), in_moe=1),
        Kernel("ExpertMlp: group", 2 * m.top_k * I32, 0, in_moe=1),
        Kernel("ExpertMlp: gate, up", act + activated, m.top_k * 4 * m.hidden * m.expert_width,
               weights=2 * expert, copies=m.experts_hit, is_matrix=True, in_moe=1),
        Kernel("ExpertMlp: down", activated + m.top_k * act,
               m.top_k * 2 * m.hidden * m.expert_width,
               weights=expert, copies=m.experts_hit, is_matrix=True, in_moe=1),
        Kernel("Combine", (m.top_k + 1) * act + m.top_k * F32, 2 * m.top_k * m.hidden, in_moe=1),
        linear("shared gate, up, down", m.hidden, m.shared_width, in_moe=3),
        silu_mul("shared SiluMul", m.shared_width, in_moe=1),
        Kernel("Embed, GatherRows", 2 * act, 0, of_rows=1, of_outputs=1),
        Kernel("RopeTable", I32 + m.rope * F32, 100 * m.rope, of_rows=1),
        linear("lm_head", m.hidden, m.vocab, out_bytes=F32, of_outputs=1),
        Kernel("Sample", m.vocab * F32, m.vocab * (EXP_OPERATIONS + 5), of_outputs=1),
    ]


def passes():
    for context in CONTEXTS:
        for rows in DECODE_ROWS:
            yield Pass(f"decode {rows}, context {context:,}", rows, rows, context)
    yield Pass(f"prefill {PREFILL_TOKENS:,}", PREFILL_TOKENS, 1, PREFILL_TOKENS, True)


def sum_of_floors(m, kernels, gpu, p, exact=False, part="step"):
    """Of the kernels of a pass, or of one layer, or of what is not in layers."""
    total = 0.0
    for k in kernels:
        if not k.runs(p):
            continue
        rows, outputs = (k.floor(gpu, n, exact) for n in (p.rows, p.outputs))
        parts = {"dense layer": k.in_dense * rows, "MoE layer": k.in_moe * rows,
                 "besides layers": k.of_rows * rows + k.of_outputs * outputs}
        parts["step"] = (m.dense_layers * parts["dense layer"] + m.moe_layers * parts["MoE layer"]
                         + parts["besides layers"])
        total += parts[part]
    return total


def step_floor(m, kernels, gpu, p):
    """As one kernel: weights and cache go through memory once, nothing else does."""
    cache_rows = p.rows * (1 if p.is_prefill else p.context)
    in_memory = m.weight_bytes_read(p.rows) + m.layers * m.cached_bytes * (cache_rows + p.rows)
    operations = 0
    for k in kernels:
        if k.is_matrix and k.runs(p):
            in_layers = m.dense_layers * k.in_dense + m.moe_layers * k.in_moe
            operations += k.row_operations * (p.rows * in_layers + p.outputs * k.of_outputs)
    return max(in_memory / gpu.bandwidth, operations / gpu.tensor)


def number(x):
    """Three digits, or all that are before the point."""
    if x == 0:
        return "0"
    if x >= 99.95:
        return f"{x:,.0f}"
    return f"{x:.1f}" if x >= 9.995 else f"{x:.2f}" if x >= 0.0995 else f"{x:.1g}"


def floors(tensor, exact):
    """In microseconds: of tensor cores and, where it is another, of the exact order."""
    a, b = ("<0.1" if s < 0.0995e-6 else number(s * 1e6) for s in (tensor, exact))
    return a if a == b else f"{a} / {b}"


def table(header, rows):
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row)
             for row in [header, *rows]]
    lines.insert(1, "|---" * len(header) + "|")
    print("\n".join(lines) + "\n")


def first_rows(is_bound):
    return str(next(rows for rows in range(1, 100_000) if is_bound(rows)))


def print_gpus(m, kernels):
    named = {k.name: k for k in kernels}

    def bound(k, gpu):
        return first_rows(lambda n: n * k.row_operations / gpu.f32 > k.bytes(n) / gpu.bandwidth)

    table(["", *[g.name for g in GPUS]], [
        ["bandwidth, GB/s", *[f"{g.bandwidth / 1e9:,.0f}" for g in GPUS]],
        ["bf16 tensor, f32 multiply-adds, TFLOP/s",
         *[f"{g.tensor / 1e12:g}, {g.f32 / 1e12:g}" for g in GPUS]],
        ["operations per byte at which they bind",
         *[f"{g.tensor / g.bandwidth:.0f}, {g.f32 / g.bandwidth:.1f}" for g in GPUS]],
        *[[f"f32 binds {name} from rows", *[bound(named[name], g) for g in GPUS]]
          for name in ("q_proj", "ExpertMlp: gate, up")],
    ])
    hit = ", ".join(f"{n}: {m.experts_hit(n):.1f}" for n in DECODE_ROWS)
    print(f"Experts hit by rows: {hit}\n")


def print_kernels(m, kernels, gpu, is_whole):
    """All kernels with their work, or those alone that take SHOWN_FLOOR for the most rows."""
    every = list(passes())
    shown = [p for p in every if p.context == CONTEXTS[0]] + [every[-1]]

    def times(k, p):
        if not k.runs(p) and (p.is_prefill or "MlaAbsorbed" not in k.name):
            return None
        return [k.floor(gpu, k.rows_of(p), exact) for exact in (False, True)]

    def is_shown(k):
        of_decode = times(k, shown[-2])
        return is_whole or of_decode is None or max(of_decode) >= SHOWN_FLOOR

    lines = []
    for k in filter(is_shown, kernels):
        cells = [floors(*t) if (t := times(k, p)) else "" for p in shown]
        lines.append([k.name, *(work(k) if is_whole else []), *cells, ""])
    others = [k for k in kernels if not is_shown(k)]
    if others:
        most = [[max(t) for t in zip(*(times(k, p) for k in others))] for p in shown]
        lines.append(["each other, at most", *(floors(*t) for t in most), ""])
    for part in ("dense layer", "MoE layer", "besides layers"):
        sums = [[sum_of_floors(m, kernels, gpu, p, exact, part) for exact in (False, True)]
                for p in shown]
        no_work = [""] * 4 if is_whole else []
        lines.append([f"**{part}**", *no_work, *(floors(*t) for t in sums), ""])
    header = ["times", "weights, MB", "KB a row", "MFLOP a row"] if is_whole else []
    table([gpu.name, *header, *[str(n) for n in DECODE_ROWS], f"prefill {PREFILL_TOKENS:,}",
           "measured"], lines)


def work(k):
    weights = number(k.weights / 1e6) if k.weights else ""
    return [f"{k.in_dense}, {k.in_moe}, {k.of_rows + k.of_outputs}",
            weights + (" an expert" if k.copies(1) != 1 else ""),
            number(k.row_bytes / 1e3), number(k.row_operations / 1e6)]


def rates(m, kernels, gpu, p):
    """Tokens per second by the step's floor, by its kernels' and by theirs in the exact order."""
    return [p.rows / seconds for seconds in (step_floor(m, kernels, gpu, p),
                                             sum_of_floors(m, kernels, gpu, p),
                                             sum_of_floors(m, kernels, gpu, p, True))]


def print_steps(m, kernels):
    lines = []
    for p in passes():
        of_gpus = [rates(m, kernels, gpu, p) for gpu in GPUS]
        goal = ""
        if p.name in GOALS:
            shares = ", ".join(f"{GOALS[p.name] / rate:.0%}" for rate in of_gpus[-1])
            goal = f"{GOALS[p.name]:,}: {shares}"
        lines.append([p.name, *[number(r) for of_gpu in of_gpus for r in of_gpu], goal, ""])
    columns = [f"{g.name}: {what}" for g in GPUS for what in ("step", "kernels", "exact")]
    table(["tokens/s", *columns, "goal, of each", "measured"], lines)
    decode = next(passes())
    launches = (m.dense_layers * sum(k.starts * k.in_dense for k in kernels if k.runs(decode))
                + m.moe_layers * sum(k.starts * k.in_moe for k in kernels if k.runs(decode))
                + sum(k.of_rows + k.of_outputs for k in kernels))
    print(f"Kernels of a step of decode: {launches}\n")


def print_mla_goal(m):
    gpu = GPUS[-1]
    kernels = kernels_of(m, contexts=(MLA_CONTEXT,))
    attend = [k for k in kernels if k.name.startswith("MlaAbsorbed")]
    maps = [k for k in kernels if k.name == HEAD_MAPS]
    for name, of in ((attend[0].name, attend), ("with both maps", attend + 2 * maps)):
        seconds = [sum(k.floor(gpu, MLA_ROWS, exact) for k in of) for exact in (False, True)]
        print(f"{gpu.name}, {name}, {MLA_ROWS} rows: {floors(*seconds)} us; the goal takes "
              + ", ".join(f"{s / MLA_GOAL:.0%}" for s in seconds) + " of its time for that")
    print()


def print_mla_split(m):
    """One row's MlaAbsorbed as kernels/cuda/mla_absorbed.cu cuts it, by operations alone."""
    page, columns, few_heads = 64, 32, 4
    lines = []
    for context in (CONTEXTS[0], MLA_CONTEXT, CONTEXTS[1]):
        pages = context // page
        value_blocks = m.latent // columns * (m.heads // few_heads)
        scores = 2 * m.heads * (m.latent + m.rope) * context
        values = 2 * m.heads * m.latent * context
        weights = m.heads * F32 * context  # written, weighed, read by each tile of columns
        again = (m.heads // few_heads - 1) * context * m.latent * BF16  # by other heads' blocks
        through_l2 = weights * (3 + m.latent // columns) + again
        cells = []
        for gpu in GPUS:
            of_one = gpu.f32 / gpu.processors
            score = -(-pages // gpu.processors) * scores / pages / of_one
            value = values / min(value_blocks, gpu.processors) / of_one
            whole = (scores + values) / of_one
            cells.append(", ".join([f"{number(score * 1e6)} + {number(value * 1e6)}",
                                    number(whole * 1e6)]))
        lines.append([f"{context:,}", f"{pages}, {pages}, {value_blocks}",
                      number(2 * context * m.cached_bytes / 1e6), number(through_l2 / 1e6), *cells])
    table(["context", "blocks", "latents, MB", "besides, MB", *[g.name for g in GPUS]], lines)


def print_memory(m):
    cache = m.layers * m.cached_bytes
    used = m.weight_bytes() + CARD_CACHED_TOKENS * cache
    print(f"Weights {m.weight_bytes():,} bytes, a cached token {cache:,}, "
          f"{CARD_CACHED_TOKENS:,} of them {CARD_CACHED_TOKENS * cache:,}, together {used:,}")
    for name, card in (("40e9 bytes", 40 * 10**9), ("40 GiB", 40 * 2**30),
                       ("40 GiB less a sixteenth", 40 * 2**30 * 15 // 16)):
        print(f"Left of {name}: {card - used:,}")


def main():
    config = V2_LITE
    if len(sys.argv) > 1:
        with open(sys.argv[1], encoding="utf-8") as file:
            config = json.load(file)
    m = Model(config)
    kernels = kernels_of(m)
    print_gpus(m, kernels)
    for gpu in GPUS:
        print_kernels(m, kernels, gpu, is_whole=gpu is GPUS[0])
    print_steps(m, kernels)
    print_mla_goal(m)
    print_mla_split(m)
    print_memory(m)


if __name__ == "__main__":
    main()
