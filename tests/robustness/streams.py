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
    stall_s: float  # longest time without a chunk, before the first as well
    between_s: float  # and between two of them
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
        self.longest_gap_s = 0.0  # between two chunks, that ended since `take_longest_gap`
        self.tokens_at = collections.Counter()  # by tenths of a second
        self.tokens = 0
        self.began = {}  # stream that has had a chunk -> time of its last one
        retries = RetryPolicy(give_up_s=options.max_stall)
        self.client = AsyncClient(address, retry=retries)
        self.stopping = False

    def now(self):
        return time.monotonic() - self.zero

    def take_longest_gap(self):
        """The longest time without a further chunk of any stream, that ended since this was last asked or goes on."""
        now = self.now()
        longest = max([self.longest_gap_s, *(now - last for last in self.began.values())])
        self.longest_gap_s = 0.0
        return longest

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
        stall, between, times, error, difference = 0.0, 0.0, [], "", ""
        call = self.client.generate(self.asked[index], timeout_s=self.options.deadline)

        def gap(now):
            nonlocal stall, between
            stall = max(stall, now - last)
            if times:
                between = max(between, now - last)
                self.longest_gap_s = max(self.longest_gap_s, now - last)
            if now - last > LONG_GAP_S:
                self.gaps.append((last, now, stream))
        try:
            async for chunk in call:
                now = self.now()
                gap(now)
                last = self.began[stream] = now
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
            self.began.pop(stream, None)
        end = self.now()
        gap(end)
        if call.retried and not error and not self.may_retry(start, end):
            error = f"asked again although the gateway was there, after {call.retried[0]}"
        return Ended(stream, index, start, end, stall, between, error, difference,
                     len(call.retried)), times
