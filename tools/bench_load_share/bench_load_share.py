#!/usr/bin/env python3
"""What loading experts costs the requests that run beside it, on one machine.

    bench_load_share.py --model DIR [--shares 0.2 1] [--weights-from checkpoint peers] [--rounds 3]

For each share and source, in turns: starts a gateway, an attention worker and an expert worker with that
`--load-share` and `--weights-from`, and a second expert worker, which takes half of the experts. While
sequences decode, counts tokens for some seconds; then has the second worker drain, so that the first loads
its half while both go on computing by the old placement, and counts again. Prints the rate beside loading
as a share of the rate just before, median and range of the rounds, and how fast was loaded. Nothing is kept
packed: experts that come from the checkpoint are packed anew. With `--sequences 0` it says instead what
sending a MiB to another worker takes of a core; `--certificates DIR` (scripts/make-certificates) encrypts.
"""
import argparse
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

LIMIT_S = 600


class Deployment:
    """The programs; they end with it."""

    def __init__(self, args, share, source, folder):
        self.args, self.folder, self.processes, self.ended = args, folder, [], False
        self.common = ["--model", args.model, "--dtype", args.dtype, "--listen", "127.0.0.1:0"]
        gateway = self.start("tandem-gateway", *self.common, "--registry", "127.0.0.1:0",
                             "--expert-copies", "1", "--decode-groups", "1", *self.trust("gateway"))
        self.registry = self.word(gateway, "registry on ")
        self.client_trust = ["--ca", f"{args.certificates}/ca.pem"] if args.certificates else []
        self.expert_flags = ["--load-share", str(share), "--weights-from", source, "--drain-limit", "600"]
        self.first = self.worker("expert", *self.expert_flags)
        self.attention = self.worker("attention", "--cache-tokens", str(args.cache_tokens))
        self.address = self.word(gateway, "gateway on ")
        self.wait(lambda: self.status().get("state") == "serving", "it does not serve")
        self.clients = [threading.Thread(target=self.ask, args=(i,)) for i in range(args.sequences)]
        for client in self.clients:
            client.start()

    def start(self, program, *flags):
        log = self.folder / f"{len(self.processes)}.log"
        with log.open("w") as out:
            self.processes.append(subprocess.Popen([str(self.args.bin / program), *flags], stdout=out,
                                                   stderr=out))
        return log

    def worker(self, kind, *flags):
        """Its process, and the port of its metrics."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            metrics = f"127.0.0.1:{free.getsockname()[1]}"
        self.start(f"tandem-{kind}-worker", *self.common, "--registry", self.registry, "--weights",
                   self.args.weights, "--packed-weights", "off", "--metrics-listen", metrics,
                   *self.trust(kind),
                   *([f"--threads={self.args.threads}"] if self.args.threads else []), *flags)
        return self.processes[-1], metrics

    def trust(self, role):
        folder = self.args.certificates
        if folder is None:
            return []
        return ["--cert", f"{folder}/{role}.pem", "--key", f"{folder}/{role}.key",
                "--ca", f"{folder}/ca.pem"]

    def word(self, log, marker):
        found = []
        pattern = re.escape(marker) + r"([\w.:]+)"
        self.wait(lambda: found.extend(re.findall(pattern, log.read_text())) or found,
                  f"no \"{marker}\" in {log}")
        return found[0]

    def wait(self, condition, what):
        end = time.monotonic() + LIMIT_S
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(what)
            time.sleep(0.02)

    def status(self):
        done = subprocess.run([str(self.args.bin / "tandem"), "status", "--json", "--server",
                               self.address, *self.client_trust],
                              capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def ask(self, number):
        prompt = self.folder / f"prompt{number}.ids"
        prompt.write_text(" ".join(str(1 + (number * 131 + k * 17) % 1000) for k in range(8)))
        while not self.ended:
            subprocess.run(
                [str(self.args.bin / "tandem"), "generate", "--server", self.address,
                 *self.client_trust, "--ids-file", str(prompt), "--ignore-eos", "--max-tokens", "400",
                 "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    @staticmethod
    def counter(worker, name):
        with urllib.request.urlopen(f"http://{worker[1]}/metrics", timeout=10) as answer:
            return float(re.search(rf"^tandem_\w+?_{name} (\S+)$", answer.read().decode(), re.M)[1])

    def tokens_per_s(self, goes_on):
        """Over --seconds, or for as long as it goes on, which is asked twice a second."""
        start, before = time.monotonic(), self.counter(self.attention, "sampled_total")
        while time.monotonic() - start < self.args.seconds and goes_on():
            time.sleep(0.5)
        seconds = time.monotonic() - start
        return (self.counter(self.attention, "sampled_total") - before) / seconds, seconds

    def turn(self):
        """The rate before, the rate beside loading, and MB of experts loaded a second meanwhile."""
        second = self.worker("expert", *self.expert_flags)
        loads = [self.counter(self.first, "expert_loads_total")]
        held = self.counter(self.first, "experts_loaded")
        self.wait(lambda: self.counter(self.first, "experts_loaded") < held, "it gives nothing away")
        time.sleep(1)
        alone, _ = self.tokens_per_s(lambda: self.counter(self.first, "experts_loaded") < held)
        second[0].send_signal(signal.SIGTERM)
        self.wait(lambda: self.counter(self.first, "expert_loads_total") > loads[0], "it loads nothing")
        loads = [self.counter(self.first, "expert_loads_total")]
        beside, seconds = self.tokens_per_s(
            lambda: self.counter(self.first, "experts_loaded") < held)
        loads.append(self.counter(self.first, "expert_loads_total"))
        each = self.counter(self.first, "expert_bytes") / self.counter(self.first, "experts_loaded")
        return alone, beside, (loads[1] - loads[0]) * each / seconds / 1e6

    def sending(self):
        """Milliseconds of a core that the second worker takes for a MiB that it sends, idle else, and
        the bytes."""
        second = self.worker("expert", *self.expert_flags)
        held = self.counter(self.first, "experts_loaded")
        self.wait(lambda: self.counter(self.first, "experts_loaded") < held, "it gives nothing away")
        time.sleep(1)
        before = self.core_s(second[0])
        second[0].send_signal(signal.SIGTERM)
        while second[0].poll() is None:
            try:
                took = self.core_s(second[0]) - before
                sent = self.counter(second, "weights_sent_bytes_total")
            except (OSError, ValueError):
                break
            time.sleep(0.2)
        return 1e3 * took / (sent / 2**20), sent

    @staticmethod
    def core_s(process):
        fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.ended = True
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        for client in self.clients:
            client.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--bin", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 1])
    parser.add_argument("--weights-from", nargs="+", default=["checkpoint", "peers"])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of each program that computes")
    parser.add_argument("--cache-tokens", type=int, default=8192)
    parser.add_argument("--certificates", help="folder")
    args = parser.parse_args()
    found = {(source, share): [] for source in args.weights_from for share in args.shares}
    for _ in range(args.rounds):
        for (source, share), turns in found.items():
            with tempfile.TemporaryDirectory() as folder:
                deployment = Deployment(args, share, source, pathlib.Path(folder))
                try:
                    turns.append(deployment.turn() if args.sequences else deployment.sending())
                finally:
                    deployment.end()
            if not args.sequences:
                print(f"  from {source}: {turns[-1][0]:.2f} ms for 1 MiB, over {turns[-1][1] / 1e6:.0f} MB",
                      flush=True)
                continue
            alone, beside, rate = turns[-1]
            print(f"  from {source} at {share}: {alone:.1f} tokens/s, {beside:.1f} beside {rate:.0f} MB/s",
                  flush=True)
    if not args.sequences:
        return
    print(f"{args.sequences} sequences, {args.rounds} rounds; tokens/s beside loading, of those without")
    for (source, share), turns in found.items():
        ratios = [beside / alone for alone, beside, _ in turns]
        print(f"  from {source:10} --load-share {share:<4} {100 * statistics.median(ratios):5.1f}%  "
              f"({100 * min(ratios):.1f} to {100 * max(ratios):.1f}) at "
              f"{statistics.median(rate for _, _, rate in turns):.0f} MB/s of weights")


if __name__ == "__main__":
    main()
