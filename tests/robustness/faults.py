"""Faults, each a function of the run, and the scenarios that are made of them."""
import asyncio
import contextlib
import dataclasses
import os
import pathlib
import random
import re
import signal
import socket

import grpc


@dataclasses.dataclass
class Fault:
    kind: str
    detail: str
    start_s: float
    end_s: float = float("inf")
    recovered_s: float = float("inf")  # serving again


class Skip(Exception):
    """This fault cannot be had here, and why."""


@contextlib.asynccontextmanager
async def during(run, kind, detail):
    """Notes a fault that lasts as long as the block."""
    fault = Fault(kind, detail, run.now())
    run.note(fault)
    try:
        yield fault
    finally:
        fault.end_s = fault.recovered_s = run.now()


def pick(run, kind):
    return run.draw.choice([w for w in run.deployment.of(kind) if w.running()])


async def kill_expert(run):
    worker = pick(run, "expert")
    async with during(run, "kill", worker.name):
        worker.kill()
        worker.start()


async def kill_attention(run):
    worker = pick(run, "attention")
    async with during(run, "kill-attention", worker.name):
        worker.kill()
        await run.sleep(run.draw.uniform(0, 1))
        worker.start()


async def kill_gateway(run):
    async with during(run, "kill-gateway", "") as fault:
        run.outages.append(fault)
        run.deployment.gateway.kill()
        await run.sleep(run.draw.uniform(0, 2))
        run.deployment.gateway.start()


async def stop(run, program, seconds):
    async with during(run, f"stop-{program.kind}", f"{program.name} for {seconds} s"):
        program.signal(signal.SIGSTOP)
        try:
            await run.sleep(seconds)
        finally:
            program.signal(signal.SIGCONT)


async def stop_expert(run):
    await stop(run, pick(run, "expert"), run.draw.choice([0.5, 2, 5, 8]))


async def stop_attention(run):
    await stop(run, pick(run, "attention"), run.draw.choice([0.5, 2, 5, 8]))


async def stop_gateway(run):
    """Streams pause; workers may take it for lost."""
    await stop(run, run.deployment.gateway, run.draw.choice([0.5, 2, 5]))


async def slow_expert(run):
    """A tenth of the time it runs."""
    worker, seconds = pick(run, "expert"), run.draw.uniform(4, 10)
    async with during(run, "slow", f"{worker.name} for {seconds:.1f} s"):
        end = run.now() + seconds
        try:
            while run.now() < end and not run.ending:
                worker.signal(signal.SIGSTOP)
                await asyncio.sleep(0.045)
                worker.signal(signal.SIGCONT)
                await asyncio.sleep(0.005)
        finally:
            worker.signal(signal.SIGCONT)


def proxies(run, link):
    found = [(w, w.proxies[link]) for w in run.deployment.workers if link in w.proxies]
    if not found:
        raise Skip(f"no {link} link of this deployment goes through a proxy")
    return found


async def disturb(run, link, kind, mode, seconds):
    worker, proxy = run.draw.choice(proxies(run, link))
    async with during(run, f"{kind}-{link}", f"{worker.name}: {mode} for {seconds:.1f} s"):
        proxy.set_mode(mode)
        try:
            await run.sleep(seconds)
        finally:
            proxy.set_mode("pass")


async def partition(run):
    links = ["expert", "expert", "attention", "registry"]  # the one with most copies most often
    link = run.draw.choice([link for link in links if link in run.scenario.links])
    mode = run.draw.choice(["blackhole", "blackhole-back", "refuse", "reset",
                            f"delay {run.draw.choice([0.01, 0.1])}"])
    await disturb(run, link, mode.split()[0], mode, run.draw.uniform(0.5, 12))


