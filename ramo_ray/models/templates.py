"""Texts and conversations to token ids. Texts are data: a special token's name inside one never becomes that token.

Every function takes a tokenizer of transformers; one tokenizer must not be used by two threads at once, since its
backend holds the switch between text and control tokens. Knows no model weights and no torch.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramo_ray.core.records import Message, Prompt
from ramo_ray.errors import LabelError, ModelError, RolesError
from ramo_ray.tokenizers import open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

TEMPLATE_DATE = datetime.date(2024, 7, 26)
"""Stands for today in chat templates that print a date, so that scores do not drift; Llama 3.1's own fallback."""

PROBE = "You are a helpful assistant."
FRAME_PROBES = (PROBE, "You are a helpful reader of rule 7: “No”", "You are a helpful\n\nobserver")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a model folder's tokenizer. Raises `ModelError` if there is none, or one that parses texts for controls."""
    tokenizer = open_tokenizer(folder)
    special = set(_special_tokens(tokenizer).values()) - {tokenizer.unk_token_id}
    if special.intersection(encode_text(tokenizer, " ".join(_special_tokens(tokenizer)))):
        raise ModelError(
            f"{folder}: this tokenizer turns special tokens inside texts into control tokens; use its fast version."
        )
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text, without BOS or EOS; the name of a special token is spelled out like any other text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def token_ends(tokenizer: Tokenizer, text: str) -> list[int]:
    """Where a text may be cut between two tokens: the numbers of characters before each such place, rising.

    The end is one of them, the beginning is not, nor is a place within a character that takes several tokens. Needs a
    fast tokenizer.
    """
    offsets = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    return sorted({end for _, end in offsets if end > 0})


def encode_chat(tokenizer: Tokenizer, messages: Prompt, *, add_generation_prompt: bool = False) -> list[int]:
    """Token ids of a conversation in the model's chat template.

    They equal `apply_chat_template(messages, tokenize=True)`, with two exceptions: special tokens' names inside the
    contents stay text, and a template's "today" is `TEMPLATE_DATE`. Raises `ModelError` if there is no chat template,
    or if it refuses the conversation (some know no system message, or want roles to take turns).
    """
    special = _special_tokens(tokenizer)
    if not any(name in message["content"] for message in messages for name in special):
        return _encode_rendered(tokenizer, _render(tokenizer, messages, add_generation_prompt))
    mark = _unused_character(messages)
    names = _pattern(special)
    hidden = {name: f"{mark}{number}{mark}" for number, name in enumerate(special)}
    shown = {placeholder: name for name, placeholder in hidden.items()}
    masked: list[Message] = [
        {**m, "content": names.sub(lambda found: hidden[found[0]], m["content"])} for m in messages
    ]
    ids: list[int] = []
    for part in re.split(f"({names.pattern})", _render(tokenizer, masked, add_generation_prompt)):
        restored = re.sub(f"{mark}[0-9]+{mark}", lambda found: shown[found[0]], part)
        ids += [special[part]] if part in special else encode_text(tokenizer, restored)
    return ids


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _pattern(names: Mapping[str, int]) -> re.Pattern[str]:
    # Longest first: where one name begins another, the tokenizer takes the longer.
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))


def _unused_character(messages: Prompt) -> str:
    used = {character for message in messages for character in message["content"]}
    return next(chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)


def _encode_rendered(tokenizer: Tokenizer, rendered: str) -> list[int]:
    # A template writes its own BOS; with `add_special_tokens` there would be two.
    ids: list[int] = tokenizer(rendered, add_special_tokens=False, split_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _render(tokenizer: Tokenizer, messages: Prompt, add_generation_prompt: bool) -> str:
    import jinja2

    if not tokenizer.chat_template:
        raise ModelError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template. Use an instruction-tuned model, put a "
            "chat_template.jinja into the folder, or, for a judge, set judge.chat_template to false."
        )
    frozen: dict[str, Any] = {"date_string": TEMPLATE_DATE.strftime("%d %b %Y"), "strftime_now": TEMPLATE_DATE.strftime}
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **frozen
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise RolesError(f"{tokenizer.name_or_path}: the chat template refuses the roles {roles}: {error}") from None
    return text


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """A prompt in the model's chat template, up to where the answer begins. Errors: those of `encode_chat`."""
    return _render(tokenizer, prompt, add_generation_prompt=True)


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers turn any conversation into the same ids: the same vocabulary, rules and chat template."""
    if one.chat_template != other.chat_template or not (one.is_fast and other.is_fast):
        return False
    return bool(one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str())


def chat_frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Token ids before and after the content of a single user message that the model is to answer.

    So `before + encode_text(content) + after` equals `encode_chat` of that message, which lets a judge's prompts
    share their beginning. Raises `ModelError` where a template does not treat contents that way.
    """
    frames = {_frame(tokenizer, probe) for probe in FRAME_PROBES}
    frame = frames.pop()
    if frame is None or frames:
        raise ModelError(
            f"{tokenizer.name_or_path}: the chat template changes a message's text, so a judge's prompts cannot be put "
            "together from tokens. Set judge.chat_template to false, or use another judge."
        )
    before, after = frame
    return list(before), list(after)


