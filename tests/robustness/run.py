#!/usr/bin/env python3
"""Streams through a real deployment while things break; every answer must be the fault-free one.

    run.py --scenario kill --seconds 60 --seed 1
    run.py --scenario all --seconds 3600 --seed 7 --model tools/demo_model/checkpoint

Starts a gateway, attention and expert workers on loopback, lets `--streams` clients ask in a closed
loop, and plays the scenario's faults meanwhile. Every finished stream is held, bit for bit, against
the same request's answer from a deployment that nobody disturbed, which is asked first and kept.
Requests, faults and their times come from the seed. At the end: a table; in --out the timeline
(timeline.csv), its plot (timeline.svg), each stream with the arrival time of each chunk
(history.jsonl), the faults (faults.csv) and all logs. Exit code 0; 1 if a stream failed, differed or
stalled for longer than allowed, or a program ended by itself or did not become idle; 77 without gRPC.
"""
import argparse
import asyncio
import dataclasses
import importlib.util
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SKIPPED = 77
if importlib.util.find_spec("grpc") is None:
    print(f"skipped: {sys.executable} has no gRPC (Debian: python3-grpcio, python3-protobuf)")
    sys.exit(SKIPPED)
WORK = ROOT / "build" / "robustness"
sys.path.insert(0, str(ROOT / "tools" / "python"))
import make_package  # noqa: E402

sys.path.pop(0)
make_package.make(WORK / "python")
sys.path.insert(0, str(WORK / "python"))

from tandem import AsyncClient, RetryPolicy, TandemError  # noqa: E402

import faults  # noqa: E402
import history  # noqa: E402
import report  # noqa: E402
from deployment import START_LIMIT_S, Deployment, Program, free_port  # noqa: E402
from streams import Load  # noqa: E402

SAMPLE_S = 0.5
DISK_MIB = 24
# What must be zero when nobody asks.
LIVE = ["requests_live", "jobs_waiting", "jobs_running", "steps_outstanding", "sequences_live",
        "batches_live", "rows_live", "parts_live"]


