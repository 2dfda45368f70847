"""What PPO starts from: prompts that cannot be used are counted, models that do not fit are refused before any GPU."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.policy_inputs import check_policy, check_reward, write_prompts
from ramo_ray.core.records import Message, prompt_id
from ramo_ray.errors import ModelError, SourceError
from ramo_ray.models.templates import encode_chat, load_tokenizer
from ramo_ray.ppo.settings import PPOSettings

pytestmark = pytest.mark.slow
SETTINGS = PPOSettings.model_validate(
    {"rollout": {"prompts_per_step": 2, "max_new_tokens": 16, "micro_batch": 1}, "batch_size": 2, "max_length": 128}
)


def rows(*texts: str) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(texts):
        prompt: list[Message] = [{"role": "user", "content": text}]
        yield {"origin": f"here:{number}", "prompt_id": prompt_id(prompt), "prompt": prompt}


def copy(model: Path, folder: Path, file: str = "", **values: Any) -> Path:
    """A model's folder with something else in one of its files."""
    shutil.copytree(model, folder)
    if file:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_prompts_are_written_as_the_policy_reads_them(tmp_path: Path, tiny_model: Path) -> None:
    bad = {"origin": "here:9", "reason": "`prompt` is missing"}
    given = [*rows("one", "two", "<|im_end|>", "far " * 100, "one", "three", "four", "five"), bad]
    found = write_prompts(given, tiny_model, SETTINGS, tmp_path / "prompts.jsonl")
    assert (found.read, len(found.used), len(found.bad)) == (9, 4, 5)
    assert Counter(row["reason"].split(":")[0] for row in found.bad) == {
        "spells a control token of the policy's": 1,
        "too long": 1,
        "the same prompt again": 1,
        "left over": 1,
        "`prompt` is missing": 1,
    }
    written = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(tiny_model)
    lengths = []
    for row, prompt in zip(written, found.used, strict=True):
        assert json.loads(row["label"]) == prompt
        ids = tokenizer(row["input"], add_special_tokens=False)["input_ids"]
        assert ids == encode_chat(tokenizer, prompt, add_generation_prompt=True)
        lengths.append(len(ids))
    assert found.tokens == sum(lengths) / 4


@pytest.mark.parametrize(
    ("texts", "told"), [((), "0 of 0 can be used"), (("<|im_end|>", "one"), "1 of 2 can be used.*spells a control")]
)
def test_too_few_prompts_for_a_step_are_refused(
    tmp_path: Path, tiny_model: Path, texts: tuple[str, ...], told: str
) -> None:
    with pytest.raises(SourceError, match=told):
        write_prompts(rows(*texts), tiny_model, SETTINGS, tmp_path / "prompts.jsonl")


def test_a_policy_that_cannot_chat_or_brings_code_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    check_policy(tiny_model)
    mute = copy(tiny_model, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        check_policy(mute)
    for file in ("config.json", "tokenizer_config.json"):
        own = copy(tiny_model, tmp_path / file, file, auto_map={"AutoModel": "own.Model"})
        with pytest.raises(ModelError, match=rf"the policy's {file} names code of its own"):
            check_policy(own)


def test_a_reward_model_of_other_outputs_code_or_tokens_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    kind = {"architectures": ["LlamaForSequenceClassification"]}
    one = kind | {"id2label": {"0": "reward"}}
    with pytest.raises(ModelError, match="is a language model, and a reward model has one output"):
        check_reward(tiny_model, tiny_model)
    check_reward(copy(tiny_model, tmp_path / "good", "config.json", **one), tiny_model)
    three = copy(tiny_model, tmp_path / "three", "config.json", **kind, id2label={"0": "a", "1": "b", "2": "c"})
    with pytest.raises(ModelError, match="has 3 outputs, and a reward model has one"):
        check_reward(three, tiny_model)
    with pytest.raises(ModelError, match="names code of its own"):
        check_reward(copy(tiny_model, tmp_path / "own", "config.json", **one, auto_map={}), tiny_model)
    template = copy(tiny_model, tmp_path / "template", "config.json", **one)
    (template / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    with pytest.raises(ModelError, match=r"is not the policy's.*ppo\.reward\.endpoints"):
        check_reward(template, tiny_model)
    words = copy(tiny_model, tmp_path / "words", "config.json", **one)
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    (words / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"ppo\.reward\.endpoints"):
        check_reward(words, tiny_model)
