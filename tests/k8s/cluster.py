"""Stands in for a cluster: plays the pods of rendered manifests with podman, each in a network namespace of its own,
asks their probes as a kubelet does, and scales their Deployments.

What podman is not given, and who does it instead:
  * a Deployment's pods: made here from its template, one after the other;
  * $(POD_IP): the pod's name, which podman's network resolves;
  * probes: asked from here, over gRPC, with the manifest's service names, ports and thresholds;
  * names of Services: aliases of their pods in podman's network;
  * containerPorts: podman would publish them on the host;
  * preStop: waited for here before the pod is told to stop, with its grace period.
Security contexts, resources, volumes, commands and images are podman's to carry out as they are written.
"""
import asyncio
import copy
import dataclasses
import json
import subprocess
import time

import grpc
import yaml

NETWORK = "tandem-test"
SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse with status SERVING


def podman(*args, check=True):
    done = subprocess.run(["podman", *args], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"podman {' '.join(args)}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def render(folder):
    for tool in (["kustomize", "build"], ["kubectl", "kustomize"]):
        try:
            text = subprocess.run([*tool, str(folder)], check=True, capture_output=True, text=True).stdout
            return list(yaml.safe_load_all(text))
        except FileNotFoundError:
            continue
    raise FileNotFoundError("neither kustomize nor kubectl is here")


async def is_serving(address, service):
    async with grpc.aio.insecure_channel(address) as channel:
        ask = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer = await ask(b"\x0a" + bytes([len(service)]) + service.encode(), timeout=5)
        except grpc.RpcError:
            return False
        return answer == SERVING


@dataclasses.dataclass
class Change:
    """What a pod was seen to turn to."""
    time_s: float
    pod: str
    container: str
    state: str  # "started", "alive", "ready", "not ready", "killed: ...", "ended"


class Pod:
    def __init__(self, cluster, deployment, number):
        self.cluster, self.deployment = cluster, deployment
        self.name = f"{deployment['metadata']['name']}-{number}"
        self.spec = deployment["spec"]["template"]["spec"]
        self.ready = {container["name"]: False for container in self.spec["containers"]}
        self.kubelets = []
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        spec = copy.deepcopy(self.spec)
        spec["restartPolicy"] = "Never"  # a program that ends is to be seen
        for container in spec["containers"]:
            container["args"] = [arg.replace("$(POD_IP)", self.name) for arg in container["args"]]
            container.pop("env", None)
            container.pop("ports", None)
        manifest = {"apiVersion": "v1", "kind": "Pod", "spec": spec,
                    "metadata": {"name": self.name, "labels": labels}}
        file = cluster.folder / f"{self.name}.yaml"
        file.write_text(yaml.safe_dump(manifest))
        aliases = [self.name] + [s["metadata"]["name"] for s in cluster.services()
                                 if s["spec"]["selector"].items() <= labels.items()]
        network = NETWORK + ":" + ",".join(f"alias={alias}" for alias in aliases)
        podman("kube", "play", "--network", network, str(file))
        infra = json.loads(podman("pod", "inspect", self.name))["InfraContainerID"]
        networks = json.loads(podman("inspect", infra))[0]["NetworkSettings"]["Networks"]
        self.ip = networks[NETWORK]["IPAddress"]

    def start_probes(self):
        self.kubelets = [asyncio.create_task(self.keep(container)) for container in
                         self.spec["containers"]]

    async def keep(self, container):
        """Startup, then readiness and liveness, as a kubelet does; what it sees goes to the cluster's history."""
        def saw(state):
            self.cluster.history.append(Change(self.cluster.now(), self.name, container["name"], state))

        async def asks(probe):
            return await is_serving(f"{self.ip}:{probe['grpc']['port']}", probe["grpc"]["service"])
        saw("started")
        startup, ready = container["startupProbe"], container["readinessProbe"]
        live = container["livenessProbe"]
        alive = False
        for _ in range(startup["failureThreshold"] * 10):
            if not alive and await asks(live):
                alive = True
                saw("alive")
            if await asks(startup):
                break
            await asyncio.sleep(startup.get("periodSeconds", 10) / 10)
        else:
            saw("killed: it has not started")
            return
        unready, dead = 0, 0
        while True:
            if await asks(ready):
                unready = 0
            else:
                unready += 1
            is_ready = unready == 0 or (self.ready[container["name"]]
                                        and unready < ready.get("failureThreshold", 3))
            if is_ready != self.ready[container["name"]]:
                self.ready[container["name"]] = is_ready
                saw("ready" if is_ready else "not ready")
            dead = 0 if await asks(live) else dead + 1
            if dead >= live["failureThreshold"]:
                saw("killed: it is not alive")
                return
            await asyncio.sleep(0.2)  # more often than a kubelet, to see more

    def is_ready(self):
        return all(self.ready.values())

    def codes(self):
        """Exit codes by container; None of those that run."""
        found = {}
        for container in self.spec["containers"]:
            state = json.loads(podman("inspect", f"{self.name}-{container['name']}"))[0]["State"]
            found[container["name"]] = None if state["Running"] else state["ExitCode"]
        return found

    def logs(self):
        return "\n".join(f"--- {self.name}, {c['name']}\n" + subprocess.run(
            ["podman", "logs", f"{self.name}-{c['name']}"], capture_output=True, text=True,
            check=False).stderr[-3000:] for c in self.spec["containers"])

    async def end(self):
        """preStop of all containers, then SIGTERM to each at its time; SIGKILL when the grace period is over.
        Returns exit codes."""
        begin = time.monotonic()
        grace = self.spec["terminationGracePeriodSeconds"]

        async def stop(container):
            await asyncio.sleep(container.get("lifecycle", {}).get("preStop", {})
                                .get("sleep", {}).get("seconds", 0))
            left = max(1, int(grace - (time.monotonic() - begin)))
            await asyncio.to_thread(podman, "stop", "--time", str(left), f"{self.name}-{container['name']}")
        await asyncio.gather(*(stop(container) for container in self.spec["containers"]))
        for kubelet in self.kubelets:
            kubelet.cancel()
        codes = self.codes()
        self.cluster.history.append(Change(self.cluster.now(), self.name, "", f"ended {codes}"))
        (self.cluster.folder / f"{self.name}.log").write_text(self.logs())
        await asyncio.to_thread(podman, "pod", "rm", "--force", self.name)
        return codes


class Cluster:
    """The resources of one overlay, and what plays of them."""

    def __init__(self, resources, folder):
        self.resources, self.folder = resources, folder
        self.history, self.pods, self.numbers = [], {}, {}
        self.zero = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        podman("network", "create", NETWORK, check=False)
        network = json.loads(podman("network", "inspect", NETWORK))[0]
        self.names = network["subnets"][0]["gateway"] + ":53"  # who resolves names in podman's network

    def now(self):
        return round(time.monotonic() - self.zero, 2)

    def of_kind(self, kind):
        return [r for r in self.resources if r["kind"] == kind]

    def services(self):
        return self.of_kind("Service")

    def target(self, service, port):
        """What a gRPC channel on this host dials: every address that the Service's name has."""
        return f"dns://{self.names}/{service}:{port}"

    def deployment(self, name):
        return next(d for d in self.of_kind("Deployment") if d["metadata"]["name"] == name)

    def of(self, name):
        return self.pods.setdefault(name, [])

    async def add(self, name):
        self.numbers[name] = self.numbers.get(name, -1) + 1
        pod = await asyncio.to_thread(Pod, self, self.deployment(name), self.numbers[name])
        self.of(name).append(pod)
        pod.start_probes()
        return pod

    async def remove(self, pod, name):
        self.of(name).remove(pod)
        return await pod.end()

    async def scale(self, name, replicas):
        """As a Deployment does; what goes, the youngest first, goes at once. Returns all exit codes."""
        while len(self.of(name)) < replicas:
            await self.add(name)
        going = self.of(name)[replicas:]
        codes = await asyncio.gather(*(self.remove(pod, name) for pod in going))
        return [code for of_pod in codes for code in of_pod.values()]

    async def ready(self, limit_s=120):
        """Once every pod is; TimeoutError with what is not, and its log."""
        end = time.monotonic() + limit_s
        while True:
            missing = [pod for pods in self.pods.values() for pod in pods if not pod.is_ready()]
            if not missing:
                return
            if time.monotonic() > end:
                raise TimeoutError("not ready: " + "\n".join(pod.logs() for pod in missing))
            await asyncio.sleep(0.1)

    def states(self, pod):
        return [change.state for change in self.history if change.pod == pod.name]

    def destroy(self):
        for pods in self.pods.values():
            for pod in pods:
                for kubelet in pod.kubelets:
                    kubelet.cancel()
                (self.folder / f"{pod.name}.log").write_text(pod.logs())
                podman("pod", "rm", "--force", "--time", "0", pod.name, check=False)
        self.pods = {}
