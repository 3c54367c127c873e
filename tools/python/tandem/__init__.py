"""Client of a Tandem gateway.

    from tandem import Client, GenerateRequest, Sampling

    with Client("127.0.0.1:8470") as client:
        stream = client.generate(GenerateRequest(text="Once", sampling=Sampling(temperature=0)))
        for chunk in stream:
            print(chunk.text, end="", flush=True)
        print(stream.finished.completion_tokens)

`AsyncClient` is the same with await. Fields are named as in proto/inference.proto. What a server
answers with a status is a `TandemError` with code and message. A gateway that is away (UNAVAILABLE)
is asked again, and an answer that broke is continued: see `RetryPolicy`. Encrypted, and with a
certificate or a token of its own, a client is with `tls=Tls(ca=..., token_file=...)`.
"""
from .aio import AsyncClient, AsyncGenerateStream
from .client import Client, GenerateStream
from .errors import ChangedAnswerError, TandemError
from .messages import (ChatMessage, Choice, Chunk, Completion, Finished, FinishReason, GenerateRequest,
                       Histogram, Holders, Model, PlacementStatus, Sampling, ScorePath, ScoreRequest, ScoreRow,
                       Score, Started, Status, TopLogProbs, WorkerStatus)
from .resume import RetryPolicy
from .tls import Tls

__all__ = [
    "AsyncClient", "AsyncGenerateStream", "ChangedAnswerError", "ChatMessage", "Choice", "Chunk", "Client",
    "Completion", "Finished", "FinishReason", "GenerateRequest", "GenerateStream", "Histogram", "Holders",
    "Model", "PlacementStatus", "RetryPolicy", "Sampling", "Score", "ScorePath", "ScoreRequest",
    "ScoreRow", "Started", "Status", "TandemError", "Tls", "TopLogProbs", "WorkerStatus",
]
