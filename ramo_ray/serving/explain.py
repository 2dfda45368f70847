"""Why one of two responses is preferred: the rules that the adapter picks, and the judge's scores on them.

A process of its own, so that its models take nothing of the replicas that score.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ramo_ray.core.preference import aggregate, prefer
from ramo_ray.core.records import Message, Prompt, Rating
from ramo_ray.core.rules import RulePool, load_pool
from ramo_ray.engines import build_engine
from ramo_ray.errors import RolesError
from ramo_ray.judging.judge import NO_ANSWER, Conversation, Fault, Judge
from ramo_ray.models.adapter import Picked, RuleAdapter, adapter_token_ids, check_adapter
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.serving.settings import ExplainSettings

WARM: Prompt = [Message(role="user", content="How do I lock a bicycle?")]


class UnexplainedError(Exception):
    """A trio that adapter or judge cannot read, or gave no answer on. Holds nothing of its texts.

    `again` says whether another try may be answered.
    """

    def __init__(self, sentence: str, *, again: bool = False) -> None:
        super().__init__(sentence)
        self.again = again


class Explainer:
    """An adapter and a judge. Explains one trio at a time; others wait."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        own = ExplainSettings.model_validate(settings)
        self.settings, self.pool = own, load_pool(own.rules)
        # One at a time; what waits, and is not waited for any more, is dropped.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        adapter, judge = Path(own.adapter_model), resolve(own.judge.model, own.judge.revision)
        threads = own.adapter.threads or os.cpu_count()
        self.adapter = RuleAdapter(adapter, self.pool.ids, dtype=own.adapter.dtype, threads=threads)
        self.adapter_tokenizer = load_tokenizer(adapter)
        self.longest = min(own.adapter.max_length, self.adapter.context_length)
        self.judge = Judge(own.judge, load_tokenizer(judge), self.pool, build_engine(own.judge, judge))
        self._explained(WARM, "Through the frame.", "Do not.")

    async def explain(self, prompt: Sequence[Mapping[str, str]], response_a: str, response_b: str) -> dict[str, Any]:
        """The critical rules of a trio, best first, with both responses' scores, φ, and the label.

        Returns:
            As `schema.Explanation` has it; or `error` with a sentence, where there is none, and whether to try `again`.
        """
        messages = [Message(role=one["role"], content=one["content"]) for one in prompt]
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self.thread, self._explained, messages, response_a, response_b
            )
        except UnexplainedError as error:
            return {"error": str(error), "again": error.again}

    def _explained(self, prompt: Prompt, response_a: str, response_b: str) -> dict[str, Any]:
        rules, probabilities = self._critical(prompt, response_a, response_b)
        # In the pool's order, as everywhere that ratings are asked for.
        asked = sorted(rules)
        both = self.judge.rate([Conversation(prompt, response, asked) for response in (response_a, response_b)])
        rows: list[list[Rating]] = []
        for one in both:
            if isinstance(one.answer, Fault):
                # Why an engine fails is its log's to tell.
                reason = one.answer.reason if one.answer.final else NO_ANSWER
                raise UnexplainedError(f"{reason}.", again=not one.answer.final)
            rows.append(one.answer)
        a, b = ({rule: rating.score for rule, rating in zip(asked, row, strict=True)} for row in rows)
        scores = np.array([[side[rule] for rule in rules] for side in (a, b)])
        phi_a, phi_b = aggregate(scores, [np.arange(len(rules))] * 2).tolist()
        chosen = prefer(phi_a, phi_b, self.settings.selection.tie_tolerance)
        return {
            "rules": [
                self._told(rule, probability, *pair)
                for rule, probability, pair in zip(rules, probabilities, scores.T.tolist(), strict=True)
            ],
            "phi_a": phi_a,
            "phi_b": phi_b,
            "chosen_is": chosen.chosen_is,
            "margin": chosen.margin,
            "tie": chosen.tie,
            "truncated": any(one.truncated for one in both),
        }

    def _told(self, rule: int, probability: float, score_a: float, score_b: float) -> dict[str, Any]:
        return {
            "index": rule,
            "id": self.pool.ids[rule],
            "text": self.pool.texts[rule],
            "probability": probability,
            "score_a": score_a,
            "score_b": score_b,
        }

    def _critical(self, prompt: Prompt, response_a: str, response_b: str) -> Picked:
        """The r rules that the adapter picks, best first, and its probabilities for them."""
        try:
            ids = adapter_token_ids(self.adapter_tokenizer, prompt, response_a, response_b)
        except RolesError:
            raise UnexplainedError("the adapter's template does not take this order of roles.") from None
        if len(ids) > self.longest:
            raise UnexplainedError(f"the trio has {len(ids):,} tokens; the adapter reads {self.longest:,}.")
        (picked,) = self.adapter.pick([ids], self.settings.selection.r)
        return picked


def check_explain(settings: ExplainSettings) -> RulePool:
    """Refuse, before anything starts, an adapter of another pool, or a rule budget that it has not.

    Raises:
        FingerprintError, ModelError, RulePoolError: says which.
    """
    pool = load_pool(settings.rules)
    pool.require(settings.selection.r)
    check_adapter(Path(settings.adapter_model), pool.ids)
    return pool
