"""The blocks of configuration that mean the same in every job, and their checks.

A block says what can be set, what it defaults to and what is refused; the code it configures lives elsewhere.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ramo_ray.config import Config

Fraction = Annotated[float, Field(ge=0, le=1)]
DType = Literal["float32", "bfloat16", "float16"]
Method = Literal["three_labels", "two_labels", "number"]
Split = Literal["adapter_train", "adapter_test", "reward_train", "reward_test"]
SPLITS: tuple[Split, ...] = ("adapter_train", "adapter_test", "reward_train", "reward_test")


class RaySettings(Config):
    address: str = ""
    """Address of a running Ray. Empty: start a Ray for this run, or join the one of the submitted job."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of the Ray that is started; empty takes the machine's."""
    object_store_gib: PositiveFloat | None = None
    """Memory of the started Ray's object store, in GiB; empty takes Ray's default."""


class StorageSettings(Config):
    root: str = ""
    """A folder that every node mounts: relative paths are taken from it. A submitted job refuses them without it."""
    part_groups: PositiveInt | None = None
    """Prompt groups that are committed together, at least: more of them are fewer files, and more to do again after a
    stop. Empty: those of one batch. Some 1,000 for runs over millions."""


class ActorKind(Config):
    """One kind of machine that actors of a pool may run on."""

    accelerator_type: str = ""
    """As Ray names it: H100, A100, L40S ..."""
    num_gpus: NonNegativeFloat | None = None
    """GPUs of an actor of this kind. Empty: as the pool's."""
    num_cpus: PositiveFloat | None = None
    """Logical CPUs of an actor of this kind. Empty: as the pool's."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Other resources that an actor of this kind takes, by the names that the nodes give them."""
    max: PositiveInt = 1_000_000
    """Most actors of this kind."""


class ActorSettings(Config):
    min: PositiveInt = 1
    """Actors that the pool keeps."""
    max: PositiveInt = 1
    """Actors that the pool may grow to while work is queued."""
    num_cpus: PositiveFloat = 1.0
    """Logical CPUs of one actor; a fraction lets several pools share a small machine."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs of one actor."""
    price_per_hour: NonNegativeFloat = 0.0
    """What an actor costs in an hour, in any currency: for the display and for `ramo plan`."""
    kinds: tuple[ActorKind, ...] = ()
    """Kinds of machines that the actors may run on, best first: each new actor takes the first with room. Empty: any
    machine."""

    @model_validator(mode="after")
    def _ordered(self) -> ActorSettings:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) exceeds max ({self.max}); raise max or lower min.")
        if self.kinds and sum(kind.max for kind in self.kinds) < self.max:
            raise ValueError(f"the kinds allow fewer actors than max ({self.max}); raise a kind's max or lower max.")
        return self


class VLLMSettings(Config):
    block_size: PositiveInt | None = None
    """Tokens in one block of the prefix cache. Empty: on CPU 32, the least it takes; on GPU vLLM's choice."""
    kv_cache_gib: PositiveFloat = 2.0
    """Memory for the KV cache on CPU, in GiB."""
    gpu_memory_utilization: Fraction = 0.9
    """Share of a GPU's memory that vLLM takes."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that one engine spans. On CPU, processes; VLLM_CPU_OMP_THREADS_BIND names each one's cores ("0-7|8-15")."""


class OpenAISettings(Config):
    """A server with OpenAI's API: vLLM's, a gateway, or a provider's."""

    base_url: str = ""
    """The API's address, up to and with its version: `http://host:8000/v1`."""
    model: str = ""
    """The model's name on the server."""
    route: Literal["auto", "completions", "generative_scoring", "chat"] = "auto"
    """How labels are asked for. `completions` and `generative_scoring` send token ids and get exact probabilities
    (vLLM), the second with one request a label; `chat` sends text and finds labels among the 20 likeliest tokens.
    `auto` asks the server, and takes the first of them that it answers."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key, on every machine with actors. Empty: no key is sent."""
    concurrency: PositiveInt = 32
    """Requests of one actor that are under way at a time."""
    requests_per_minute: PositiveFloat | None = None
    """Most requests a minute of the whole pool, shared evenly between `actors.max`. Empty: no limit."""
    tokens_per_minute: PositiveFloat | None = None
    """Most tokens a minute of the whole pool. Empty: no limit."""
    max_retries: NonNegativeInt = 5
    """Times that a request is made again after 408, 429, 5xx, a timeout, a lost connection or an unreadable reply."""
    timeout_s: PositiveFloat = 120.0
    """Seconds until a request counts as lost."""
    input_price: NonNegativeFloat = 0.0
    """Price of a million prompt tokens, in any currency."""
    cached_input_price: NonNegativeFloat | None = None
    """Price of a million prompt tokens that the server took from its cache. Empty: as `input_price`."""
    output_price: NonNegativeFloat = 0.0
    """Price of a million completion tokens."""

    @model_validator(mode="after")
    def _usable_address(self) -> OpenAISettings:
        address = urlsplit(self.base_url)
        if self.base_url and (address.scheme not in ("http", "https") or not address.hostname):
            raise ValueError(f"base_url is no http address: {self.base_url!r}; give one like http://host:8000/v1.")
        if address.username or address.password or address.query:
            raise ValueError("base_url must hold no name, password or query; name the key's variable in api_key_env.")
        return self


