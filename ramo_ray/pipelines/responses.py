"""Responses to prompts: one stage a model, each adding the answers of its generators to the groups."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ramo_ray.core.prompts import check_response
from ramo_ray.core.records import Prompt, conversation_id, first_is_a, trio_id
from ramo_ray.engines import build_engine
from ramo_ray.errors import RolesError
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import encode_chat, load_tokenizer
from ramo_ray.pipelines.actors import Bill, pool_options
from ramo_ray.pipelines.overseer import Lost, Watched
from ramo_ray.pipelines.tables import packed, postponed, unpacked
from ramo_ray.settings import EngineSettings, GeneratorSettings, WriterSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from ramo_ray.engines.base import Completion

Group = dict[str, Any]
REPEATED = "repeats another generator's response"
"""Why a response is set aside that is, word by word, that of a generator before it."""


def generate(groups: Dataset, generators: Sequence[GeneratorSettings], overseer: Any) -> Dataset:
    """Add to each group one response of each generator. Generators of one model share its actors."""
    for members in _by_model(generators):
        groups = groups.map_batches(
            ResponseWriter,
            fn_constructor_kwargs={"generators": [g.model_dump(mode="json") for g in members], "overseer": overseer},
            batch_format="pyarrow",
            batch_size=members[0].batch_size,
            **pool_options(members[0].actors, overseer),
        )
    return groups


def _by_model(generators: Sequence[GeneratorSettings]) -> list[list[GeneratorSettings]]:
    fields = tuple(EngineSettings.model_fields)
    return [
        list(members) for _, members in itertools.groupby(generators, key=lambda g: [getattr(g, f) for f in fields])
    ]


class Answer(NamedTuple):
    """A response, and the tokens of its prompt and of itself."""

    text: str
    tokens: int


class ResponseWriter:
    """Actor that owns one model and writes for all generators that use it."""

    def __init__(self, generators: Sequence[Mapping[str, Any]], overseer: Any = None) -> None:
        self.generators = [GeneratorSettings.model_validate(g) for g in generators]
        self.watched = Watched(overseer)
        path = resolve(self.generators[0].model, self.generators[0].revision)
        self.tokenizer = load_tokenizer(path)
        self.engine = build_engine(self.generators[0], path)
        self.bill = Bill(self.engine)
        self.watched.ready(self.engine.close)

    def __call__(self, batch: pa.Table) -> pa.Table:
        groups, started = unpacked(batch), time.perf_counter()
        if not all(self._write(groups, generator) for generator in self.generators):
            return postponed(groups)
        seconds, cost = time.perf_counter() - started, self.bill.charge(groups[0])["cost"]
        self.watched.report(calls=len(groups) * len(self.generators), seconds=seconds, cost=cost)
        return packed("groups", groups)

    def _write(self, groups: Sequence[Group], generator: GeneratorSettings) -> bool:
        """Add a generator's answers to the groups; False where the run is stopping."""
        # The prompts are made there too: texts can kill a tokenizer.
        written = self.watched.through(
            [f"{generator.name}/{group['prompt_id']}" for group in groups],
            lambda places: self._answers([groups[place] for place in places], generator),
        )
        if written is None:
            return False
        for group, answer in zip(groups, written, strict=True):
            if isinstance(answer, Answer):
                group["conversations"].append(_conversation(group, generator, answer.text))
                group["tokens"] += answer.tokens
            else:
                reason = answer.reason if isinstance(answer, Lost) else answer
                group["bad"].append({"origin": generator.name, "id": group["prompt_id"], "reason": reason})
        return True

    def _answers(self, groups: Sequence[Group], generator: GeneratorSettings) -> list[Answer | str]:
        """A generator's answer to each prompt, or why there is none."""
        prompts = [self._prompt(group, generator) for group in groups]
        asked = [prompt for prompt in prompts if not isinstance(prompt, str)]
        completions = iter(self.engine.generate(asked, generator.sampling) if asked else ())
        return [prompt if isinstance(prompt, str) else self._answer(prompt, next(completions)) for prompt in prompts]

    def _answer(self, prompt: Sequence[int], completion: Completion) -> Answer:
        text = self.tokenizer.decode(completion.token_ids, skip_special_tokens=True).strip()
        return Answer(text, len(prompt) + len(completion.token_ids))

    def _prompt(self, group: Group, generator: GeneratorSettings) -> list[int] | str:
        """The prompt's token ids, or why it cannot be asked."""
        try:
            prompt = encode_chat(self.tokenizer, asked_messages(group["prompt"], generator), add_generation_prompt=True)
        except RolesError:
            return f"the chat template of {generator.name} does not take the prompt's order of roles"
        room = self.engine.context_length - generator.sampling.max_tokens
        if len(prompt) > room:
            return f"too long for {generator.name}: a prompt of {len(prompt):,} tokens, {room:,} fit"
        return prompt


def asked_messages(prompt: Prompt, writer: WriterSettings) -> Prompt:
    """What a writer is asked: the prompt, below its own system message if it has one and the prompt has none."""
    if writer.system is None or prompt[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": writer.system}, *prompt]


def _conversation(group: Group, generator: GeneratorSettings, text: str) -> dict[str, Any]:
    return {
        "conversation_id": conversation_id(group["prompt_id"], text),
        "response": text,
        "source": generator.name,
        "done": False,
    }


def response_rows(group: Group) -> dict[str, list[dict[str, Any]]]:
    """A group's rows of the tables `conversations`, `failures` and `trios` (one for every two responses)."""
    failures = [bad | {"final": True} for bad in group["bad"]]
    usable: dict[str, dict[str, Any]] = {}
    for conversation in group["conversations"]:
        reason = _fault(conversation["response"])
        if conversation["conversation_id"] in usable:
            reason = REPEATED
        if reason:
            failures.append(
                {"origin": conversation["source"], "id": group["prompt_id"], "reason": reason, "final": True}
            )
        else:
            usable[conversation["conversation_id"]] = conversation
    return {
        "conversations": [_shared(group) | _texts(c) for c in usable.values()],
        "failures": failures,
        "trios": [_trio(group, one, other) for one, other in itertools.combinations(usable.values(), 2)],
    }


def _fault(response: str) -> str | None:
    try:
        check_response(response)
    except ValueError as error:
        return str(error)
    return None


def _shared(group: Group) -> dict[str, Any]:
    return {"prompt_id": group["prompt_id"], "prompt": group["prompt"]}


def _texts(conversation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: conversation[key] for key in ("conversation_id", "response", "source")}


def _trio(group: Group, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    trio = trio_id(group["prompt_id"], one["response"], other["response"])
    swap = (one["response"] < other["response"]) != first_is_a(trio)
    a, b = (other, one) if swap else (one, other)
    return {
        "trio_id": trio,
        **_shared(group),
        "response_a": a["response"],
        "response_b": b["response"],
        "source_a": a["source"],
        "source_b": b["source"],
        "label": None,
    }
