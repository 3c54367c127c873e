"""What both clients do when a call fails: whether and when to ask again, and how an answer that broke
off goes on. Without I/O; without clock, but for `AnswerStream`: time comes in from the caller."""
import asyncio
import dataclasses
import threading
import time
from typing import Any, Callable, Generic, List, Optional, TypeVar, Union

import grpc

from . import messages as m
from . import wire
from .errors import ChangedAnswerError, Metadata, TandemError, from_rpc_error

AnyEvent = TypeVar("AnyEvent", threading.Event, asyncio.Event)


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """A call that ends with UNAVAILABLE is made again, until nothing at all came for `give_up_s`
    seconds, or its own time is up. `give_up_s = 0`: never again.

    An answer that broke off is asked for again with the same prompt, parameters and seed. The
    service promises the same bits, so what was delivered before is compared, not delivered twice."""
    give_up_s: float = 60.0
    first_wait_s: float = 0.05
    longest_wait_s: float = 1.0


class Retries:
    """When a call is made again."""

    def __init__(self, policy: RetryPolicy, now: float, timeout_s: Optional[float]) -> None:
        self._policy = policy
        self._deadline = None if timeout_s is None else now + timeout_s
        self._progress = now
        self._wait_s = policy.first_wait_s
        self.errors: List[TandemError] = []  # after which it was made again

    def time_left(self, now: float) -> Optional[float]:
        return None if self._deadline is None else max(0.0, self._deadline - now)

    def on_progress(self, now: float) -> None:
        """Something new came."""
        self._progress = now
        self._wait_s = self._policy.first_wait_s

    def on_error(self, error: TandemError, now: float) -> float:
        """How long to wait before the next attempt. Raises the error if there is none."""
        if error.code != grpc.StatusCode.UNAVAILABLE:
            raise error
        wait_s = self._wait_s
        if now + wait_s > self._progress + self._policy.give_up_s:
            raise error
        if self._deadline is not None and now + wait_s >= self._deadline:
            raise TandemError(grpc.StatusCode.DEADLINE_EXCEEDED,
                              f"no time is left to ask again after {error}",
                              error.trailing_metadata) from error
        self._wait_s = min(2 * wait_s, self._policy.longest_wait_s)
        self.errors.append(error)
        return wait_s


class ChoiceSoFar:
    """What came of one choice over any number of attempts."""

    def __init__(self, index: int) -> None:
        self._index = index
        self.finished: Optional[m.Finished] = None
        self.token_ids: List[int] = []
        self.log_probs: List[float] = []
        self.top_logprobs: List[m.TopLogProbs] = []
        self.text = ""
        self.next_attempt()

    def next_attempt(self) -> None:
        self._ids_seen = self._text_seen = 0

    def take(self, event: Union[m.Chunk, m.Finished]) -> m.Chunk:
        """What the event adds to what there was; it may be nothing."""
        if isinstance(event, m.Chunk):
            return self._take_chunk(event)
        fresh = self._take_chunk(m.Chunk(event.text, (), (), choice=event.choice))
        if self._ids_seen < len(self.token_ids) or self._text_seen < len(self.text):
            raise ChangedAnswerError(
                f"asked again, the answer ends after {self._ids_seen} tokens, but "
                f"{len(self.token_ids)} had come before it broke off")
        self.finished = event
        return fresh

    def _take_chunk(self, chunk: m.Chunk) -> m.Chunk:
        at = self._ids_seen
        old = max(0, min(len(self.token_ids) - at, len(chunk.token_ids)))
        for i in range(old):
            came = (chunk.token_ids[i], chunk.log_probs[i])
            was = (self.token_ids[at + i], self.log_probs[at + i])
            if came != was:
                raise ChangedAnswerError(f"asked again, token {at + i} of the answer is {came[0]} "
                                         f"with log-probability {came[1]!r}, not {was[0]} with "
                                         f"{was[1]!r}")
        if chunk.top_logprobs[:old] != tuple(self.top_logprobs[at:at + old]):
            raise ChangedAnswerError(f"asked again, the most probable tokens of the answer are not "
                                     f"what they were from token {at} on")
        text_at = self._text_seen
        old_text = max(0, min(len(self.text) - text_at, len(chunk.text)))
        if chunk.text[:old_text] != self.text[text_at:text_at + old_text]:
            raise ChangedAnswerError(f"asked again, the answer's text is not what it was at "
                                     f"character {text_at}")
        self._ids_seen += len(chunk.token_ids)
        self._text_seen += len(chunk.text)
        fresh = m.Chunk(chunk.text[old_text:], chunk.token_ids[old:], chunk.log_probs[old:],
                        chunk.top_logprobs[old:], self._index)
        self.token_ids.extend(fresh.token_ids)
        self.log_probs.extend(fresh.log_probs)
        self.top_logprobs.extend(fresh.top_logprobs)
        self.text += fresh.text
        return fresh

    def whole(self) -> m.Choice:
        assert self.finished is not None
        return m.Choice(self.finished, self.text, list(self.token_ids), list(self.log_probs),
                        list(self.top_logprobs))