async def corrupt(run):
    await disturb(run, "expert", "corrupt", f"corrupt {run.draw.choice([0.001, 0.02, 0.5])}",
                  run.draw.uniform(1, 6))


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def junk(draw):
    """Bytes that a peer may send first."""
    noise = draw.randbytes(draw.randint(1, 5000))
    kind = draw.randrange(6)
    if kind == 0:
        return noise
    if kind == 1:
        return b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * draw.randint(0, 20000) + b"\r\n\r\n"
    if kind == 2:
        return PREFACE + noise
    if kind == 3:  # well-formed HTTP/2 frames of random types, flags, streams and contents
        frames = b""
        for _ in range(draw.randint(1, 40)):
            body = draw.randbytes(draw.randint(0, 60))
            frames += (len(body).to_bytes(3, "big") + bytes([draw.randrange(12),
                                                             draw.randrange(256)])
                       + draw.getrandbits(31 if draw.random() < .5 else 2).to_bytes(4, "big")
                       + body)
        return PREFACE + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]) + frames
    if kind == 4:  # a frame that says it has 16 MiB, and never comes
        return PREFACE + b"\xff\xff\xff" + noise
    return b"\x16\x03\x01\x02\x00" + noise  # TLS


async def send_junk(opening, data, draw):
    try:
        _, writer = await asyncio.wait_for(opening, 2)
    except (OSError, asyncio.TimeoutError):
        return
    try:
        writer.write(data)
        await asyncio.wait_for(writer.drain(), 1)
        await asyncio.sleep(draw.choice([0, 0, 0.05, 0.5]))
    except (OSError, asyncio.TimeoutError):
        pass
    finally:
        writer.transport.abort()


def abstract_sockets(run):
    """Unix sockets of the deployment's programs: the doors to shared memory."""
    ours = set()
    for program in run.deployment.programs():
        if not program.running():
            continue
        for fd in pathlib.Path(f"/proc/{program.process.pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
                if found:
                    ours.add(found[1])
    names = []
    for row in pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]:
        columns = row.split(None, 7)
        if len(columns) == 8 and columns[6] in ours and columns[7].startswith("@"):
            names.append("\0" + columns[7][1:])
    return names


async def open_abstract(name):
    s = socket.socket(socket.AF_UNIX)
    s.setblocking(False)
    await asyncio.get_running_loop().sock_connect(s, name)
    return await asyncio.open_unix_connection(sock=s)


METHODS = {
    "gateway": ["Inference/Generate", "Inference/Score", "Inference/Tokenize",
                "Inference/Detokenize", "Inference/GetModel", "Inference/GetStatus",
                "Inference/Nothing"],
    "registry": ["Registry/Join"],
    "attention": ["AttentionWorker/Run"],
    "expert": ["ExpertWorker/Exchange"],
}


async def send_junk_messages(address, methods, draw):
    """Messages that are none, to methods that are there."""
    async with grpc.aio.insecure_channel(address) as channel:
        for _ in range(5):
            messages = [draw.randbytes(draw.randint(0, 300)) for _ in range(draw.randint(1, 4))]
            call = channel.stream_stream(f"/tandem.v1.{draw.choice(methods)}")(
                iter(messages), timeout=0.3)
            with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
                async for _ in call:
                    break
            call.cancel()


async def garbage(run):
    deployment = run.deployment
    draw = random.Random(run.draw.getrandbits(64))  # what follows draws in no fixed order
    ports = [(deployment.gateway.address, "gateway"), (deployment.registry, "registry")]
    ports += [(w.address, w.kind) for w in deployment.workers]
    async with during(run, "garbage", f"{len(ports)} ports"):
        for name in abstract_sockets(run):
            for _ in range(5):
                await send_junk(open_abstract(name), junk(draw), draw)
        for address, kind in ports:
            host, port = address.split(":")
            await asyncio.gather(*(
                send_junk(asyncio.open_connection(host, int(port)), junk(draw), draw)
                for _ in range(20)))
            await send_junk_messages(address, METHODS[kind], draw)


async def full_disk(run):
    """Logs and packed weights have no room; workers start again meanwhile."""
    if run.disk is None:
        raise Skip(run.why_no_disk)
    ballast = run.disk / "ballast"
    worker = pick(run, run.draw.choice(["expert", "expert", "attention"]))
    async with during(run, "full-disk", f"{worker.name} starts again"):
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        worker.kill()
        worker.start()
        try:
            await run.serving()
            await run.sleep(3)
        finally:
            ballast.unlink()


