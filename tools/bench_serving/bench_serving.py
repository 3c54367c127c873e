#!/usr/bin/env python3
"""What clients of one gateway see when it is asked for much at once; a table each.

    bench_serving.py long-prompt --model DIR --weights int4 --tokens 8192
    bench_serving.py prefix --model DIR --weights int4 --tokens 2048
    bench_serving.py overload --model DIR --seconds 120

long-prompt: a long prompt arrives while others decode: the time between their tokens before and
meanwhile, the prompt's time to its first token alone and beside them, and how often the experts'
weights were read for it; by ways to schedule it, in turns.
prefix: a prompt that begins as an earlier one did: its time to the first token as a share of the
earlier one's.
overload: requests at a multiple of the rate at which they can be answered: what is answered in
time meanwhile (goodput), how soon others are refused, memory, and what comes after.

The gateway is one process with the whole model. It needs Python's gRPC (scripts/packages.txt).
"""
import argparse
import asyncio
import contextlib
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "python"))
import make_package  # noqa: E402

PACKAGE = ROOT / "build" / "bench_serving" / "python"
make_package.make(PACKAGE)
sys.path.insert(0, str(PACKAGE))

from tandem import (  # noqa: E402
    AsyncClient, GenerateRequest, RetryPolicy, Sampling, TandemError)

START_LIMIT_S = 600
# Ways to schedule a prompt beside others: name, flags, given the prompt's tokens.
WAYS = {
    "as by default": lambda tokens: [],
    "target 1.3": lambda tokens: ["--prefill-step-target", "1.3"],
    "whole": lambda tokens: ["--prefill-step-target", "0", "--max-batch-rows", str(tokens)],
    "a layer a step": lambda tokens: ["--prefill-step-target", "0", "--max-batch-rows", str(tokens),
                                      "--max-layers-per-step", "1"],
    "256 tokens a step": lambda tokens: ["--prefill-step-target", "0", "--max-batch-rows", "256"],
}


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