def _frame(tokenizer: Tokenizer, probe: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    whole = encode_chat(tokenizer, [{"role": "user", "content": probe}], add_generation_prompt=True)
    content = encode_text(tokenizer, probe)
    start = _last_position(whole, content)
    return None if start is None else (tuple(whole[:start]), tuple(whole[start + len(content) :]))


def _last_position(whole: Sequence[int], part: Sequence[int]) -> int | None:
    for start in range(len(whole) - len(part), -1, -1):
        if list(whole[start : start + len(part)]) == list(part):
            return start
    return None


def label_token_ids(tokenizer: Tokenizer, words: Sequence[str], *, leading_space: bool) -> list[int]:
    """First token of each label word, as a judge would write it at once or, with `leading_space`, after a sentence.

    Raises `LabelError` unless each word begins with a known token that differs from the others': what is read off
    a judge is the probability of one token.
    """
    spelled = _spelled(tokenizer, words, leading_space)
    faults = [f"`{word}` has no token" for word, ids in zip(words, spelled, strict=True) if not word.strip() or not ids]
    faults += [
        f"`{w}` begins with the unknown token"
        for w, ids in zip(words, spelled, strict=True)
        if _unknown(tokenizer, ids)
    ]
    first = [ids[0] for ids in spelled if ids]
    if len(set(first)) < len(first):
        shown = ", ".join(
            f"`{w}` {tokenizer.convert_ids_to_tokens(ids)}" for w, ids in zip(words, spelled, strict=True)
        )
        faults.append(f"words share their first token: {shown}")
    if faults:
        raise LabelError(
            f"labels: {'; '.join(faults)}. Give words that begin with different tokens of {tokenizer.name_or_path}."
        )
    return first


def answer_token_ids(tokenizer: Tokenizer, words: Sequence[str], *, leading_space: bool) -> list[list[int]]:
    """All tokens of each answer, as a judge would write it at once or, with `leading_space`, after a sentence.

    Raises `LabelError` for an answer that the tokenizer cannot spell.
    """
    spelled = _spelled(tokenizer, words, leading_space)
    unknown = [w for w, ids in zip(words, spelled, strict=True) if not ids or tokenizer.unk_token_id in ids]
    if unknown:
        raise LabelError(
            f"answers: {tokenizer.name_or_path} has no tokens for {', '.join(f'`{word}`' for word in unknown)}. "
            "Take another judge, or another judge.method."
        )
    return spelled


def _spelled(tokenizer: Tokenizer, words: Sequence[str], leading_space: bool) -> list[list[int]]:
    # Within a sentence, because some tokenizers put a space of their own before the first word of any text.
    before = encode_text(tokenizer, ".") if leading_space else []
    return [encode_text(tokenizer, f". {word}" if leading_space else word)[len(before) :] for word in words]


def _unknown(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    return bool(ids) and ids[0] == tokenizer.unk_token_id


def end_of_turn_id(tokenizer: Tokenizer) -> int:
    """The special token that the chat template puts after an assistant's message (`<|im_end|>`, `<|eot_id|>`, …)."""
    return _end_of_turn_id(tokenizer, tokenizer.chat_template)


@functools.lru_cache(maxsize=16)
def _end_of_turn_id(tokenizer: Tokenizer, template: str | None) -> int:  # noqa: ARG001 - a new template is a new key
    messages: list[Message] = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": PROBE}]
    whole, content = encode_chat(tokenizer, messages), encode_text(tokenizer, PROBE)
    start = _last_position(whole, content)
    special = set(_special_tokens(tokenizer).values())
    after = [] if start is None else [number for number in whole[start + len(content) :] if number in special]
    if not after:
        raise ModelError(
            f"{tokenizer.name_or_path}: the chat template ends an assistant's message without a special token, where a "
            "reward would be read. Use a model whose template has one."
        )
    return after[0]


def reward_token_ids(tokenizer: Tokenizer, prompt: Prompt, response: str) -> list[int]:
    """Token ids that a reward model reads: the prompt and the response as a chat, ending in its end-of-turn token.

    Training, evaluation and serving all use this function, and the reward is read at the last token. What the
    template puts behind it (SmolLM2 a newline) is left out, as in rollouts, which end there.
    """
    ids = encode_chat(tokenizer, [*prompt, {"role": "assistant", "content": response}])
    end = end_of_turn_id(tokenizer)
    return ids[: len(ids) - ids[::-1].index(end)]


def pad_token_id(tokenizer: Tokenizer) -> int:
    """A token that only ever pads: the tokenizer's own, or else an unused special token.

    With padding equal to the end of a turn, a reward would be read at the wrong place. Raises `ModelError` if the
    vocabulary has no token to spare.
    """
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.chat_template:
        ends.add(end_of_turn_id(tokenizer))
    own: int | None = tokenizer.pad_token_id
    if own is not None and own not in ends:
        return own
    spare = {name: number for name, number in _special_tokens(tokenizer).items() if number not in ends}
    for word in ("pad", "reserved", "unused"):
        if found := [number for name, number in spare.items() if word in name.lower()]:
            return found[0]
    raise ModelError(
        f"{tokenizer.name_or_path}: padding is missing or equals the end of a turn, and no spare special token exists. "
        "Add a pad token to the tokenizer."
    )
