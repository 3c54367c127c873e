"""Real programs on loopback: started, ended, killed, stopped, and started again at the same ports."""
import asyncio
import os
import pathlib
import signal
import socket
import subprocess
import sys

START_LIMIT_S = 120
HERE = pathlib.Path(__file__).resolve().parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Proxy:
    """proxy.py as a process."""

    def __init__(self, target):
        self.process = subprocess.Popen([sys.executable, str(HERE / "proxy.py"), target],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def set_mode(self, mode):
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Program:
    """One of the deployment's programs over all its lives, at one address."""

    def __init__(self, name, kind, command, address, logs, proxies=None):
        self.name, self.kind, self.command, self.address = name, kind, command, address
        self.logs = logs
        self.proxies = proxies or {}  # by link: "expert", "attention", "registry"
        self.lives = 0
        self.process = None
        self.wanted = False  # whether it should be running: its end is a defect then

    def start(self):
        self.lives += 1
        with (self.logs / f"{self.name}-{self.lives}.log").open("w") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log)
        self.wanted = True

    def running(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        if self.running():
            self.process.send_signal(number)

    def kill(self):
        self.wanted = False
        self.signal(signal.SIGKILL)
        self.process.wait()

    async def terminate(self, limit_s):
        """The exit code, or None if it had to be killed."""
        self.wanted = False
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(asyncio.to_thread(self.process.wait), limit_s)
        except asyncio.TimeoutError:
            self.kill()
            return None

    def log(self):
        return (self.logs / f"{self.name}-{self.lives}.log").read_text(errors="replace")

    def rss_mib(self):
        try:
            fields = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()
        except OSError:
            return 0.0
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def descriptors(self):
        try:
            return len(os.listdir(f"/proc/{self.process.pid}/fd"))
        except OSError:
            return 0


class Deployment:
    """A gateway with attention and expert workers. `fewest`: how many expert workers the gateway is
    told to wait for; `links`: which go through proxies."""

    def __init__(self, options, fewest, logs, links=()):
        self.options, self.logs, self.links = options, logs, links
        self.common = ["--model", str(options.model), "--dtype", options.dtype]
        self.computes = ["--threads", str(options.threads), *options.weights_flags]
        self.made = {"attention": 0, "expert": 0}
        self.workers = []
        registry = f"127.0.0.1:{free_port()}"
        address = f"127.0.0.1:{free_port()}"
        self.registry = registry
        self.gateway = Program(
            "gateway", "gateway",
            [self.binary("tandem-gateway"), *self.common, "--listen", address, "--registry",
             registry, "--attention-workers", str(options.attention_workers), "--expert-workers",
             str(fewest), "--hang-limit", str(options.hang_limit),
             *options.gateway_flags],
            address, logs)

    def binary(self, name):
        return str(self.options.bin / name)

    def start(self):
        self.gateway.start()
        for _ in range(self.options.attention_workers):
            self.add("attention")
        for _ in range(self.options.expert_workers):
            self.add("expert")

    def add(self, kind):
        index = self.made[kind]
        self.made[kind] += 1
        address = f"127.0.0.1:{free_port()}"
        proxies = {}
        registry = self.registry
        command = [self.binary(f"tandem-{kind}-worker"), *self.common, *self.computes,
                   "--listen", address]
        if "registry" in self.links:
            proxies["registry"] = Proxy(self.registry)
            registry = proxies["registry"].address
        command += ["--registry", registry]
        # Every other expert worker stays reachable through shared memory.
        if kind in self.links and (kind == "attention" or index % 2 == 0):
            proxies[kind] = Proxy(address)
            command += ["--advertise", proxies[kind].address]
            if kind == "expert":
                command += ["--expert-link", "grpc"]
        if kind == "attention":
            command += ["--cache-tokens", str(self.options.cache_tokens)]
        # Most have their experts from each other, whatever breaks meanwhile.
        if kind == "expert" and index % 3 != 2:
            command += ["--weights-from", "peers"]
        worker = Program(f"{kind}{index}", kind, command, address, self.logs, proxies)
        self.workers.append(worker)
        worker.start()
        return worker

    def remove(self, worker):
        self.workers.remove(worker)
        for proxy in worker.proxies.values():
            proxy.end()

    def of(self, kind):
        return [worker for worker in self.workers if worker.kind == kind]

    def programs(self):
        return [self.gateway, *self.workers]

    async def end(self):
        """Ends all by SIGTERM, workers last; names those that did not end well."""
        bad = []
        for program in self.programs():
            if program.running():
                code = await program.terminate(60)
                if code != 0:
                    bad.append(f"{program.name} ended with {code} after SIGTERM")
            for proxy in program.proxies.values():
                proxy.end()
        return bad

    def kill(self):
        for program in self.programs():
            if program.running():
                program.signal(signal.SIGCONT)
                program.kill()
            for proxy in program.proxies.values():
                proxy.process.kill()
