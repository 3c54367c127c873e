"""How a client proves who it is, and what it asks of the server."""
import dataclasses
import pathlib
from typing import Any, List, Optional, Sequence, Tuple, Union

import grpc

Path = Union[str, pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Tls:
    """An encrypted connection. Files are in PEM; certificates are read when a client is made, the
    token at every call, so that both can be replaced while clients come and go."""

    ca: Optional[Path] = None  # whom the server's certificate must come from; None: the system's CAs
    cert: Optional[Path] = None  # to show, with its key
    key: Optional[Path] = None
    token_file: Optional[Path] = None  # whose first token is shown
    server_name: Optional[str] = None  # in the server's certificate; None: the host that is dialled


class _Token(grpc.AuthMetadataPlugin):  # type: ignore[misc]
    def __init__(self, file: Path) -> None:
        self._file = pathlib.Path(file)

    def __call__(self, context: Any, callback: Any) -> None:
        try:
            callback((("authorization", f"Bearer {read_token(self._file)}"),), None)
        except (OSError, ValueError) as error:
            callback((), error)


def read_token(file: Path) -> str:
    """The first token of a file whose lines are a token, or a name and a token."""
    for line in pathlib.Path(file).read_text("utf-8").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            return words[-1]
    raise ValueError(f"{file} has no token")


def open_channel(api: Any, address: str, tls: Optional[Tls],
                 options: Sequence[Tuple[str, Any]]) -> Any:
    """`api`: grpc or grpc.aio."""
    if tls is None:
        return api.insecure_channel(address, options)
    if (tls.cert is None) != (tls.key is None):
        raise ValueError("a certificate and its key go together")

    def read(file: Optional[Path]) -> Optional[bytes]:
        return None if file is None else pathlib.Path(file).read_bytes()
    credentials = grpc.ssl_channel_credentials(read(tls.ca), read(tls.key), read(tls.cert))
    if tls.token_file is not None:
        read_token(tls.token_file)  # a file that is none is found here, not at the first call
        credentials = grpc.composite_channel_credentials(
            credentials, grpc.metadata_call_credentials(_Token(tls.token_file), "bearer"))
    named: List[Tuple[str, Any]] = list(options)
    if tls.server_name is not None:
        named.append(("grpc.ssl_target_name_override", tls.server_name))
    return api.secure_channel(address, credentials, named)