class Run:
    """One scenario, played."""

    def __init__(self, options):
        self.options = options
        self.scenario = faults.SCENARIOS[options.scenario]
        self.draw = random.Random(f"faults {options.seed}")
        self.faults, self.outages, self.defects, self.rows = [], [], [], []
        self.skipped, self.why_skipped = {}, {}
        self.scale_step = 0
        self.ending = False
        self.seconds = 0.0
        self.zero = time.monotonic()
        self.disk, self.why_no_disk = None, "not asked for"
        self.computed_again = None  # tokens of sequences that went to an attention worker once more

    def now(self):
        return time.monotonic() - self.zero

    async def sleep(self, seconds):
        end = self.now() + seconds
        while self.now() < end and not self.ending:
            await asyncio.sleep(min(0.1, max(0, end - self.now())))

    def note(self, fault):
        self.faults.append(fault)
        if not self.options.quiet:
            print(f"{fault.start_s:7.1f} s  {fault.kind} {fault.detail}", flush=True)

    def defect(self, sentence):
        sentence = f"at {self.now():.1f} s: {sentence}"
        print(f"DEFECT {sentence}", flush=True)
        self.defects.append(sentence)

    def gateway_was_away(self, start_s, end_s):
        """Whether UNAVAILABLE is the right answer for a stream that lived from start to end."""
        return any(f.start_s <= end_s and start_s <= f.recovered_s for f in self.outages)

    async def status(self):
        try:
            return await self.plain.get_status(timeout_s=2)
        except TandemError:
            return None

    async def serving(self, limit_s=START_LIMIT_S):
        end = self.now() + limit_s
        while self.now() < end:
            status = await self.status()
            if status is not None and status.state == "serving":
                return True
            await asyncio.sleep(0.05)
        status = await self.status()
        self.defect(f"does not serve again: {status and status.state}: {status and status.detail}")
        return False

    async def play_faults(self):
        await self.sleep(2)  # of peace, to compare with
        while not self.ending:
            start = self.now()
            fault = self.draw.choice(self.scenario.faults)
            before = len(self.faults)
            try:
                await fault(self)
            except faults.Skip as skip:
                self.skipped[fault.__name__] = self.skipped.get(fault.__name__, 0) + 1
                self.why_skipped[fault.__name__] = str(skip)
                if len(self.scenario.faults) == 1:
                    return
                continue
            await self.serving()
            for noted in self.faults[before:]:
                noted.recovered_s = self.now()
            await self.sleep(start + self.scenario.every_s - self.now())

    async def sample(self):
        tokens, last = 0, self.now()
        while not self.ending:
            await asyncio.sleep(SAMPLE_S)
            status, now = await self.status(), self.now()
            deployment = self.deployment
            self.rows.append({
                "time_s": round(now, 2),
                "tokens_per_s": round((self.load.tokens - tokens) / (now - last), 1),
                "attention_alive": sum(w.running() for w in deployment.of("attention")),
                "experts_alive": sum(w.running() for w in deployment.of("expert")),
                "workers_ready": 0 if status is None else sum(
                    w.state == "ready" for w in status.workers if w.kind != "gateway"),
                "placement_epoch": 0 if status is None else status.placement_epoch,
                "placement_counter": 0 if status is None else status.placement_counter,
                "state": "away" if status is None else status.state,
                "finished": len(self.load.ended),
                "longest_stall_s": round(self.load.take_longest_gap(), 3),
                "gateway_rss_mib": round(deployment.gateway.rss_mib(), 1),
                "workers_rss_mib": round(sum(w.rss_mib() for w in deployment.workers), 1),
                "descriptors": sum(p.descriptors() for p in deployment.programs()),
            })
            tokens, last = self.load.tokens, now
            for program in deployment.programs():
                if program.wanted and not program.running():
                    self.defect(f"{program.name} ended by itself with "
                                f"{program.process.returncode}: {program.log()[-300:]}")
                    program.start()  # one defect is not to hide the next ones

    async def idle(self, limit_s=20):
        """Whether nothing is alive and all pages are free, once nobody asks."""
        end = self.now() + limit_s
        left = "the gateway does not answer"
        while self.now() < end:
            status = await self.status()
            if status is not None:
                left = [f"{w.kind} {w.id}: {name} {w.counters[name]}" for w in status.workers
                        for name in LIVE if w.counters.get(name)]
                left += [f"{w.kind} {w.id}: {w.counters['pages_free']} of "
                         f"{w.counters['pages_total']} pages free" for w in status.workers
                         if w.counters.get("pages_free") != w.counters.get("pages_total")]
                if not left:
                    return
            await asyncio.sleep(0.2)
        self.defect(f"not idle although nobody asks: {left}")

    async def play(self, asked, expected):
        options = self.options
        logs = (self.disk or options.out) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        if self.disk is not None:
            options = dataclasses.replace(
                options, weights_flags=[*options.weights_flags, "--packed-weights",
                                        str(self.disk / "packed")])
        fewest = options.expert_workers
        if faults.scale in self.scenario.faults:
            fewest = min(faults.SCALE)
        self.deployment = Deployment(options, fewest, logs, self.scenario.links)
        self.plain = AsyncClient(self.deployment.gateway.address, retry=RetryPolicy(give_up_s=0))
        try:
            self.deployment.start()
            if not await self.serving():
                return
            self.zero = time.monotonic()
            with (options.out / "history.jsonl").open("w") as file:
                await self.with_load(asked, expected, file)
            await self.idle()
            self.defects += await self.deployment.end()
        finally:
            self.deployment.kill()
            await self.plain.close()

    async def with_load(self, asked, expected, file):
        options = self.options
        self.load = Load(options, self.deployment.gateway.address, asked, expected, self.zero,
                         file, self.gateway_was_away)
        streams = [asyncio.create_task(self.load.run(i)) for i in range(options.streams)]
        sampler = asyncio.create_task(self.sample())
        player = asyncio.create_task(self.play_faults())
        await self.sleep(options.seconds)
        self.ending = True
        await player
        self.seconds = self.now()
        self.load.stopping = True
        await asyncio.gather(*streams)
        status = await self.status()
        if status is not None and not self.outages:  # a gateway that was started again has counted anew
            opened = status.workers[0].counters["prefix_cache_queries_total"]
            self.computed_again = opened - sum(
                len(asked[e.request].token_ids) for e in self.load.ended if not e.error)
        await sampler
        await self.load.client.close()
        stalled = [e for e in self.load.ended if e.stall_s > options.max_stall]
        for e in stalled[:5]:
            self.defects.append(f"stream {e.stream} stalled for {e.stall_s:.1f} s between "
                                f"{e.start_s:.1f} and {e.end_s:.1f} s")
        if len(stalled) > 5:
            self.defects.append(f"and {len(stalled) - 5} more stalled")

    def failed(self):
        return bool(self.defects) or any(e.error or e.difference for e in self.load.ended)


def mount_small_disk(run):
    """A file system that can be filled without harm."""
    folder = run.options.out / "disk"
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        run.why_no_disk = "mounting a small file system needs root"
        return
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "robustness",
                           str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        run.why_no_disk = done.stderr.strip()
    else:
        run.disk = folder


