"""Probabilities of whole answers, also of several tokens, from next-token probabilities after their beginnings.

P(answer) is the product of P(next token | prompt and the answer's tokens so far). The answers' beginnings form a
prefix tree; after each of its inner nodes the next token is asked for once, whichever answers pass there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramo_ray.errors import LabelError

TokenIds = Sequence[int]


class Candidates(NamedTuple):
    """The answers that a judge chooses from, as what has to be asked and how the replies are put together."""

    prefixes: tuple[tuple[int, ...], ...]
    """Distinct proper beginnings of the answers, the empty one first: what a prompt is extended by, P of them."""
    tokens: tuple[int, ...]
    """Distinct tokens that come next on some path, T of them in the answers' order."""
    paths: tuple[tuple[tuple[int, int], ...], ...]
    """Of each answer its steps: places in `prefixes` and in `tokens`."""

    @property
    def longest_prefix(self) -> int:
        """Tokens that a prompt is extended by at most."""
        return max(map(len, self.prefixes))

    def questions(self, prompts: Sequence[TokenIds]) -> list[list[int]]:
        """Each prompt with each prefix behind it: what an engine is asked, prompt by prompt."""
        return [[*prompt, *prefix] for prompt in prompts for prefix in self.prefixes]

    def question_tokens(self, prompts: Sequence[TokenIds]) -> int:
        """Tokens of all `questions` together."""
        return len(self.prefixes) * sum(map(len, prompts)) + len(prompts) * sum(map(len, self.prefixes))

    def logprobs(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log-probabilities of the answers, [prompts, answers], from those of `tokens` after each of `questions`.

        rows: [prompts · P, T], natural logarithms over the full vocabulary.
        """
        steps = rows.reshape(-1, len(self.prefixes), len(self.tokens)).astype(np.float64)
        sums = [steps[:, [p for p, _ in path], [t for _, t in path]].sum(axis=1) for path in self.paths]
        return np.stack(sums, axis=1)


def plan_candidates(words: Sequence[str], spelled: Sequence[TokenIds]) -> Candidates:
    """Plan how to score answers, given as words (for errors) and as the token ids that spell them.

    Raises `LabelError` where an answer has no token, repeats another or begins it: a judge that had written the
    shorter one could still go on to the longer.
    """
    faults = [f"`{word}` has no token" for word, ids in zip(words, spelled, strict=True) if not ids]
    for place, ids in enumerate(spelled):
        begun = [w for other, w in enumerate(words) if other != place and [*spelled[other]][: len(ids)] == [*ids]]
        faults += [f"`{words[place]}` begins `{word}` (token ids {[*ids]})" for word in begun if ids]
    if faults:
        raise LabelError(f"answers: {'; '.join(faults)}. Take a judge whose tokenizer tells them apart.")
    prefixes = dict.fromkeys(tuple(ids[:end]) for ids in spelled for end in range(len(ids)))
    tokens = dict.fromkeys(token for ids in spelled for token in ids)
    places, columns = ({key: place for place, key in enumerate(keys)} for keys in (prefixes, tokens))
    paths = [tuple((places[tuple(ids[:end])], columns[ids[end]]) for end in range(len(ids))) for ids in spelled]
    return Candidates(tuple(prefixes), tuple(tokens), tuple(paths))
