"""Closed-loop streams: each asks, reads, checks, and asks again."""
import asyncio
import collections
import dataclasses
import json
import random
import time

import grpc
from tandem import AsyncClient, RetryPolicy, TandemError

import history

# A gap between chunks that is kept, to be held against faults.
LONG_GAP_S = 0.2


@dataclasses.dataclass
class Ended:
    """One finished stream."""
    stream: int
    request: int
    start_s: float
    end_s: float
    stall_s: float  # longest time without a chunk
    error: str = ""
    difference: str = ""
    retried: int = 0


class Load:
    """The streams of one run. Times are seconds since `zero`."""

    def __init__(self, options, address, asked, expected, zero, file, may_retry):
        self.options, self.asked, self.expected = options, asked, expected
        self.zero, self.file = zero, file
        self.may_retry = may_retry  # (start_s, end_s) -> whether UNAVAILABLE is right there
        self.ended = []
        self.gaps = []  # (start_s, end_s, stream)
        self.tokens_at = collections.Counter()  # by tenths of a second
        self.tokens = 0
        self.open = {}  # stream -> time of its last chunk
        retries = RetryPolicy(give_up_s=options.max_stall)
        self.client = AsyncClient(address, retry=retries)
        self.stopping = False

    def now(self):
        return time.monotonic() - self.zero

    async def run(self, stream):
        draw = random.Random(f"stream {self.options.seed} {stream}")
        while not self.stopping:
            ended, times = await self.one(stream, draw.randrange(len(self.asked)))
            self.ended.append(ended)
            record = {**dataclasses.asdict(ended), "times_ms": times}
            self.file.write(json.dumps(record) + "\n")
            if ended.error:
                await asyncio.sleep(0.5)  # a gateway that refuses is not to be flooded

    async def one(self, stream, index):
        start = last = self.now()
        stall, times, error, difference = 0.0, [], "", ""
        call = self.client.generate(self.asked[index], timeout_s=self.options.deadline)

        def gap(now):
            nonlocal stall
            stall = max(stall, now - last)
            if now - last > LONG_GAP_S:
                self.gaps.append((last, now, stream))
        try:
            self.open[stream] = last
            async for chunk in call:
                now = self.now()
                gap(now)
                last = self.open[stream] = now
                times.append(round(1000 * (now - start)))
                self.tokens_at[int(10 * now)] += len(chunk.token_ids)
                self.tokens += len(chunk.token_ids)
            difference = history.difference(self.expected[index],
                                            history.outcome(await call.result()))
        except TandemError as raised:
            if raised.code == grpc.StatusCode.DATA_LOSS:
                difference = raised.message
            else:
                error = str(raised)
        finally:
            del self.open[stream]
        end = self.now()
        gap(end)
        if call.retried and not error and not self.may_retry(start, end):
            error = f"asked again although the gateway was there, after {call.retried[0]}"
        return Ended(stream, index, start, end, stall, error, difference, len(call.retried)), times