async def expectations(options):
    """The requests, and what they are answered when nothing happens."""
    address = f"127.0.0.1:{free_port()}"
    quiet = Program("reference", "gateway",
                    [str(options.bin / "tandem-gateway"), "--model", str(options.model), "--dtype",
                     options.dtype, "--listen", address, "--cache-tokens",
                     str(options.cache_tokens), *options.weights_flags], address, options.out)
    quiet.start()
    try:
        async with AsyncClient(address) as client:
            end = time.monotonic() + START_LIMIT_S
            while (await client.get_status()).state != "serving":
                if time.monotonic() > end or not quiet.running():
                    raise SystemExit(f"the reference does not serve:\n{quiet.log()}")
                await asyncio.sleep(0.05)
            model = await client.get_model()
        asked = history.requests(options.seed, options.requests, model.vocab_size,
                                 options.longest_prompt, options.longest_answer)
        kept = WORK / "expected" / (history.cache_key(
            model.digest, [options.dtype, *options.weights_flags],
            options.bin / "tandem-gateway", asked) + ".json")
        expected = history.load(kept)
        if expected is None:
            expected = await history.fault_free(address, asked)
            history.save(kept, expected)
        return asked, expected
    finally:
        quiet.kill()


@dataclasses.dataclass
class Options:
    scenario: str
    seconds: float
    seed: int
    model: pathlib.Path
    bin: pathlib.Path
    out: pathlib.Path
    dtype: str
    streams: int
    requests: int
    attention_workers: int
    expert_workers: int
    threads: int
    cache_tokens: int
    longest_prompt: int
    longest_answer: int
    max_stall: float
    deadline: float
    hang_limit: float
    weights_flags: list
    gateway_flags: list
    quiet: bool


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scenario", choices=faults.SCENARIOS, required=True)
    add("--seconds", type=float, default=60)
    add("--seed", type=int, default=1)
    add("--model", type=pathlib.Path, default=ROOT / "tests/golden/tiny")
    add("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    add("--out", type=pathlib.Path, help="default: build/robustness/SCENARIO-SEED")
    add("--dtype", default="f32")
    add("--streams", type=int, default=32)
    add("--requests", type=int, default=96, help="different ones, of which each stream draws")
    add("--attention-workers", type=int, default=2)
    add("--expert-workers", type=int, default=2)
    add("--threads", type=int, default=1, help="of each worker")
    add("--cache-tokens", type=int, default=16384)
    add("--longest-prompt", type=int, default=300)
    add("--longest-answer", type=int, default=300)
    add("--max-stall", type=float, default=30,
        help="seconds that a stream may go without a chunk; default 30")
    add("--deadline", type=float, default=300, help="seconds of one request")
    add("--hang-limit", type=float, default=20, help="the gateway's")
    add("--weights-flags", type=str.split, default=[], help="of whoever holds weights, in one word")
    add("--gateway-flags", type=str.split, default=[], help="in one word")
    add("--quiet", action="store_true", help="no line per fault")
    options = Options(**vars(parser.parse_args()))
    options.out = options.out or WORK / f"{options.scenario}-{options.seed}"
    options.model, options.bin, options.out = (p.resolve() for p in (options.model, options.bin,
                                                                     options.out))
    if options.scenario == "full-disk" and not options.weights_flags:
        options.weights_flags = ["--weights", "int8"]  # which are packed, and kept
    return options


async def main():
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    ended = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        ended.add_signal_handler(number, lambda: setattr(run, "ending", True))
    asked, expected = await expectations(options)
    if run.scenario.small_disk:
        mount_small_disk(run)
    try:
        await run.play(asked, expected)
    finally:
        if run.disk is not None:
            subprocess.run(["cp", "-r", str(run.disk / "logs"), str(options.out)])
            subprocess.run(["umount", str(run.disk)])
    report.write_csv(options.out / "timeline.csv", run.rows)
    report.write_csv(options.out / "faults.csv", [dataclasses.asdict(f) for f in run.faults])
    report.write_svg(options.out / "timeline.svg", run.rows, run.faults,
                     f"{options.scenario}, seed {options.seed}: {options.streams} streams")
    print(f"\n{options.scenario}, seed {options.seed}, {run.seconds:.0f} s, "
          f"{options.attention_workers} attention and {options.expert_workers} expert workers, "
          f"{options.streams} streams, {options.model.name} in {options.dtype}\n")
    print(report.table(run))
    print(f"\n{'FAILED' if run.failed() else 'passed'}; timeline, plot, history and logs: "
          f"{options.out}")
    return 1 if run.failed() else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
