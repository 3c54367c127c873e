"""What is asked, what it should be answered, and whether it was."""
import asyncio
import dataclasses
import hashlib
import json
import random
import struct

from tandem import AsyncClient, GenerateRequest, Sampling


def requests(seed, count, vocab_size, longest_prompt, longest_answer):
    """Prompts and parameters of every kind, drawn from `seed`."""
    draw = random.Random(f"requests {seed}")
    made = []
    for i in range(count):
        # Around a page of 64 tokens, below and beyond it.
        tokens = draw.choice([1, draw.randint(2, 63), draw.randint(64, 130),
                              draw.randint(1, longest_prompt)])
        sampling = draw.choice([
            Sampling(temperature=0.0),
            Sampling(temperature=1.0, top_p=1.0, top_k=0),
            Sampling(temperature=0.7, top_p=0.9),
            Sampling(temperature=1.3, top_k=draw.randint(1, 40))])
        made.append(GenerateRequest(
            token_ids=[draw.randrange(vocab_size) for _ in range(tokens)],
            sampling=dataclasses.replace(sampling, seed=draw.getrandbits(64)),
            max_tokens=draw.randint(1, longest_answer), ignore_eos=draw.random() < 0.9))
    return made


def outcome(completion):
    """What must be the same in every run, to the bit."""
    bits = [struct.unpack("<I", struct.pack("<f", p))[0] for p in completion.log_probs]
    return {"ids": completion.token_ids, "bits": bits, "text": completion.text,
            "reason": completion.finished.reason.name}


def difference(expected, got):
    """The first difference in words; empty if there is none."""
    for i, (a, b) in enumerate(zip(zip(expected["ids"], expected["bits"]),
                                   zip(got["ids"], got["bits"]))):
        if a != b:
            return f"token {i} is {b[0]} (log-prob bits {b[1]:08x}), not {a[0]} ({a[1]:08x})"
    for key in ("ids", "reason", "text"):
        if expected[key] != got[key]:
            return f"{key} differ: {str(got[key])[-60:]!r}, not {str(expected[key])[-60:]!r}"
    return ""


def cache_key(digest, flags, program, asked):
    stat = program.stat()
    return hashlib.sha256(repr((digest, flags, stat.st_size, stat.st_mtime_ns, asked)).encode()
                          ).hexdigest()[:16]


async def fault_free(address, asked, at_once=8):
    """The outcomes, from a deployment that nobody disturbs."""
    async with AsyncClient(address) as client:
        gate = asyncio.Semaphore(at_once)

        async def one(request):
            async with gate:
                return outcome(await client.complete(request))
        return await asyncio.gather(*(one(request) for request in asked))


def load(file):
    return json.loads(file.read_text()) if file.exists() else None


def save(file, outcomes):
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(outcomes))
    new.replace(file)