SCALE = [1, 2, 4, 2, 1]


async def scale(run):
    """To the next number of expert workers, by starting some, or ending some by SIGTERM."""
    experts = run.deployment.of("expert")
    run.scale_step += 1
    wanted = SCALE[run.scale_step % len(SCALE)]
    if wanted == len(experts):
        return
    async with during(run, "scale", f"{len(experts)} to {wanted}"):
        while len(run.deployment.of("expert")) < wanted:
            run.deployment.add("expert")
        going = run.draw.sample(experts, max(0, len(experts) - wanted))
        await asyncio.gather(*(terminate(run, worker) for worker in going))
        for worker in going:
            run.deployment.remove(worker)


async def has_loaded(run, worker, limit_s=60):
    """Whether the gateway has it among its ready workers."""
    end = run.now() + limit_s
    while run.now() < end:
        status = await run.status()
        if status is not None and any(w.address == worker.address and w.state == "ready"
                                      for w in status.workers):
            return
        await asyncio.sleep(0.1)
    run.defect(f"{worker.name} is not ready: {worker.log()[-300:]}")


async def terminate(run, program):
    code = await program.terminate(60)
    if code != 0:
        run.defect(f"{program.name} ended with {code} after SIGTERM")


async def roll(run):
    """A new program for every one, as an update does it: workers one more, then one less, and the gateway at its
    place."""
    for kind in ("expert", "attention"):
        for old in run.deployment.of(kind):
            if run.ending:
                return
            async with during(run, f"roll-{kind}", old.name):
                await has_loaded(run, run.deployment.add(kind))
                await terminate(run, old)
                run.deployment.remove(old)
            await run.serving()
    async with during(run, "roll-gateway", "") as fault:
        run.outages.append(fault)
        await terminate(run, run.deployment.gateway)
        run.deployment.gateway.start()


async def drain_attention(run):
    """Ended by SIGTERM: what it runs ends there or goes on elsewhere; another life begins."""
    worker = pick(run, "attention")
    async with during(run, "drain-attention", worker.name):
        code = await worker.terminate(60)
        if code != 0:
            run.defect(f"{worker.name} ended with {code} after SIGTERM")
        worker.start()


async def nothing(run):
    async with during(run, "none", ""):
        await run.sleep(1)


@dataclasses.dataclass(frozen=True)
class Scenario:
    faults: tuple  # functions; one is drawn each time
    every_s: float
    links: tuple = ()  # through proxies
    small_disk: bool = False


SCENARIOS = {
    "none": Scenario((nothing,), 5),
    "scale": Scenario((scale,), 10),
    "rolling": Scenario((roll,), 10),
    "kill": Scenario((kill_expert,), 5),
    "stop": Scenario((stop_expert, stop_expert, stop_attention, stop_gateway), 10),
    "stop-expert": Scenario((stop_expert,), 10),
    "slow": Scenario((slow_expert,), 12),
    "partition": Scenario((partition,), 10, ("expert", "attention", "registry")),
    "partition-expert": Scenario((partition,), 8, ("expert",)),
    "garbage": Scenario((garbage, corrupt), 3, ("expert",)),
    "corrupt": Scenario((corrupt,), 4, ("expert",)),
    "kill-attention": Scenario((kill_attention,), 8),
    "stop-attention": Scenario((stop_attention,), 10),
    "drain-attention": Scenario((drain_attention,), 8),
    "kill-gateway": Scenario((kill_gateway,), 10),
    "full-disk": Scenario((full_disk,), 8, (), True),
    "all": Scenario((scale, scale, kill_expert, kill_expert, stop_expert, stop_attention,
                     stop_gateway, slow_expert, partition, partition, garbage, corrupt,
                     kill_attention, drain_attention, kill_gateway, full_disk), 6,
                    ("expert", "attention", "registry"), True),
}
