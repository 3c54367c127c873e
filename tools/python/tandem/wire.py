"""Between dataclasses and protobuf. Classes of messages are made here from the proto's descriptors,
in a pool of their own: whoever also imports code generated from the same proto is not disturbed."""
import dataclasses
import pathlib
import typing
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Type, TypeVar, Union

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from . import messages as m

T = TypeVar("T")


class Method(NamedTuple):
    path: str
    request: Any  # the message's class
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]


def _load() -> Dict[str, Method]:
    file = pathlib.Path(__file__).with_name("inference.binpb")
    if not file.exists():
        raise ImportError("tandem is not built: pip install tools/python, or make it with "
                          "tools/python/make_package.py")
    files = descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for proto in files.file:
        pool.Add(proto)
    if hasattr(message_factory, "GetMessageClass"):
        class_of = message_factory.GetMessageClass
    else:  # protobuf before 4.22
        class_of = message_factory.MessageFactory(pool).GetPrototype
    service = pool.FindServiceByName("tandem.v1.Inference")
    methods = {}
    for method in service.methods:
        request, response = class_of(method.input_type), class_of(method.output_type)
        methods[method.name] = Method(f"/{service.full_name}/{method.name}", request,
                                      request.SerializeToString, response.FromString)
    return methods


METHODS = _load()


class Stubs:
    """Every method of a channel, of either of gRPC's APIs, by how many messages answer it."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._unary = {name: channel.unary_unary(method.path, method.serialize, method.deserialize)
                       for name, method in METHODS.items()}
        self._stream = {name: channel.unary_stream(method.path, method.serialize,
                                                   method.deserialize)
                        for name, method in METHODS.items()}


def _fill(target: Any, name: str, value: Any) -> None:
    if value is not None:
        setattr(target, name, value)


def _fill_prompt(proto: Any, request: Any) -> None:
    _fill(proto, "text", request.text)
    if request.token_ids is not None:
        proto.token_ids.SetInParent()
        proto.token_ids.ids.extend(request.token_ids)


def _fill_chat(proto: Any, chat: Optional[Sequence[m.ChatMessage]]) -> None:
    if chat is None:
        return
    proto.chat.SetInParent()
    for message in chat:
        proto.chat.messages.add(role=message.role, content=message.content)


def _one_of(**given: Any) -> None:
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(f"exactly one of {', '.join(given)} is to be set, not "
                         f"{' and '.join(names) or 'none'}")


def generate_request(request: m.GenerateRequest, seed: Optional[int]) -> Any:
    """`seed`: what the server drew for a request without one, when it is asked again."""
    _one_of(text=request.text, token_ids=request.token_ids, chat=request.chat)
    proto = METHODS["Generate"].request(
        model=request.model, ignore_eos=request.ignore_eos, stop=request.stop,
        match_added_tokens=request.match_added_tokens, stop_token_ids=request.stop_token_ids,
        priority=request.priority, min_tokens=request.min_tokens,
        top_logprobs=request.top_logprobs, echo=request.echo)
    _fill_prompt(proto, request)
    _fill_chat(proto, request.chat)
    for field in ("temperature", "top_k", "top_p", "seed", "min_p", "repetition_penalty",
                  "frequency_penalty", "presence_penalty"):
        _fill(proto.sampling, field, getattr(request.sampling, field))
    proto.sampling.logit_bias.update(request.sampling.logit_bias)
    _fill(proto.sampling, "seed", seed)
    _fill(proto, "max_tokens", request.max_tokens)
    _fill(proto, "n", request.n)
    _fill(proto, "add_bos", request.add_bos)
    return proto


def score_request(request: m.ScoreRequest) -> Any:
    _one_of(text=request.text, token_ids=request.token_ids)
    proto = METHODS["Score"].request(
        model=request.model, logits=request.logits, positions=request.positions,
        path=request.path.value, chunk_tokens=request.chunk_tokens,
        match_added_tokens=request.match_added_tokens)
    _fill_prompt(proto, request)
    _fill(proto, "add_bos", request.add_bos)
    return proto


def tokenize_request(text: Optional[str], chat: Optional[Sequence[m.ChatMessage]], plain: bool,
                     add_bos: bool) -> Any:
    _one_of(text=text, chat=chat)
    proto = METHODS["Tokenize"].request(plain=plain, add_bos=add_bos)
    _fill(proto, "text", text)
    _fill_chat(proto, chat)
    return proto


def _value(kind: Type[Any], value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return read(kind, value)
    made = typing.get_origin(kind) or kind
    if made in (list, tuple):
        return made(_value(typing.get_args(kind)[0], item) for item in value)
    return made(value)


def _field(kind: Any, proto: Any, name: str) -> Any:
    if typing.get_origin(kind) is Union:  # Optional
        if not proto.HasField(name):
            return None
        kind = typing.get_args(kind)[0]
    return _value(kind, getattr(proto, name))


def read(cls: Type[T], proto: Any) -> T:
    """A message as a dataclass, whose fields are named as the message's."""
    described: Any = cls
    return cls(**{field.name: _field(field.type, proto, field.name)
                  for field in dataclasses.fields(described)})


Event = Union[m.Started, m.Chunk, m.Finished]
EVENTS: Dict[str, Type[Event]] = {"started": m.Started, "chunk": m.Chunk, "finished": m.Finished}


def generate_event(proto: Any) -> Event:
    kind = proto.WhichOneof("event")
    return read(EVENTS[kind], getattr(proto, kind))


def score(protos: Sequence[Any]) -> m.Score:
    parts = [read(m.Score, proto) for proto in protos]
    return m.Score(parts[0].prompt_tokens if parts else 0,
                   [row for part in parts for row in part.rows])
