"""The synchronous client."""
import threading
import time
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple, TypeVar

import grpc

from . import messages as m
from . import wire
from .errors import from_rpc_error
from .resume import AnswerStream, Retries, RetryPolicy
from .tls import Tls, open_channel

T = TypeVar("T")

# A gateway that comes back is found within a second, and one whose machine went away is noticed.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # what connecting may take, with its handshake
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A gateway that comes back at another address, as a pod does, is looked for as often.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
    # What retries below `RetryPolicy` ends the process when trailers have no status (gRPC 1.51).
    ("grpc.enable_retries", 0),
)


class Client(wire.Stubs):
    """A connection to a gateway, in plain text unless `tls` is given. Any number of threads may use it
    at once. A timeout is of the whole call, retries included; None: none."""

    def __init__(self, address: str = "127.0.0.1:8470", *, retry: RetryPolicy = RetryPolicy(),
                 tls: Optional[Tls] = None, options: Sequence[Tuple[str, Any]] = ()) -> None:
        super().__init__(open_channel(grpc, address, tls, [*CHANNEL_OPTIONS, *options]))
        self._retry = retry

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, request: m.GenerateRequest, *,
                 timeout_s: Optional[float] = None) -> "GenerateStream":
        """Asks at once; the answer is read by iterating over what is returned."""
        return GenerateStream(self._stream["Generate"], request,
                              Retries(self._retry, time.monotonic(), timeout_s))

    def complete(self, request: m.GenerateRequest, *,
                 timeout_s: Optional[float] = None) -> m.Completion:
        """The whole answer."""
        return self.generate(request, timeout_s=timeout_s).result()

    def score(self, request: m.ScoreRequest, *, timeout_s: Optional[float] = None) -> m.Score:
        proto = wire.score_request(request)
        return wire.score(self._call(
            lambda left: list(self._stream["Score"](proto, timeout=left)), timeout_s))

    def tokenize(self, text: Optional[str] = None, *,
                 chat: Optional[Sequence[m.ChatMessage]] = None, plain: bool = False,
                 add_bos: bool = False, timeout_s: Optional[float] = None) -> List[int]:
        return list(self._ask("Tokenize", wire.tokenize_request(text, chat, plain, add_bos),
                              timeout_s).ids)

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = False,
                   timeout_s: Optional[float] = None) -> str:
        proto = wire.METHODS["Detokenize"].request(ids=ids, skip_special=skip_special)
        return str(self._ask("Detokenize", proto, timeout_s).text)

    def get_model(self, *, timeout_s: Optional[float] = None) -> m.Model:
        return wire.read(m.Model, self._ask("GetModel", wire.METHODS["GetModel"].request(),
                                            timeout_s))

    def get_status(self, *, placement: bool = False,
                   timeout_s: Optional[float] = None) -> m.Status:
        proto = wire.METHODS["GetStatus"].request(placement=placement)
        return wire.read(m.Status, self._ask("GetStatus", proto, timeout_s))

    def _ask(self, name: str, proto: Any, timeout_s: Optional[float]) -> Any:
        return self._call(lambda left: self._unary[name](proto, timeout=left), timeout_s)

    def _call(self, attempt: Callable[[Optional[float]], T], timeout_s: Optional[float]) -> T:
        retries = Retries(self._retry, time.monotonic(), timeout_s)
        while True:
            try:
                return attempt(retries.time_left(time.monotonic()))
            except grpc.RpcError as error:
                time.sleep(retries.on_error(from_rpc_error(error), time.monotonic()))


class GenerateStream(AnswerStream[threading.Event]):
    """An answer, chunk by chunk. Read by one thread; any may cancel it. Who stops reading early leaves
    a `with` or cancels: the gateway computes on until then."""

    def __init__(self, method: Callable[..., Any], request: m.GenerateRequest,
                 retries: Retries) -> None:
        super().__init__(method, request, retries, threading.Event())
        self._chunks = self._read()

    def __iter__(self) -> Iterator[m.Chunk]:
        return self._chunks

    def __next__(self) -> m.Chunk:
        return next(self._chunks)

    def __enter__(self) -> "GenerateStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def result(self) -> m.Completion:
        """Reads the rest; all of the answer, with what was read before."""
        for _ in self._chunks:
            pass
        return self._completion()

    def _read(self) -> Iterator[m.Chunk]:
        while True:
            try:
                for proto in self._call:
                    chunk = self._take(proto)
                    if chunk is not None:
                        yield chunk
                self._trailing = tuple(self._call.trailing_metadata() or ())
                return
            except grpc.RpcError as rpc_error:
                wait_s = self._broke(rpc_error)
            if wait_s is None:
                return
            if self._cancelled.wait(wait_s):
                raise self._was_cancelled() from self.retried[-1]
            self._start()
