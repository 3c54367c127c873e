#!/usr/bin/env python3
"""Plays the overlays of k8s/ as pods, with the image that is there, and asks them: scripts/check-image starts it.

    run.py [embedded | one-gpu | scale-out | rolling] ...   # default: all

Answers are held, bit for bit, against those of one process; logs and what probes saw are in build/k8s-test. Exit
code 0; 1 with a sentence.
"""
import asyncio
import pathlib
import shutil
import subprocess
import sys
import time
import types

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "k8s-test"
sys.path[:0] = [str(ROOT / "tests" / "robustness"), str(ROOT / "tools" / "python")]
import make_package  # noqa: E402

make_package.make(WORK / "python")
sys.path.remove(str(ROOT / "tools" / "python"))
sys.path.insert(0, str(WORK / "python"))

import history  # noqa: E402
from cluster import NETWORK, Cluster, podman, render  # noqa: E402
from streams import Load  # noqa: E402
from tandem import AsyncClient  # noqa: E402

IMAGE = "localhost/tandem"
STREAMS = 16
OPTIONS = types.SimpleNamespace(seed=3, max_stall=60, deadline=300)


class Failure(Exception):
    """A sentence about what is not as it should be."""


def expect(condition, sentence):
    if not condition:
        raise Failure(sentence)


def say(sentence):
    print(f"{time.monotonic() - START:6.1f} s  {sentence}", flush=True)


def ask_through_service(port=8470):
    """A client in a pod of its own, by the Service's name."""
    answer = podman("run", "--rm", "--network", NETWORK, IMAGE, "tandem", "chat", "--server",
                    f"tandem-gateway:{port}", "--temperature", "0", "-m", "What is 347 + 285?")
    expect(answer == "347 + 285 = 632", f"the Service answers {answer!r}")
    say("the Service's port answers: " + answer)


def fill_claim(cluster):
    """The checkpoint, as whoever fills the claim would leave it."""
    for claim in cluster.of_kind("PersistentVolumeClaim"):
        name = claim["metadata"]["name"]
        podman("volume", "rm", "--force", name, check=False)
        podman("volume", "create", name)
        place = pathlib.Path(podman("volume", "inspect", name, "--format", "{{.Mountpoint}}"))
        for file in (ROOT / "tools" / "demo_model" / "checkpoint").iterdir():
            shutil.copy2(file, place)
        podman("run", "--rm", "--user", "0", "--volume", f"{name}:/v", IMAGE, "chmod", "-R", "a+rX", "/v")


def check_pods(cluster):
    """That podman was given what the manifests say, and took it."""
    for pods in cluster.pods.values():
        for pod in pods:
            for container in pod.spec["containers"]:
                at = f"{pod.name}-{container['name']}"
                format_ = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}}"
                user, read_only, memory = podman("inspect", at, "--format", format_).split()
                expect(user.startswith("65532") and read_only == "true" and int(memory) > 0,
                       f"{at}: user {user}, read-only {read_only}, memory {memory}")
                held = podman("exec", at, "grep", "CapEff", "/proc/1/status").split()[1]
                expect(int(held, 16) == 0, f"{at} has capabilities {held}")
                for mount in container.get("volumeMounts", []):
                    if mount.get("readOnly"):
                        written = subprocess.run(["podman", "exec", "--user", "0", at, "touch",
                                                  mount["mountPath"] + "/x"], capture_output=True,
                                                 check=False)
                        expect(written.returncode != 0, f"{at} can write to {mount['mountPath']}")


async def embedded():
    cluster = Cluster(render(ROOT / "k8s" / "overlays" / "embedded"), WORK / "embedded")
    try:
        pod = await cluster.add("tandem-gateway")
        await cluster.ready()
        check_pods(cluster)
        ask_through_service()
        expect(cluster.states(pod)[:3] == ["started", "alive", "ready"], f"{cluster.states(pod)}")
        codes = await cluster.remove(pod, "tandem-gateway")
        expect(set(codes.values()) == {0}, f"the pod ended with {codes}")
    finally:
        cluster.destroy()