class ScriptedSettings(Config):
    latency_s: NonNegativeFloat = 0.0
    """Seconds that each call takes, to rehearse a cluster's size."""


class EngineSettings(Config):
    engine: Literal["transformers", "vllm", "openai", "scripted"] = "transformers"
    """What runs the model: this process (`transformers`, `vllm`), or a server (`openai`). `scripted` answers by a hash
    and loads no weights: for dry runs of a configuration."""
    model: str = "bundled:smollm2-135m-instruct"
    """A hub id, a local folder, or a bundled model. With `openai`, whose tokenizer makes the prompts: the served
    model's for token ids, any for chat."""
    revision: str | None = None
    """Revision of a hub id."""
    dtype: DType = "float32"
    """Numbers that the weights are held in."""
    threads: PositiveInt | None = None
    """Threads of torch in one actor on CPU. Empty: all cores of the machine."""
    max_length: PositiveInt | None = None
    """Longest sequence in tokens. Empty: the model's context."""
    actors: ActorSettings = ActorSettings()
    vllm: VLLMSettings = VLLMSettings()
    openai: OpenAISettings = OpenAISettings()
    scripted: ScriptedSettings = ScriptedSettings()

    @model_validator(mode="after")
    def _server_is_named(self) -> EngineSettings:
        missing = [f"openai.{key}" for key in ("base_url", "model") if not getattr(self.openai, key)]
        if self.engine == "openai" and missing:
            raise ValueError(f"engine openai needs {' and '.join(missing)}: the server's address and its model's name.")
        return self


class JudgeSettings(EngineSettings):
    layout: Literal["paper", "rule_last"] = "paper"
    """Where the rule stands in the judge's prompt. `rule_last` lets all rules share the conversation's computation."""
    method: Method = "three_labels"
    """How a score is read off the judge (Appendix D). `three_labels`: P(Yes) − P(No) beside Irrelevant, in [−1, 1].
    `two_labels`: P(Yes) beside No. `number`: the likeliest of 0.0, 0.1 … 1.0. Both of these lie in [0, 1]."""
    chat_template: bool = True
    """Wrap the prompt in the judge's chat template (labels without leading space), or give it raw (labels with one)."""
    rule_prefix: Literal["keep", "strip"] = "keep"
    """`strip` leaves out "Accept the response that", as the authors' code does."""
    labels: tuple[str, str, str] = ("Yes", "No", "Irrelevant")
    """The judge's words for yes, no and irrelevant, in this order; `two_labels` uses the first two, `number` none."""
    too_long: Literal["quarantine", "truncate_response"] = "quarantine"
    """What becomes of a conversation that does not fit into the judge's context. `truncate_response` lets the judge
    read the response's beginning, as much as fits beside the pool's longest rule, and marks the row `truncated`."""
    batch_size: PositiveInt = 4
    """Prompt groups that one call of an actor rates."""
    max_tries: PositiveInt = 3
    """Times that a conversation which the judge gave no answer on is tried, over all runs, before its trios go to
    quarantine. What kills its actor, or does not fit into the judge's context, is not tried again."""


class AdapterSettings(Config):
    """How a trained Rule Adapter is run."""

    dtype: DType = "float32"
    max_length: PositiveInt = 1024
    """Longest trio in tokens; longer ones go to quarantine."""
    batch_size: PositiveInt = 4
    """Prompt groups that one call of an actor reads."""
    threads: PositiveInt | None = None
    """Threads of torch in one actor on CPU. Empty: all cores of the machine."""
    actors: ActorSettings = ActorSettings()


class RewardSettings(Config):
    """How a reward model is run."""

    dtype: DType = "float32"
    max_length: PositiveInt = 4096
    """Longest conversation in tokens; longer ones are left out and counted."""
    batch_size: PositiveInt = 16
    """Pairs that one call of an actor scores."""
    threads: PositiveInt | None = None
    """Threads of torch in one actor on CPU. Empty: all cores of the machine."""
    actors: ActorSettings = ActorSettings()


