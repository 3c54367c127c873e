#!/usr/bin/env python3
"""What a deployment of many workers costs its gateway.

    bench_gateway.py --attention 64 --experts 256

Starts the real gateway for a model of V2-Lite's shape without weights, lets stub workers join it
over real sockets, and measures the processor time that the gateway's process takes: per heartbeat
while nothing else happens; then per step and token under closed loops of `tandem load` with one and
with more streams per attention worker. Steps are answered at once or after --step-ms. With --perf,
also where the time goes.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEARTBEAT_S = 0.3  # as gateway/coordinator.cc asks for


def cpu_s(pid):
    """Processor time of all threads; those that end take theirs with them."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total * 1e-9


class Bench:
    def __init__(self, args, folder):
        self.args = args
        self.folder = folder
        self.processes = []

    def start(self, name, *arguments):
        log = self.folder / f"{name}.log"
        with log.open("w") as out:
            self.processes.append(subprocess.Popen([str(self.args.bin / name), *arguments],
                                                   stdout=out, stderr=out))
        return self.processes[-1], log

    def word(self, log, marker, process):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            _, found, rest = log.read_text().partition(marker)
            if found and len(rest.split()) > 1:
                return rest.split()[0].rstrip(";")
            time.sleep(0.02)
        raise SystemExit(f"a program does not start:\n{log.read_text()}")

    def tool(self, command, *arguments):
        done = subprocess.run([str(self.args.bin / "tandem"), command, *arguments, "--json",
                               "--server", self.address], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"tandem {command} failed: {done.stderr}")
        return json.loads(done.stdout)

    def counters(self):
        status = self.tool("status")
        return status["state"], {k: int(v) for k, v in status["workers"][0]["counters"].items()}

    def run(self):
        model = self.folder / "model"
        subprocess.run([str(self.args.bin / "make_checkpoint"), str(self.args.config), str(model),
                        "--empty"], check=True, capture_output=True)
        gateway, log = self.start("tandem-gateway", "--model", str(model), "--listen", "127.0.0.1:0",
                                  "--registry", "127.0.0.1:0",
                                  "--attention-workers", str(self.args.attention),
                                  "--expert-workers", str(self.args.experts),
                                  "--max-waiting", "100000", "--decode-groups", "1")
        self.pid = gateway.pid
        self.address = self.word(log, "gateway on ", gateway)
        registry = self.word(log, "registry on ", gateway)
        before, since = cpu_s(self.pid), time.monotonic()
        stubs, stub_log = self.start(
            "stub_workers", "--gateway", self.address, "--registry", registry,
            "--attention", str(self.args.attention), "--experts", str(self.args.experts),
            "--step-ms", str(self.args.step_ms))
        while self.counters()[0] != "serving":
            if stubs.poll() is not None or time.monotonic() > since + 120:
                raise SystemExit(f"the workers do not join:\n{stub_log.read_text()}")
            time.sleep(0.2)
        workers = self.args.attention + self.args.experts
        print(f"{workers} workers joined within {time.monotonic() - since:.1f} s, "
              f"{cpu_s(self.pid) - before:.2f} s of the gateway's processor time")
        time.sleep(2)

        before, since = cpu_s(self.pid), time.monotonic()
        time.sleep(self.args.idle_s)
        seconds = time.monotonic() - since
        idle = (cpu_s(self.pid) - before) / seconds
        print(f"nothing to do: {100 * idle:.1f}% of a core, "
              f"{1e6 * idle * HEARTBEAT_S / workers:.1f} us per heartbeat")
        print(f"{'streams':>8} {'steps/s':>9} {'tokens/s':>9} {'core':>6} {'us/step':>8} {'us/token':>9}")
        rows = [self.load(streams, idle) for streams in self.args.streams]
        if len(rows) > 1:
            # us = a * steps + b * tokens, by the first and the last.
            (s1, t1, u1), (s2, t2, u2) = rows[0], rows[-1]
            det = s1 * t2 - s2 * t1
            if det:
                print(f"so a step costs {(u1 * t2 - u2 * t1) / det:.0f} us, and a token "
                      f"{(s1 * u2 - s2 * u1) / det:.0f} us besides")

    def load(self, streams_per_worker, idle):
        args = self.args
        streams = streams_per_worker * args.attention
        perf = None
        if args.perf:
            data = args.perf / f"{streams}.data"
            perf = subprocess.Popen(["perf", "record", "-q", "-g", "-o", str(data), "-p",
                                     str(self.pid)], stderr=subprocess.DEVNULL)
        _, counters = self.counters()
        before, since = cpu_s(self.pid), time.monotonic()
        self.tool("load", "--streams", str(streams), "--requests", str(streams * args.rounds),
                  "--warm-up", "0", "--prompt", str(args.prompt), "--output", str(args.output))
        seconds = time.monotonic() - since
        us = 1e6 * (cpu_s(self.pid) - before - idle * seconds)
        _, after = self.counters()
        if perf:
            perf.terminate()
            perf.wait()
        steps = after["steps_total"] - counters["steps_total"]
        tokens = after["tokens_generated_total"] - counters["tokens_generated_total"]
        print(f"{streams:8} {steps / seconds:9.0f} {tokens / seconds:9.0f} "
              f"{1e-6 * us / seconds:6.2f} {us / steps:8.1f} {us / tokens:9.1f}", flush=True)
        return steps, tokens, us

    def end(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--config", type=pathlib.Path,
                        default=ROOT / "tools/gpu_bench/v2_lite_config.json")
    parser.add_argument("--attention", type=int, default=64)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")],
                        default=[1, 4, 16], help="per attention worker")
    parser.add_argument("--rounds", type=int, default=4, help="requests of each stream")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=0)
    parser.add_argument("--idle-s", type=float, default=5)
    parser.add_argument("--perf", type=pathlib.Path, help="a folder for perf's recordings")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, pathlib.Path(folder))
        try:
            bench.run()
        finally:
            bench.end()


if __name__ == "__main__":
    main()