class Gateway:
    """A gateway in one process; ends with the context."""

    def __init__(self, args, flags):
        self.args, self.flags = args, flags

    async def __aenter__(self):
        args = self.args
        self.folder = tempfile.TemporaryDirectory()
        self.log = pathlib.Path(self.folder.name) / "gateway.log"
        command = [str(args.bin / "tandem-gateway"), "--model", args.model, "--dtype", args.dtype,
                   "--listen", "127.0.0.1:0", "--cache-tokens", str(args.cache_tokens),
                   *(["--weights", args.weights] if args.weights else []),
                   *(["--threads", str(args.threads)] if args.threads else []), *self.flags]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        end = time.monotonic() + START_LIMIT_S
        while "gateway on " not in self.log.read_text():
            self.check_start(end)
            await asyncio.sleep(0.05)
        address = self.log.read_text().partition("gateway on ")[2].split()[0].rstrip(";")
        self.client = AsyncClient(address, retry=RetryPolicy(give_up_s=0))
        while (await self.client.get_status()).state != "serving":
            self.check_start(end)
            await asyncio.sleep(0.1)
        self.model = await self.client.get_model()
        return self

    def check_start(self, end):
        if self.process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the gateway does not start:\n{self.log.read_text()}")

    async def __aexit__(self, *_):
        await self.client.close()
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    async def counter(self, name):
        return (await self.client.get_status()).workers[0].counters[name]

    def rss_mib(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return float("nan")

    def request(self, draw, tokens, max_tokens, beginning=()):
        own = tokens - len(beginning)
        ids = [*beginning, *(draw.randrange(1, self.model.vocab_size // 2) for _ in range(own))]
        return GenerateRequest(token_ids=ids, sampling=Sampling(temperature=0), ignore_eos=True,
                               max_tokens=max_tokens)

    async def first_token_s(self, request):
        start = time.monotonic()
        call = self.client.generate(request)
        async for _ in call:
            return time.monotonic() - start
        raise SystemExit("an answer without a token")


async def decode(gateway, request, times):
    """Reads until it is cancelled; `times` gets when each chunk came."""
    with contextlib.suppress(asyncio.CancelledError):
        async for _ in gateway.client.generate(request):
            times.append(time.monotonic())


def gaps(streams, start, end):
    """Milliseconds between two chunks of a stream, of those that ended within [start, end]."""
    return [1000 * (b - a) for times in streams for a, b in zip(times, times[1:]) if start < b <= end]


async def long_prompt_once(args, flags, draw):
    async with Gateway(args, flags) as gateway:
        await gateway.first_token_s(gateway.request(draw, args.tokens // 8, 1))  # warm
        alone = await gateway.first_token_s(gateway.request(draw, args.tokens, 1))
        streams = [[] for _ in range(args.streams)]
        tasks = [asyncio.create_task(decode(gateway, gateway.request(draw, 64, args.answer), times))
                 for times in streams]
        while min(len(times) for times in streams) < 24:  # costs of steps are learned
            await asyncio.sleep(0.05)
        quiet_start = time.monotonic()
        await asyncio.sleep(args.quiet)
        layers = await gateway.counter("prefill_layers_total")
        start = time.monotonic()
        beside = await gateway.first_token_s(gateway.request(draw, args.tokens, 1))
        end = time.monotonic()
        reads = (await gateway.counter("prefill_layers_total") - layers) / gateway.model.num_layers
        if any(task.done() for task in tasks):
            raise SystemExit("a stream ended before the prompt's first token: more --answer")
        # What stands still while the prompt goes by is a gap that is open at its end.
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        return {"quiet": gaps(streams, quiet_start, start), "beside": gaps(streams, start, end + 0.5),
                "alone_s": alone, "beside_s": beside, "reads": reads}


async def long_prompt(args):
    print(f"{args.streams} streams decode, a prompt of {args.tokens} tokens arrives\n"
          f"{'':20}{'between tokens, ms':>32}{'':>12}{'first token, s':>18}{'':>8}{'reads of':>10}\n"
          f"{'':20}{'before':>8}{'p50':>8}{'p99':>8}{'max':>8}{'p99/before':>12}"
          f"{'alone':>9}{'beside':>9}{'ratio':>8}{'experts':>10}")
    draw = random.Random(args.seed)
    for name in args.ways or WAYS:
        seen = await long_prompt_once(args, WAYS[name](args.tokens), draw)
        before = percentile(seen["quiet"], .99)
        print(f"{name:20}{before:8.0f}{percentile(seen['beside'], .5):8.0f}"
              f"{percentile(seen['beside'], .99):8.0f}{max(seen['beside'], default=0):8.0f}"
              f"{percentile(seen['beside'], .99) / before:12.2f}{seen['alone_s']:9.1f}"
              f"{seen['beside_s']:9.1f}{seen['beside_s'] / seen['alone_s']:8.2f}"
              f"{seen['reads']:10.1f}", flush=True)
    print("before: p99 while no prompt is computed; the rest is until the prompt's first token")


async def prefix(args):
    draw = random.Random(args.seed)
    firsts, seconds = [], []
    async with Gateway(args, []) as gateway:
        await gateway.first_token_s(gateway.request(draw, 256, 1))  # warm
        for _ in range(args.rounds):
            shared = gateway.request(draw, args.tokens, 1).token_ids
            for times in (firsts, seconds):
                times.append(await gateway.first_token_s(
                    gateway.request(draw, args.tokens + args.question, 1, shared)))
    first, second = statistics.median(firsts), statistics.median(seconds)
    print(f"{args.tokens} shared tokens and {args.question} of its own, {args.rounds} rounds; to the "
          f"first token, median (range)\n"
          f"  first request   {1000 * first:8.0f} ms ({1000 * min(firsts):.0f} to {1000 * max(firsts):.0f})\n"
          f"  second request  {1000 * second:8.0f} ms ({1000 * min(seconds):.0f} to {1000 * max(seconds):.0f})"
          f"  {100 * second / first:.1f}%")


class Asked:
    """What became of requests that were sent at a rate."""

    def __init__(self):
        self.tokens = 0  # of answers that are whole
        self.whole, self.late, self.refused_s, self.other = 0, 0, [], []

    def __str__(self):
        refused = f"{len(self.refused_s):6} refused"
        if self.refused_s:
            refused += (f" after p50 {1000 * percentile(self.refused_s, .5):.0f} ms, "
                        f"p99 {1000 * percentile(self.refused_s, .99):.0f} ms")
        return f"{self.whole:6} whole, {self.late:5} out of time, {refused}, {len(self.other)} other errors"


async def ask(gateway, request, deadline_s, asked):
    start = time.monotonic()
    try:
        done = await gateway.client.complete(request, timeout_s=deadline_s)
        asked.whole += 1
        asked.tokens += len(done.token_ids)
    except TandemError as error:
        if error.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            asked.refused_s.append(time.monotonic() - start)
        elif error.code == grpc.StatusCode.DEADLINE_EXCEEDED:
            asked.late += 1
        else:
            asked.other.append(str(error))


async def at_rate(args, gateway, draw, rate, seconds):
    """Requests by a Poisson process; the tokens per second of whole answers, and what became of all."""
    asked, tasks, start = Asked(), set(), time.monotonic()
    at, most = start, 0.0
    while at < start + seconds:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        task = asyncio.create_task(ask(gateway, gateway.request(draw, args.prompt, args.output),
                                       args.deadline, asked))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        at += draw.expovariate(rate)
        most = max(most, gateway.rss_mib())
    measured = asked.tokens / (time.monotonic() - start)
    await asyncio.gather(*tasks)
    return measured, most, asked


async def overload(args):
    draw = random.Random(args.seed)
    async with Gateway(args, args.gateway_flags) as gateway:
        async def closed(times):
            end = time.monotonic() + args.seconds / 4
            while time.monotonic() < end:
                await gateway.client.complete(gateway.request(draw, args.prompt, args.output))
                times.append(time.monotonic())
        times, start = [], time.monotonic()
        await asyncio.gather(*(closed(times) for _ in range(args.streams)))
        peak = len(times) / (time.monotonic() - start)
        print(f"closed loop, {args.streams} streams: {peak * args.output:8.1f} tokens/s "
              f"({peak:.2f} requests/s), {gateway.rss_mib():.0f} MiB")
        for share, seconds in ((0.8, args.seconds / 4), (args.factor, args.seconds),
                               (0.8, args.seconds / 4)):
            tokens, most, asked = await at_rate(args, gateway, draw, share * peak, seconds)
            print(f"{share:4.1f} times that for {seconds:4.0f} s:     {tokens:8.1f} tokens/s of whole "
                  f"answers ({100 * tokens / (peak * args.output):.0f}%), at most {most:.0f} MiB; {asked}",
                  flush=True)
            for error in asked.other[:3]:
                print(f"    {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("long-prompt", long_prompt), ("prefix", prefix), ("overload", overload)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        add = command.add_argument
        add("--model", required=True)
        add("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
        add("--dtype", default="bf16")
        add("--weights")
        add("--threads", type=int)
        add("--cache-tokens", type=int, default=65536)
        add("--seed", type=int, default=1)
        if name == "long-prompt":
            add("--tokens", type=int, default=8192, help="of the prompt")
            add("--streams", type=int, default=8)
            add("--answer", type=int, default=8192, help="tokens that a stream decodes at most")
            add("--quiet", type=float, default=10, help="seconds before the prompt arrives")
            add("--ways", nargs="*", choices=WAYS)
        elif name == "prefix":
            add("--tokens", type=int, default=2048, help="that prompts share")
            add("--question", type=int, default=32, help="tokens of their own")
            add("--rounds", type=int, default=5)
        else:
            add("--prompt", type=int, default=128)
            add("--output", type=int, default=32)
            add("--streams", type=int, default=64)
            add("--seconds", type=float, default=120)
            add("--factor", type=float, default=5)
            add("--deadline", type=float, default=20)
            add("--gateway-flags", type=str.split, default=[], help="in one word")
    args = parser.parse_args()
    asyncio.run(args.run(args))


if __name__ == "__main__":
    main()
