"""What the routes take and give, with an example of each for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

T = TypeVar("T")
MOST_ITEMS = 10_000
"""Entries of any list of a request. What is checked of a body is checked while others wait."""

PROMPT, ANSWER, OTHER = "How do I lock a bicycle?", "Through the frame, to something fixed.", "Do not."


def _example(value: dict[str, Any], *, strict: bool = True) -> ConfigDict:
    return ConfigDict(extra="forbid" if strict else "ignore", json_schema_extra={"examples": [value]})


# One fault is all that is told of a list, and all that is looked for.
Items = Annotated[list[T], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)]


class ChatMessage(BaseModel):
    """A turn of a dialogue."""

    model_config = _example({"role": "user", "content": PROMPT})
    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | Items[ChatMessage]
"""A user's text, or a dialogue up to the response."""


def _require_answer(messages: list[ChatMessage]) -> None:
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise ValueError("the last message must be the assistant's, whose reward is asked for")


class Conversation(BaseModel):
    """A dialogue whose last turn is the assistant's: `messages`, or `prompt` and `response`."""

    model_config = _example({"prompt": PROMPT, "response": ANSWER})
    messages: Items[ChatMessage] | None = None
    prompt: Prompt | None = None
    response: str | None = None

    @model_validator(mode="after")
    def _checked(self) -> Conversation:
        self._check_form()
        return self

    def _check_form(self) -> None:
        pair = (self.prompt, self.response)
        if self.messages is None and None in pair:
            raise ValueError("give `messages`, or `prompt` and `response`")
        if self.messages is not None and pair != (None, None):
            raise ValueError("give either `messages`, or `prompt` and `response`, not both")
        if self.messages is not None:
            _require_answer(self.messages)


class RewardRequest(Conversation):
    """One conversation, or many as `items`."""

    model_config = _example({"items": [{"prompt": PROMPT, "response": ANSWER}]})
    items: Items[Conversation] | None = None

    def _check_form(self) -> None:
        if self.items is None:
            super()._check_form()
        elif (self.messages, self.prompt, self.response) != (None, None, None):
            raise ValueError("give either `items`, or one conversation, not both")

    @property
    def conversations(self) -> Sequence[Conversation]:
        """Those whose rewards are asked for."""
        return [self] if self.items is None else self.items


class Reward(BaseModel):
    """A conversation's reward."""

    reward: float
    """As the model gives it: its scale is its own."""
    calibrated: float | None
    """In deviations from the mean of labelled responses; null where that was not measured."""
    tokens: int


class Rewards(BaseModel):
    """Rewards in the order asked."""

    model_config = _example({"model": "reward", "rewards": [{"reward": 0.41, "calibrated": 0.9, "tokens": 31}]})
    model: str
    rewards: list[Reward]


class Trio(BaseModel):
    """A prompt and two responses."""

    model_config = _example({"prompt": PROMPT, "response_a": ANSWER, "response_b": OTHER})
    prompt: Prompt
    response_a: str
    response_b: str


class Comparison(BaseModel):
    """Which response the reward model prefers."""

    model_config = _example({"model": "reward", "probability_a": 0.7, "reward_a": 0.41, "reward_b": -0.44})
    model: str
    probability_a: float
    """That A is preferred, by Bradley-Terry: the logistic function of the rewards' difference."""
    reward_a: float
    reward_b: float


class CriticalRule(BaseModel):
    """A rule that the adapter picked for a trio, and what the judge says of both responses by it."""

    index: int
    """Place in the pool."""
    id: str
    text: str
    probability: float
    """That the rule is critical, by the adapter."""
    score_a: float
    """Score by `judge.method`: P(Yes) − P(No) in [−1, 1] with three labels."""
    score_b: float


class Explanation(BaseModel):
    """Why a response is preferred: the critical rules, best first, and the label that they give."""

    rules: list[CriticalRule]
    phi_a: float
    """φ of response A: the mean of its scores on these rules."""
    phi_b: float
    chosen_is: Literal["a", "b"]
    margin: float
    """φ of A less φ of B."""
    tie: bool
    truncated: bool
    """Whether the judge read one of the responses only in part."""


