"""Messages of proto/inference.proto as dataclasses, field by field; None: not set."""
import dataclasses
import enum
from typing import Dict, List, Optional, Sequence, Tuple


class FinishReason(enum.Enum):
    UNSPECIFIED = 0
    EOS = 1
    LENGTH = 2
    STOP = 3  # a stop string, or one of stop_token_ids


class ScorePath(enum.Enum):
    AS_REQUEST = 0
    PREFILL = 1
    DECODE = 2
    CHUNK = 3


@dataclasses.dataclass(frozen=True)
class ChatMessage:
    role: str  # "system", "user" or "assistant"
    content: str


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What is None is as the model's defaults say (`Client.get_model().default_sampling`)."""
    temperature: Optional[float] = None  # 0 is greedy
    top_k: Optional[int] = None  # 0: no limit
    top_p: Optional[float] = None
    seed: Optional[int] = None  # None: the server draws one and says it in Started
    min_p: Optional[float] = None
    repetition_penalty: Optional[float] = None  # of tokens in prompt and answer
    frequency_penalty: Optional[float] = None   # of tokens in the answer, as the next
    presence_penalty: Optional[float] = None
    logit_bias: Dict[int, float] = dataclasses.field(default_factory=dict, hash=False)  # by token id


@dataclasses.dataclass(frozen=True)
class GenerateRequest:
    """One of text, token_ids and chat is the prompt."""
    text: Optional[str] = None
    token_ids: Optional[Sequence[int]] = None
    chat: Optional[Sequence[ChatMessage]] = None
    sampling: Sampling = Sampling()
    max_tokens: Optional[int] = None
    ignore_eos: bool = False
    stop: Sequence[str] = ()
    match_added_tokens: bool = False
    add_bos: Optional[bool] = None
    stop_token_ids: Sequence[int] = ()
    priority: int = 0  # lower goes first
    min_tokens: int = 0  # before which nothing ends the answer
    echo: bool = False  # of text and token_ids: the prompt's text before the answer's
    top_logprobs: int = 0  # how many of the most probable tokens come with each one, at most 20
    model: str = ""
    n: Optional[int] = None  # answers, each with its own draws, 1 to 16


@dataclasses.dataclass(frozen=True)
class Started:
    model: str
    prompt_tokens: int
    seed: int


@dataclasses.dataclass(frozen=True)
class TopLogProbs:
    """The most probable tokens of one place in an answer, the best first."""
    token_ids: Tuple[int, ...]
    log_probs: Tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Text may lag behind ids. A last chunk without ids has text that was held back."""
    text: str
    token_ids: Tuple[int, ...]
    log_probs: Tuple[float, ...]  # one per id
    top_logprobs: Tuple[TopLogProbs, ...] = ()  # one per id, if asked for
    choice: int = 0


@dataclasses.dataclass(frozen=True)
class Finished:
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    text: str  # the rest that was held back; the last chunk has it too
    queue_us: int
    prefill_us: int
    decode_us: int
    cached_tokens: int  # of the prompt, which were in the latent cache already
    choice: int = 0


@dataclasses.dataclass
class Choice:
    """One of the answers, whole: made of its events, no message."""
    finished: Finished
    text: str
    token_ids: List[int]
    log_probs: List[float]
    top_logprobs: List[TopLogProbs]  # empty if not asked for


@dataclasses.dataclass
class Completion:
    """A whole answer: made of its events, no message. What is of one choice is choice 0's."""
    started: Started
    choices: List[Choice]  # as many as the request's n
    retries: int  # how often it was asked for again

    @property
    def finished(self) -> Finished:
        return self.choices[0].finished

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> List[int]:
        return self.choices[0].token_ids

    @property
    def log_probs(self) -> List[float]:
        return self.choices[0].log_probs

    @property
    def top_logprobs(self) -> List[TopLogProbs]:
        return self.choices[0].top_logprobs


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """One of text and token_ids is the prompt."""
    text: Optional[str] = None
    token_ids: Optional[Sequence[int]] = None
    logits: bool = False
    positions: Sequence[int] = ()
    path: ScorePath = ScorePath.AS_REQUEST
    chunk_tokens: int = 0
    match_added_tokens: bool = False
    add_bos: Optional[bool] = None
    model: str = ""


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    position: int
    target: int
    log_prob: float
    logits: bytes  # little-endian f32, [vocab], if asked for


@dataclasses.dataclass(frozen=True)
class Score:
    prompt_tokens: int
    rows: List[ScoreRow]


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    dtype: str
    context_tokens: int
    vocab_size: int
    num_layers: int
    has_tokenizer: bool
    has_chat_template: bool
    eos_ids: Tuple[int, ...]
    bos_id: Optional[int]
    digest: str
    parameters: int
    default_sampling: Sampling


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How often values came, by how large they were."""
    name: str  # as in the gateway's metrics, without the prefix
    upper_bounds: Tuple[float, ...]  # ascending; a value belongs to the first that it does not exceed
    counts: Tuple[int, ...]  # by upper bound, and last those above all of them
    sum: float  # of the values


@dataclasses.dataclass(frozen=True)
class WorkerStatus:
    id: int
    kind: str  # "gateway", "attention" or "expert"
    address: str
    state: str
    loaded: float
    counters: Dict[str, int]
    device: str
    build: str  # version of its program
    digest: str  # of the checkpoint, as GetModel's; of workers that joined, as the next
    numerics_class: str
    # With a registry:
    placement_counter: int = 0  # of the newest placement that it has loaded or uses
    experts: int = 0            # of the placement in use, over all layers
    target_experts: int = 0     # of the one that is being loaded
    expert_capacity: int = 0    # that its memory holds
    busy_ms: int = 0            # at one piece of work
    silent_ms: int = 0          # since its last heartbeat
    histograms: Tuple[Histogram, ...] = ()  # of the gateway itself


@dataclasses.dataclass(frozen=True)
class Holders:
    worker_ids: Tuple[int, ...]  # the owner first


@dataclasses.dataclass(frozen=True)
class PlacementStatus:
    counter: int
    num_layers: int
    num_experts: int        # of a layer
    holders: List[Holders]  # [num_layers * num_experts]; none in dense layers


@dataclasses.dataclass(frozen=True)
class Status:
    state: str
    detail: str
    model: str
    workers: List[WorkerStatus]
    placement_epoch: int
    placement_counter: int
    default_sampling: Optional[Sampling]  # as Model's, once it is loaded
    refused: List[str]  # why workers were refused, the last of each address
    target_counter: int = 0  # of the placement that is to be used next; the same: none is
    # If asked for and there is a registry: the one in use and, if it is another, the next one.
    placement: Optional[PlacementStatus] = None
    target: Optional[PlacementStatus] = None
