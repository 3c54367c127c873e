"""What goes wrong, as exceptions."""
from typing import Tuple, Union

import grpc

Metadata = Tuple[Tuple[str, Union[str, bytes]], ...]


class TandemError(Exception):
    """A call's status that is not OK. `code` is gRPC's, `message` the server's sentence."""

    def __init__(self, code: grpc.StatusCode, message: str,
                 trailing_metadata: Metadata = ()) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.trailing_metadata = trailing_metadata


class ChangedAnswerError(TandemError):
    """An answer that was asked for again does not begin as the one that broke off did."""

    def __init__(self, message: str) -> None:
        super().__init__(grpc.StatusCode.DATA_LOSS, message)


def from_rpc_error(error: grpc.RpcError) -> TandemError:
    # Of the synchronous and the asyncio API: both have these three.
    trailing = error.trailing_metadata() or ()
    return TandemError(error.code(), error.details() or "",
                       tuple((key, value) for key, value in trailing))
