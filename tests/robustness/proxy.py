#!/usr/bin/env python3
"""A TCP proxy with faults, in a process of its own.

    proxy.py TARGET_HOST:PORT      # prints the port of 127.0.0.1 that it listens on

Each line on standard input is a mode from then on, answered by "ok":
    pass                as it comes
    blackhole           nothing goes through in either direction, connections stay
    blackhole-back      nothing comes back
    delay SECONDS       each piece so much later
    corrupt SHARE       so large a share of pieces has a byte changed
    reset               ends all connections with RST, then passes
    refuse              ends all connections with RST, and each new one
It ends with its input.
"""
import asyncio
import random
import socket
import struct
import sys

PIECE_BYTES = 1 << 16


class Proxy:
    def __init__(self, host, port):
        self.target = (host, port)
        self.mode, self.value = "pass", 0.0
        self.changed = asyncio.Event()
        self.writers = set()
        self.random = random.Random(port)

    def set_mode(self, line):
        word, _, value = line.partition(" ")
        if word in ("reset", "refuse"):
            for writer in list(self.writers):
                reset(writer)
        self.mode = "pass" if word == "reset" else word
        self.value = float(value or 0)
        self.changed.set()
        self.changed = asyncio.Event()

    async def serve(self, reader, writer):
        if self.mode == "refuse":
            reset(writer)
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.target)
        except OSError:
            reset(writer)
            return
        both = {writer, there_writer}
        self.writers |= both
        try:
            await asyncio.gather(self.pump(reader, there_writer, back=False),
                                 self.pump(there_reader, writer, back=True))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers -= both
            for w in both:
                reset(w)

    async def pump(self, reader, writer, back):
        while piece := await reader.read(PIECE_BYTES):
            while self.mode == "blackhole" or (self.mode == "blackhole-back" and back):
                await self.changed.wait()
            if self.mode == "delay":
                await asyncio.sleep(self.value)
            if self.mode == "corrupt" and self.random.random() < self.value:
                piece = bytearray(piece)
                piece[self.random.randrange(len(piece))] ^= self.random.randrange(1, 256)
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def reset(writer):
    """Ends a connection with RST."""
    s = writer.get_extra_info("socket")
    try:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    writer.transport.abort()


async def main(target):
    host, _, port = target.rpartition(":")
    proxy = Proxy(host, int(port))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        proxy.set_mode(line.decode().strip())
        print("ok", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