class Answer:
    """One answer, of all its choices, over any number of attempts. `take` gives what is new of what
    each brings."""

    def __init__(self, request: m.GenerateRequest) -> None:
        self._request = request
        self.started: Optional[m.Started] = None
        self.choices = [ChoiceSoFar(i) for i in range(1 if request.n is None else request.n)]

    @property
    def all_finished(self) -> bool:
        return all(choice.finished is not None for choice in self.choices)

    def next_attempt(self) -> Any:
        """The request, as a message."""
        for choice in self.choices:
            choice.next_attempt()
        return wire.generate_request(self._request,
                                     None if self.started is None else self.started.seed)

    def take(self, proto: Any) -> Optional[m.Chunk]:
        """What the event adds to what there was, if anything."""
        event = wire.generate_event(proto)
        if isinstance(event, m.Started):
            self._take_started(event)
            return None
        fresh = self.choices[event.choice].take(event)
        return fresh if fresh.text or fresh.token_ids else None

    def _take_started(self, started: m.Started) -> None:
        before = self.started
        if before is not None and (before.model, before.prompt_tokens, before.seed) != (
                started.model, started.prompt_tokens, started.seed):
            raise ChangedAnswerError(f"asked again, the answer is of {started}, not of {before}")
        self.started = started

    def completion(self, retries: int) -> m.Completion:
        assert self.started is not None
        return m.Completion(self.started, [choice.whole() for choice in self.choices], retries)


class AnswerStream(Generic[AnyEvent]):
    """An answer that comes in; how it is read is the clients'."""

    def __init__(self, method: Callable[..., Any], request: m.GenerateRequest, retries: Retries,
                 cancelled: AnyEvent) -> None:
        self._method = method
        self._answer = Answer(request)
        self._retries = retries
        self._cancelled: AnyEvent = cancelled
        self._trailing: Metadata = ()
        self._start()

    @property
    def started(self) -> Optional[m.Started]:
        """There before the first chunk."""
        return self._answer.started

    @property
    def finished(self) -> Optional[m.Finished]:
        """Choice 0's, there after its last chunk."""
        return self._answer.choices[0].finished

    @property
    def finished_choices(self) -> List[Optional[m.Finished]]:
        """Of each choice, there after its last chunk."""
        return [choice.finished for choice in self._answer.choices]

    @property
    def retried(self) -> List[TandemError]:
        """After which errors it was asked again."""
        return self._retries.errors

    @property
    def trailing_metadata(self) -> Metadata:
        """Of the last attempt, after its end."""
        return self._trailing

    def cancel(self) -> None:
        """Reading then ends with CANCELLED, unless the answer was there."""
        self._cancelled.set()
        self._call.cancel()

    def _start(self) -> None:
        self._call = self._method(self._answer.next_attempt(),
                                  timeout=self._retries.time_left(time.monotonic()))
        if self._cancelled.is_set():  # meanwhile: then that was the earlier call's cancel
            self._call.cancel()

    def _take(self, proto: Any) -> Optional[m.Chunk]:
        chunk = self._answer.take(proto)
        if chunk is not None:
            self._retries.on_progress(time.monotonic())
        return chunk

    def _was_cancelled(self) -> TandemError:
        return TandemError(grpc.StatusCode.CANCELLED, "cancelled by its caller")

    def _broke(self, rpc_error: grpc.RpcError) -> Optional[float]:
        """How long to wait before the next attempt; None: all of it came, what broke was the
        goodbye. Raises the error if there is no next one."""
        error = from_rpc_error(rpc_error)
        self._trailing = error.trailing_metadata
        if self._answer.all_finished:
            return None
        return self._retries.on_error(error, time.monotonic())

    def _completion(self) -> m.Completion:
        return self._answer.completion(len(self._retries.errors))