class RemoteReward(BaseModel):
    """What OpenRLHF asks: whole texts, the prompts that they begin with, and the prompts' messages as labels."""

    model_config = _example(
        {
            "query": [f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>"],
            "prompts": [f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"],
            "labels": [f'[{{"role": "user", "content": "{PROMPT}"}}]'],
        },
        strict=False,
    )
    query: Items[str]
    prompts: Items[str]
    labels: Items[str | Items[ChatMessage]]
    """The messages of each prompt, or their JSON: the reward model's own template is put around them."""

    @model_validator(mode="after")
    def _as_many(self) -> RemoteReward:
        if not len(self.query) == len(self.prompts) == len(self.labels):
            raise ValueError("`query`, `prompts` and `labels` must be as many")
        return self


class RemoteRewards(BaseModel):
    """What OpenRLHF reads."""

    model_config = _example({"rewards": [0.41], "scores": [0.41], "extra_logs": {}})
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def _input(value: Any) -> Any:
    """A text, texts, token ids, or lists of them: what its first entry is, all must be."""
    if not isinstance(value, list):
        if not isinstance(value, str) or not value:
            raise ValueError("`input` is a text, a list of texts, token ids, or a list of those, and not empty")
        return value
    kind = type(value[0]) if value else None
    if kind is list:
        if len(value) > MOST_ITEMS or not all(type(row) is list and row and _are(row, int) for row in value):
            raise ValueError(f"`input` has a list of something else than token ids, or over {MOST_ITEMS:,} lists")
    elif kind not in (str, int) or not _are(value, kind) or (kind is str and len(value) > MOST_ITEMS):
        raise ValueError(f"`input` is empty, mixed, or has over {MOST_ITEMS:,} texts")
    return value


def _are(values: list[Any], kind: type) -> bool:
    return all(type(value) is kind for value in values)


Input = Annotated[
    str | list[str] | list[int] | list[list[int]],
    # A union would try each of them, and tell of each entry of each.
    PlainValidator(_input, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


class Classify(BaseModel):
    """What vLLM's clients ask a classifier: texts that are templated already, or token ids, or messages."""

    model_config = _example({"model": "reward", "input": [PROMPT]}, strict=False)
    model: str | None = None
    input: Input | None = None
    messages: Items[ChatMessage] | None = None
    use_activation: bool | None = None
    """Whether the reward goes through the logistic function, as vLLM does with one class unless told otherwise."""

    @model_validator(mode="after")
    def _one_form(self) -> Classify:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give `input`, or `messages`")
        if self.messages is not None:
            _require_answer(self.messages)
        return self


class Score(BaseModel):
    """What vLLM's clients ask of pairs: a prompt, or as many prompts as responses."""

    model_config = _example({"model": "reward", "text_1": PROMPT, "text_2": [ANSWER, OTHER]}, strict=False)
    model: str | None = None
    text_1: str | Items[str] | None = None
    text_2: str | Items[str] | None = None
    queries: str | Items[str] | None = None
    documents: str | Items[str] | None = None
    use_activation: bool | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Prompts and responses, one by one."""
        first = self.text_1 if self.text_1 is not None else self.queries
        second = self.text_2 if self.text_2 is not None else self.documents
        prompts, responses = ([side] if isinstance(side, str) else list(side or ()) for side in (first, second))
        if len(prompts) == 1:
            prompts *= len(responses)
        return list(zip(prompts, responses, strict=True))

    @model_validator(mode="after")
    def _pairs(self) -> Score:
        try:
            found = self.pairs()
        except ValueError:
            raise ValueError("give one prompt, or as many prompts as responses") from None
        if not found:
            raise ValueError("give `text_1` and `text_2`, or `queries` and `documents`")
        return self