def without_gpu(resources):
    """The same pod where there is none."""
    for deployment in (r for r in resources if r["kind"] == "Deployment"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            container["image"] = IMAGE
            container["args"] = [a for a in container["args"] if not a.startswith(("--device", "--gpu"))]
            for of in container["resources"].values():
                of.pop("nvidia.com/gpu", None)
    return resources


async def one_gpu():
    resources = without_gpu(render(ROOT / "k8s" / "overlays" / "one-gpu"))
    cluster = Cluster(resources, WORK / "one-gpu")
    try:
        fill_claim(cluster)
        pod = await cluster.add("tandem-gateway")
        await cluster.ready()
        check_pods(cluster)
        ask_through_service()
        async with AsyncClient(f"{pod.ip}:8470") as client:
            status = await client.get_status()
        counters = next(w.counters for w in status.workers if w.kind == "attention")
        expect(counters["expert_links_shm"] == 1, "rows do not go through shared memory within a pod")
        codes = await cluster.remove(pod, "tandem-gateway")
        expect(set(codes.values()) == {0}, f"the pod's containers ended with {codes}")
    finally:
        cluster.destroy()


async def expectations():
    """Requests, and what one process answers, which nobody disturbs, of the image's own demo model."""
    cluster = Cluster(render(ROOT / "k8s" / "overlays" / "embedded"), WORK / "reference")
    try:
        pod = await cluster.add("tandem-gateway")
        await cluster.ready()
        async with AsyncClient(f"{pod.ip}:8470") as client:
            model = await client.get_model()
        asked = history.requests(OPTIONS.seed, 48, model.vocab_size, 200, 150)
        return asked, await history.fault_free(f"{pod.ip}:8470", asked)
    finally:
        cluster.destroy()


class Deployed:
    """overlays/scale-out, with streams that are held against one process's answers."""

    def __init__(self, folder):
        self.cluster = Cluster(render(ROOT / "k8s" / "overlays" / "scale-out"), WORK / folder)
        self.outages = []  # (start_s, end_s) in which there is no gateway

    async def start(self):
        cluster = self.cluster
        fill_claim(cluster)
        # Workers first, so that they are seen to be alive and not yet ready.
        experts = await cluster.add("tandem-expert")
        attention = [await cluster.add("tandem-attention") for _ in range(2)]
        await asyncio.sleep(3)
        expect(cluster.states(experts) == ["started", "alive"], f"{experts.name}: {cluster.states(experts)}")
        gateway = await cluster.add("tandem-gateway")
        await cluster.ready()
        for pod in (experts, *attention, gateway):
            expect(cluster.states(pod)[:3] == ["started", "alive", "ready"],
                   f"{pod.name}: {cluster.states(pod)}")
        say("probes of all four pods went from alive, while loading, to ready")
        check_pods(cluster)
        ask_through_service()
        expect("wrong" not in podman("exec", f"{gateway.name}-gateway", "tandem", "doctor"),
               "tandem doctor finds something wrong")

    def start_load(self, asked, expected):
        self.file = (self.cluster.folder / "history.jsonl").open("w")
        self.load = Load(OPTIONS, self.cluster.target("tandem-gateway", 8470), asked, expected,
                         self.cluster.zero, self.file,
                         lambda start, end: any(a <= end and start <= b for a, b in self.outages))
        self.streams = [asyncio.create_task(self.load.run(i)) for i in range(STREAMS)]

    async def serve_for(self, streams_more, limit_s=120):
        """Until so many streams more have ended."""
        wanted, end = len(self.load.ended) + streams_more, time.monotonic() + limit_s
        while len(self.load.ended) < wanted:
            expect(time.monotonic() < end, "streams do not go on")
            await asyncio.sleep(0.1)

    async def end_load(self):
        self.load.stopping = True
        await asyncio.gather(*self.streams)
        await self.load.client.close()
        self.file.close()
        bad = [e for e in self.load.ended if e.error or e.difference]
        expect(not bad, f"{len(bad)} of {len(self.load.ended)} streams failed or differ: {bad[:2]}")
        worst = max(e.stall_s for e in self.load.ended)
        retried = sum(e.retried for e in self.load.ended)
        say(f"{len(self.load.ended)} streams ended, none failed, all with one process's bits; asked again: "
            f"{retried}; the longest pause {worst:.1f} s")

    async def roll(self, name):
        """One more, and one less: maxSurge 1, maxUnavailable 0."""
        for pod in list(self.cluster.of(name)):
            await self.cluster.add(name)
            await self.cluster.ready()
            codes = await self.cluster.remove(pod, name)
            expect(set(codes.values()) == {0}, f"{pod.name} ended with {codes}")
            await self.serve_for(STREAMS)

    async def recreate_gateway(self):
        start = self.cluster.now()
        outage = [start, float("inf")]
        self.outages.append(outage)
        pod = self.cluster.of("tandem-gateway")[0]
        codes = await self.cluster.remove(pod, "tandem-gateway")
        expect(set(codes.values()) == {0}, f"{pod.name} ended with {codes}")
        await self.cluster.add("tandem-gateway")  # at another address: names are to be asked again
        await self.cluster.ready()
        outage[1] = self.cluster.now()
        say(f"the gateway was away for {outage[1] - start:.1f} s, of which preStop and --grace at most 35")


async def scale_out():
    asked, expected = await expectations()
    deployed = Deployed("scale-out")
    try:
        await deployed.start()
        deployed.start_load(asked, expected)
        await deployed.serve_for(STREAMS)
        for replicas in (3, 1):
            codes = await deployed.cluster.scale("tandem-expert", replicas)
            expect(set(codes) <= {0}, f"expert workers ended with {codes}")
            await deployed.cluster.ready()
            await deployed.serve_for(2 * STREAMS)
            say(f"expert pods: {replicas}")
        await deployed.end_load()
    finally:
        deployed.cluster.destroy()


async def rolling():
    asked, expected = await expectations()
    deployed = Deployed("rolling")
    try:
        await deployed.start()
        deployed.start_load(asked, expected)
        await deployed.serve_for(STREAMS)
        for name in ("tandem-expert", "tandem-attention"):
            await deployed.roll(name)
            say(f"{name}: every pod is new")
        await deployed.recreate_gateway()
        await deployed.serve_for(2 * STREAMS)
        await deployed.end_load()
    finally:
        deployed.cluster.destroy()


SCENARIOS = {"embedded": embedded, "one-gpu": one_gpu, "scale-out": scale_out, "rolling": rolling}


def main():
    wanted = sys.argv[1:] or list(SCENARIOS)
    for name in wanted:
        say(f"== {name}")
        try:
            asyncio.run(SCENARIOS[name]())
        except (Failure, TimeoutError, RuntimeError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


START = time.monotonic()
if __name__ == "__main__":
    sys.exit(main())
