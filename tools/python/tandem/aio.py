"""The asyncio client: client.py with await."""
import asyncio
import time
from typing import Any, AsyncIterator, Awaitable, Callable, List, Optional, Sequence, Tuple, TypeVar

import grpc
import grpc.aio

from . import messages as m
from . import wire
from .client import CHANNEL_OPTIONS
from .errors import from_rpc_error
from .resume import AnswerStream, Retries, RetryPolicy
from .tls import Tls, open_channel

T = TypeVar("T")


class AsyncClient(wire.Stubs):
    """A connection to a gateway, in plain text unless `tls` is given, for the tasks of one event loop.
    A timeout is of the whole call, retries included; None: none."""

    def __init__(self, address: str = "127.0.0.1:8470", *, retry: RetryPolicy = RetryPolicy(),
                 tls: Optional[Tls] = None, options: Sequence[Tuple[str, Any]] = ()) -> None:
        super().__init__(open_channel(grpc.aio, address, tls, [*CHANNEL_OPTIONS, *options]))
        self._retry = retry

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def generate(self, request: m.GenerateRequest, *,
                 timeout_s: Optional[float] = None) -> "AsyncGenerateStream":
        """Asks at once; the answer is read by iterating over what is returned."""
        return AsyncGenerateStream(self._stream["Generate"], request,
                                   Retries(self._retry, time.monotonic(), timeout_s))

    async def complete(self, request: m.GenerateRequest, *,
                       timeout_s: Optional[float] = None) -> m.Completion:
        """The whole answer."""
        return await self.generate(request, timeout_s=timeout_s).result()

    async def score(self, request: m.ScoreRequest, *,
                    timeout_s: Optional[float] = None) -> m.Score:
        proto = wire.score_request(request)

        async def attempt(left: Optional[float]) -> List[Any]:
            return [response async for response in self._stream["Score"](proto, timeout=left)]
        return wire.score(await self._call(attempt, timeout_s))

    async def tokenize(self, text: Optional[str] = None, *,
                       chat: Optional[Sequence[m.ChatMessage]] = None, plain: bool = False,
                       add_bos: bool = False, timeout_s: Optional[float] = None) -> List[int]:
        return list((await self._ask("Tokenize", wire.tokenize_request(text, chat, plain, add_bos),
                                     timeout_s)).ids)

    async def detokenize(self, ids: Sequence[int], *, skip_special: bool = False,
                         timeout_s: Optional[float] = None) -> str:
        proto = wire.METHODS["Detokenize"].request(ids=ids, skip_special=skip_special)
        return str((await self._ask("Detokenize", proto, timeout_s)).text)

    async def get_model(self, *, timeout_s: Optional[float] = None) -> m.Model:
        return wire.read(m.Model, await self._ask(
            "GetModel", wire.METHODS["GetModel"].request(), timeout_s))

    async def get_status(self, *, placement: bool = False,
                         timeout_s: Optional[float] = None) -> m.Status:
        proto = wire.METHODS["GetStatus"].request(placement=placement)
        return wire.read(m.Status, await self._ask("GetStatus", proto, timeout_s))

    async def _ask(self, name: str, proto: Any, timeout_s: Optional[float]) -> Any:
        async def attempt(left: Optional[float]) -> Any:
            return await self._unary[name](proto, timeout=left)
        return await self._call(attempt, timeout_s)

    async def _call(self, attempt: Callable[[Optional[float]], Awaitable[T]],
                    timeout_s: Optional[float]) -> T:
        retries = Retries(self._retry, time.monotonic(), timeout_s)
        while True:
            try:
                return await attempt(retries.time_left(time.monotonic()))
            except grpc.RpcError as error:
                await asyncio.sleep(retries.on_error(from_rpc_error(error), time.monotonic()))


class AsyncGenerateStream(AnswerStream[asyncio.Event]):
    """An answer, chunk by chunk, for one task. A task that is cancelled while it reads cancels it."""

    def __init__(self, method: Callable[..., Any], request: m.GenerateRequest,
                 retries: Retries) -> None:
        super().__init__(method, request, retries, asyncio.Event())
        self._chunks = self._read()

    def __aiter__(self) -> AsyncIterator[m.Chunk]:
        return self._chunks

    async def __anext__(self) -> m.Chunk:
        return await self._chunks.__anext__()

    async def __aenter__(self) -> "AsyncGenerateStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def result(self) -> m.Completion:
        """Reads the rest; all of the answer, with what was read before."""
        async for _ in self._chunks:
            pass
        return self._completion()

    async def _read(self) -> AsyncIterator[m.Chunk]:
        while True:
            try:
                async for proto in self._call:
                    chunk = self._take(proto)
                    if chunk is not None:
                        yield chunk
                self._trailing = tuple(await self._call.trailing_metadata() or ())
                return
            except asyncio.CancelledError:
                # gRPC raises this in the reader whose call was cancelled, as in a task that was.
                if self._cancelled.is_set():
                    raise self._was_cancelled() from None
                self._call.cancel()
                raise
            except grpc.RpcError as rpc_error:
                wait_s = self._broke(rpc_error)
            if wait_s is None:
                return
            try:
                await asyncio.wait_for(self._cancelled.wait(), wait_s)
            except asyncio.TimeoutError:
                self._start()
            else:
                raise self._was_cancelled() from self.retried[-1]
