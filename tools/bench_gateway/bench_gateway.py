#!/usr/bin/env python3
"""What a deployment of many workers costs its gateway.

    bench_gateway.py --attention 64 --experts 256

Starts the real gateway for a model of V2-Lite's shape without weights, lets stub workers join it
over real sockets, and measures the processor time that the gateway's process takes: per heartbeat
while nothing else happens; then per step, token and request, under closed loops of `tandem load` with
few and many streams per attention worker and with long and short answers, all of token ids. Steps are
answered after --step-ms; where it is so short that the machine is full, the workers lose their leases
and the bench ends. *core* is how busy its threads are together, *thread* the busiest of them. With
--perf, also where the time goes.
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
    """Processor time of a process, its threads that have ended included."""
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3)


def threads_s(pid):
    """Processor time of each thread that there is."""
    times = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            times[task.name] = int((task / "schedstat").read_text().split()[0]) * 1e-9
        except (FileNotFoundError, ProcessLookupError):
            pass
    return times


def least_squares(rows, values):
    """The x with rows * x ~ values, by the normal equations."""
    n = len(rows[0])
    table = [[sum(row[i] * row[j] for row in rows) for j in range(n)] +
             [sum(row[i] * value for row, value in zip(rows, values))] for i in range(n)]
    for i in range(n):
        table[i] = [cell / table[i][i] for cell in table[i]]
        for j in range(n):
            if j != i:
                table[j] = [b - table[j][i] * a for a, b in zip(table[i], table[j])]
    return [row[n] for row in table]


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
        self.stubs, self.stub_log = self.start(
            "stub_workers", "--gateway", self.address, "--registry", registry,
            "--attention", str(self.args.attention), "--experts", str(self.args.experts),
            "--step-ms", str(self.args.step_ms))
        while self.counters()[0] != "serving":
            if self.stubs.poll() is not None or time.monotonic() > since + 120:
                raise SystemExit(f"the workers do not join:\n{self.stub_log.read_text()[-500:]}")
            time.sleep(0.2)
        workers = self.args.attention + self.args.experts
        print(f"{workers} workers joined within {time.monotonic() - since:.1f} s, "
              f"{cpu_s(self.pid) - before:.2f} s of the gateway's processor time")
        time.sleep(2)

        before, since = cpu_s(self.pid), time.monotonic()
        time.sleep(self.args.idle_s)
        seconds = time.monotonic() - since
        idle = cpu_s(self.pid) - before
        print(f"nothing to do: {100 * idle / seconds:.1f}% of a core, "
              f"{1e6 * idle / seconds * HEARTBEAT_S / workers:.1f} us per heartbeat")
        print(f"{'streams':>8} {'output':>7} {'steps/s':>8} {'tokens/s':>9} {'requests/s':>11} "
              f"{'core':>6} {'thread':>7}")
        loads = [(streams, self.args.output) for streams in self.args.streams]
        loads.append((self.args.streams[-1], self.args.short_output))
        counts, us = zip(([seconds, 0, 0, 0], 1e6 * idle), *[self.load(*load) for load in loads])
        # Relative to what was measured, so that every load counts alike.
        shares = [[count / total for count in row] for row, total in zip(counts, us)]
        costs = least_squares(shares, [1] * len(us))
        off = [sum(c * share for c, share in zip(costs, row)) - 1 for row in shares]
        print(f"so {1e-4 * costs[0]:.1f}% of a core is for {workers} workers, a step costs "
              f"{costs[1]:.0f} us, a token {costs[2]:.1f} and a request {costs[3]:.0f} besides "
              f"({100 * min(off):+.0f} to {100 * max(off):+.0f}% off)")

    def load(self, streams_per_worker, output):
        args = self.args
        streams = streams_per_worker * args.attention
        perf = None
        if args.perf:
            data = args.perf / f"{streams}-{output}.data"
            perf = subprocess.Popen(["perf", "record", "-q", "-g", "-o", str(data), "-p",
                                     str(self.pid)], stderr=subprocess.DEVNULL)
        _, counters = self.counters()
        before, threads, since = cpu_s(self.pid), threads_s(self.pid), time.monotonic()
        # So many requests that each load has about as many steps.
        requests = streams * max(1, args.rounds * args.output // output)
        self.tool("load", "--streams", str(streams), "--requests", str(requests),
                  "--warm-up", "0", "--prompt", str(args.prompt), "--output", str(output))
        seconds = time.monotonic() - since
        us = 1e6 * (cpu_s(self.pid) - before)
        busiest = max(now - threads.get(name, 0) for name, now in threads_s(self.pid).items())
        _, after = self.counters()
        if perf:
            perf.terminate()
            perf.wait()
        if self.stubs.poll() is not None:
            raise SystemExit(f"the workers have left:\n{self.stub_log.read_text()[-500:]}")
        counts = [after[name] - counters[name]
                  for name in ("steps_total", "tokens_generated_total", "jobs_total")]
        rates = [count / seconds for count in counts]
        counts.insert(0, seconds)
        print(f"{streams:8} {output:7} {rates[0]:8.0f} {rates[1]:9.0f} {rates[2]:11.1f} "
              f"{1e-6 * us / seconds:6.2f} {busiest / seconds:7.2f}", flush=True)
        return counts, us

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
    parser.add_argument("--short-output", type=int, default=2)
    parser.add_argument("--step-ms", type=float, default=50)
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