class EmbedderSettings(Config):
    model: str = "bundled:all-minilm-l6-v2"
    """A sentence-transformers model, by hub id, folder or bundled name."""
    batch_size: PositiveInt = 64
    """Prompt groups, and texts, that one call embeds."""
    threads: PositiveInt | None = None
    """Threads of torch in one actor on CPU. Empty: all cores of the machine."""
    actors: ActorSettings = ActorSettings()


class SelectionSettings(Config):
    r: PositiveInt = 5
    """Rules that are critical for a trio (the rule budget)."""
    gamma: NonNegativeFloat = 2.0
    """Weight of relevance against discrepancy (equation 12; 0 is equation 11). Discrepancies reach 2 with three
    labels, but 1 with `judge.method` two_labels or number: there the same γ weighs relevance twice as much."""
    threshold: NonNegativeFloat | None = None
    """If set, every rule whose discrepancy exceeds it is critical, at most `cap`: the paper's future-work variant."""
    cap: PositiveInt = 20
    """Most rules that `threshold` may select for one trio."""
    tie_tolerance: NonNegativeFloat = 0.0
    """A margin of at most this size is a tie: it goes to B and is marked."""


class SplitSettings(Config):
    """Shares of the prompts. The four sets are disjoint and none is empty."""

    adapter_train: PositiveFloat = 0.45
    adapter_test: PositiveFloat = 0.1
    reward_train: PositiveFloat = 0.35
    reward_test: PositiveFloat = 0.1


class SourceSettings(Config):
    """How rows of a source are read."""

    format: Literal["auto", "preference", "hh_rlhf", "trio"] = "auto"
    """`auto` tells the format from the columns of the first row."""
    split: str = "train"
    """Split of a hub data set."""
    max_chars: PositiveInt = 32_000
    """Longest prompt or response in characters; longer rows go to quarantine."""


class SamplingSettings(Config):
    temperature: NonNegativeFloat = 0.6
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_tokens: PositiveInt = 256
    """Most tokens that are written."""
    seed: int = 0


class WriterSettings(EngineSettings):
    """A model that answers prompts."""

    sampling: SamplingSettings = SamplingSettings()
    system: str | None = None
    """A system message for this writer, kept out of the records."""
    batch_size: PositiveInt = 16


class GeneratorSettings(WriterSettings):
    name: str
    """What `source` says of the responses it writes; unique."""


class TrainingSettings(Config):
    model: str = "bundled:smollm2-135m-instruct"
    """Weights to start from: hub id, folder or bundled name."""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    epochs: PositiveInt = 1
    learning_rate: PositiveFloat = 2e-5
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 10
    """Optimiser steps over which the learning rate rises from 0; it then falls linearly to 0."""
    global_batch: PositiveInt = 32
    """Examples (trios, or pairs) an optimiser step, over all workers."""
    micro_batch: PositiveInt = 1
    """Examples a worker computes at once; the rest of its share is accumulated."""
    max_length: PositiveInt = 1024
    """Longest text in tokens; longer examples are left out and counted."""
    max_grad_norm: PositiveFloat = 1.0
    workers: PositiveInt = 1
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage."""
    offload_optimizer: bool = False
    """Keep the optimiser's state in main memory (ZeRO 1 to 3 on GPU)."""
    gradient_checkpointing: bool = False
    checkpoint_every: PositiveInt = 50
    """Optimiser steps between checkpoints; one is also written at the end of the run."""
    max_failures: NonNegativeInt = 2
    """Times that a lost worker restarts the training from its last checkpoint."""
    num_cpus: PositiveFloat = 1.0
    """Logical CPUs of one worker."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs of one worker."""
    threads: PositiveInt | None = None
    """Threads of torch in one worker on CPU. Empty: the machine's cores divided by the workers."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> TrainingSettings:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3.")
        return self


class CommonSettings(Config):
    """What `common.yaml` may say: each job takes the keys that it has."""

    output: str = ""
    run: str = ""
    prompts: str = ""
    trios: str = ""
    limit: PositiveInt | None = None
    seed: int = 0
    max_bad_fraction: Fraction = 0.05
    rules: str = ""
    ray: RaySettings = RaySettings()
    storage: StorageSettings = StorageSettings()
    source: SourceSettings = SourceSettings()
    splits: SplitSettings = SplitSettings()
    judge: JudgeSettings = JudgeSettings()
    adapter: AdapterSettings = AdapterSettings()
    reward: RewardSettings = RewardSettings()
    embedder: EmbedderSettings = EmbedderSettings()
    selection: SelectionSettings = SelectionSettings()
