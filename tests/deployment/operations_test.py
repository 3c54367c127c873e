#!/usr/bin/env python3
"""What docs/operations.md says: every metric that the programs serve is there and the other way round, each
once; and what tandem doctor says of a deployment.

    operations_test.py BIN   # folder of the programs
"""
import collections
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT_S = 60


def documented():
    """{prefix: names} of the tables in docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    return {prefix: [name for row in re.findall(r"^\| (.*?) \|", part, re.M)
                     for name in re.findall(r"`(\w+)`", row)]
            for prefix, part in re.findall(r"^### `(tandem_\w+)_`\n(.*?)(?=^##|\Z)", text,
                                           re.M | re.S)}


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def scrape(port):
    """What a port serves: [(prefix, name)] of its metrics, and {sample: value}, labels in the sample's name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = re.findall(r"^tandem_[a-z]+_(\w+(?:\{.*?\})?) (\S+)$", text, re.M)
    return (re.findall(r"^# TYPE (tandem_[a-z]+)_(\w+) ", text, re.M),
            {sample: float(value) for sample, value in samples})


class OperationsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.processes = []

    def tearDown(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.folder.cleanup()

    def start(self, program, *flags):
        log = open(pathlib.Path(self.folder.name) / f"{program}.log", "w", encoding="utf-8")
        self.processes.append(subprocess.Popen([str(BIN / program), *flags], stdout=log, stderr=log))
        log.close()

    def wait(self, port, wanted):
        """What a port serves once `wanted` of its samples holds."""
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                found = scrape(port)
                if wanted(found[1]):
                    return found
            except OSError:
                pass
            self.assertLess(time.monotonic(), end, f"nothing that is wanted at port {port}")
            time.sleep(0.05)

    def check(self, prefix, found, but=()):
        names = [name for of, name in found[0] if of == prefix]
        self.assertEqual(len(names), len(found[0]))
        # Of servers with certificates.
        but = [*but, "certificate_seconds_left"]
        twice = [name for name, count in collections.Counter(names).items() if count > 1]
        self.assertEqual(twice, [], "Prometheus takes a metric once")
        self.assertEqual(sorted(set(names) - set(documented()[prefix])), [],
                         f"metrics {prefix}_... that docs/operations.md does not name")
        self.assertEqual(sorted(set(documented()[prefix]) - set(names) - set(but)), [],
                         f"docs/operations.md names {prefix}_... that nobody serves")

    def test_a_deployment_serves_what_the_docs_list(self):
        gateway, registry, *metrics = free_ports(5)
        model = ["--model", str(ROOT / "tools" / "demo_model" / "checkpoint")]
        weights = ["--weights", "int8", "--threads", "1", "--packed-weights", self.folder.name,
                   "--registry", f"127.0.0.1:{registry}"]
        self.start("tandem-gateway", *model, "--listen", f"127.0.0.1:{gateway}", "--registry",
                   f"127.0.0.1:{registry}", "--metrics-listen", f"127.0.0.1:{metrics[0]}")
        for number, program in ((1, "tandem-attention-worker"), (2, "tandem-expert-worker")):
            self.start(program, *model, *weights, "--metrics-listen", f"127.0.0.1:{metrics[number]}")
        found = self.wait(metrics[0], lambda m: m.get("attention_workers_ready") == 1
                          and m.get("experts_without_holder") == 0)
        # checkpoint_changed is of a gateway with everything in its process.
        self.check("tandem_gateway", found, but=["checkpoint_changed"])
        self.check("tandem_attention", self.wait(metrics[1], lambda m: m.get("loaded_percent") == 100))
        self.check("tandem_expert", self.wait(metrics[2], lambda m: m.get("loaded_percent") == 100))
        self.check_requests_are_measured(gateway, metrics[0])
        self.check_doctor(gateway)

    def check_requests_are_measured(self, port, metrics):
        def generate(*flags):
            return subprocess.run([str(BIN / "tandem"), "generate", "one two", "--server", f"127.0.0.1:{port}",
                                   *flags], capture_output=True, timeout=LIMIT_S, check=False).returncode

        self.assertEqual(generate("--ignore-eos", "--max-tokens", "5"), 0)
        self.assertNotEqual(generate("--max-tokens", "100000000"), 0)  # beyond the context
        _, samples = scrape(metrics)
        self.assertEqual({name: samples[name] for name in (
            "time_to_first_token_seconds_count", "inter_token_latency_seconds_count",
            "request_generation_tokens_sum", 'request_success_total{finished_reason="length"}',
            'request_success_total{finished_reason="eos"}',
            'request_errors_total{status="INVALID_ARGUMENT"}')}, {
                "time_to_first_token_seconds_count": 1, "inter_token_latency_seconds_count": 4,
                "request_generation_tokens_sum": 5, 'request_success_total{finished_reason="length"}': 1,
                'request_success_total{finished_reason="eos"}': 0,
                'request_errors_total{status="INVALID_ARGUMENT"}': 1})
        parts = [samples[f"request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode")]
        self.assertLessEqual(sum(parts), samples["e2e_request_latency_seconds_sum"])

    def check_doctor(self, port):
        code, lines = self.doctor(port)
        self.assertEqual([line["check"] for line in lines],
                         ["reachable", "state", "versions", "checkpoint", "workers", "placement", "memory",
                          "clock", "certificates"])
        self.assertEqual({line["check"]: line["verdict"] for line in lines if line["verdict"] != "fine"},
                         {"placement": "note"}, lines)  # of one expert worker
        self.assertEqual(code, 0)
        self.processes[-1].kill()  # told to end, it would wait for a successor
        self.processes[-1].wait()
        end = time.monotonic() + LIMIT_S
        while "wrong" not in {line["verdict"] for line in self.doctor(port)[1]}:
            self.assertLess(time.monotonic(), end, "without experts all is well")
        code, lines = self.doctor(port)
        self.assertEqual(code, 1)
        self.assertIn("256 of 256 experts are at no worker", [line["what"] for line in lines])
        self.assertTrue(all(line["advice"] for line in lines if line["verdict"] != "fine"))

    def doctor(self, port):
        done = subprocess.run([str(BIN / "tandem"), "doctor", f"127.0.0.1:{port}", "--json"],
                              capture_output=True, text=True, timeout=LIMIT_S, check=False)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def test_a_gateway_that_is_not_there_is_said_to_be_so(self):
        code, lines = self.doctor(free_ports(1)[0])
        self.assertEqual(code, 1)
        self.assertEqual([(line["verdict"], line["check"]) for line in lines], [("wrong", "reachable")])

    def test_a_gateway_with_everything_in_its_process_serves_the_same_but_for_workers(self):
        gateway, metrics = free_ports(2)
        self.start("tandem-gateway", "--model", str(ROOT / "tools" / "demo_model" / "checkpoint"),
                   "--threads", "1", "--listen", f"127.0.0.1:{gateway}", "--metrics-listen",
                   f"127.0.0.1:{metrics}")
        found = self.wait(metrics, lambda m: m.get("loaded_percent") == 100 and "checkpoint_changed" in m)
        of_workers = [name for name in documented()["tandem_gateway"] if "workers" in name
                      or "holder" in name or name == "model_experts"]
        self.check("tandem_gateway", found, but=of_workers)


if __name__ == "__main__":
    BIN = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
