#!/usr/bin/env python3
"""What it costs to have the workers in processes of their own, on one machine.

    bench_links.py --model DIR [--sequences 16] [--tokens 64] [--rounds 5]

Starts the model three times: in one process; and as gateway, attention worker and expert worker,
which reach each other through shared memory, or over gRPC. Checks that all three give the same ids,
then lets each decode the same sequences, in turns, and prints tokens per second: the median of the
rounds, their range, and the share of what one process reaches.
"""
import argparse
import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

START_LIMIT_S = 600


class Deployment:
    """Programs of one shape; they end with it."""

    def __init__(self, args, folder, expert_link):
        self.args = args
        self.folder = folder
        self.processes = []
        common = ["--model", args.model, "--dtype", args.dtype, "--listen", "127.0.0.1:0"]
        computes = ["--threads", str(args.threads)] if args.threads else []
        cache = ["--cache-tokens", str(args.cache_tokens)]
        gateway = ["tandem-gateway", *common, "--decode-groups", "1"]
        if expert_link is None:
            self.address = self.start([*gateway, *computes, *cache], "gateway on ")
        else:
            log = self.start([*gateway, "--registry", "127.0.0.1:0", "--attention-workers", "1",
                              "--expert-workers", "1"], None)
            registry = self.word(log, "registry on ")
            worker = [*common, *computes, "--registry", registry, "--expert-link", expert_link]
            self.start(["tandem-expert-worker", *worker], None)
            self.start(["tandem-attention-worker", *worker, *cache], None)
            self.address = self.word(log, "gateway on ")
        deadline = time.monotonic() + START_LIMIT_S
        while self.tool("status", check=False).get("state") != "serving":
            if time.monotonic() > deadline:
                raise SystemExit("the deployment does not serve")
            time.sleep(0.1)

    def start(self, command, marker):
        log = self.folder / f"{len(self.processes)}.log"
        with log.open("w") as out:
            self.processes.append(subprocess.Popen(
                [str(self.args.bin / command[0]), *command[1:]], stdout=out, stderr=out))
        return log if marker is None else self.word(log, marker)

    def word(self, log, marker):
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            _, found, rest = log.read_text().partition(marker)
            if found and len(rest.split()) > 1:
                return rest.split()[0].rstrip(";")
            if self.processes[-1].poll() is not None:
                break
            time.sleep(0.02)
        raise SystemExit(f"a program does not start:\n{log.read_text()}")

    def tool(self, command, *arguments, check=True):
        done = subprocess.run([str(self.args.bin / "tandem"), command, *arguments, "--json",
                               "--server", self.address], capture_output=True, text=True)
        if done.returncode != 0:
            if check:
                raise SystemExit(f"tandem {command} failed: {done.stderr}")
            return {}
        return json.loads(done.stdout)

    def decode(self, prompts):
        """The ids of all sequences, and their tokens per second."""
        def one(prompt):
            return self.tool("generate", "--ids-file", str(prompt), "--temperature", "0",
                             "--ignore-eos", "--max-tokens", str(self.args.tokens))
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(one, prompts))
        seconds = time.monotonic() - start
        return [answer["ids"] for answer in answers], len(prompts) * self.args.tokens / seconds

    def end(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--bin", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of each program that computes")
    parser.add_argument("--cache-tokens", type=int, default=8192)
    args = parser.parse_args()
    shapes = {"one process": None, "shared memory": "auto", "gRPC": "grpc"}
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        prompts = []
        for i in range(args.sequences):
            prompts.append(root / f"prompt{i}.ids")
            prompts[-1].write_text(" ".join(str(1 + (i * 131 + k * 17) % 1000) for k in range(8)))
        deployments = {}
        try:
            for name, expert_link in shapes.items():
                folder = root / name.replace(" ", "_")
                folder.mkdir()
                deployments[name] = Deployment(args, folder, expert_link)
            first = {name: d.decode(prompts)[0] for name, d in deployments.items()}
            if len({json.dumps(ids) for ids in first.values()}) != 1:
                raise SystemExit("the shapes give different ids")
            rates = {name: [] for name in shapes}
            for _ in range(args.rounds):
                for name, deployment in deployments.items():
                    rates[name].append(deployment.decode(prompts)[1])
        finally:
            for deployment in deployments.values():
                deployment.end()
    base = statistics.median(rates["one process"])
    print(f"{args.sequences} sequences of {args.tokens} tokens, {args.rounds} rounds; tokens/s")
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"  {name:14} {median:8.1f}  ({min(values):.1f} to {max(values):.1f})"
              f"  {100 * median / base:5.1f}% of one process")


if __name__ == "__main__":
    main()
