"""Between dataclasses and protobuf. Classes of messages are made here from the proto's descriptors,
in a pool of their own: whoever also imports code generated from the same proto is not disturbed."""
import pathlib
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Union

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from . import messages as m


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
        match_added_tokens=request.match_added_tokens, stop_token_ids=request.stop_token_ids)
    _fill_prompt(proto, request)
    _fill_chat(proto, request.chat)
    for field in ("temperature", "top_k", "top_p", "seed"):
        _fill(proto.sampling, field, getattr(request.sampling, field))
    _fill(proto.sampling, "seed", seed)
    _fill(proto, "max_tokens", request.max_tokens)
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


Event = Union[m.Started, m.Chunk, m.Finished]


def generate_event(proto: Any) -> "tuple[Event, str]":
    """An event of an answer, and the text that it brings."""
    kind = proto.WhichOneof("event")
    if kind == "started":
        s = proto.started
        return m.Started(s.model, s.prompt_tokens, s.seed), ""
    if kind == "chunk":
        c = proto.chunk
        return m.Chunk(c.text, tuple(c.token_ids), tuple(c.log_probs)), c.text
    f = proto.finished
    return m.Finished(m.FinishReason(f.reason), f.prompt_tokens, f.completion_tokens, f.queue_us,
                      f.prefill_us, f.decode_us), f.text


def _sampling(proto: Any) -> m.Sampling:
    return m.Sampling(**{name: getattr(proto, name) if proto.HasField(name) else None
                         for name in ("temperature", "top_k", "top_p", "seed")})


def score(protos: Sequence[Any]) -> m.Score:
    return m.Score(protos[0].prompt_tokens if protos else 0,
                   [m.ScoreRow(r.position, r.target, r.log_prob, r.logits)
                    for proto in protos for r in proto.rows])


def model(proto: Any) -> m.Model:
    return m.Model(proto.name, proto.dtype, proto.context_tokens, proto.vocab_size,
                   proto.num_layers, proto.has_tokenizer, proto.has_chat_template,
                   tuple(proto.eos_ids), proto.bos_id if proto.HasField("bos_id") else None,
                   proto.digest, proto.parameters, _sampling(proto.default_sampling))


def status(proto: Any) -> m.Status:
    workers = [m.WorkerStatus(w.id, w.kind, w.address, w.state, w.loaded, dict(w.counters),
                              w.device) for w in proto.workers]
    return m.Status(proto.state, proto.detail, proto.model, workers, proto.placement_epoch,
                    proto.placement_counter)
