import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from ramo_ray.core.prompts import RatingTemplate
from ramo_ray.core.rules import load_pool
from ramo_ray.engines import build_engine
from ramo_ray.engines.transformers_engine import TransformersEngine
from ramo_ray.engines.vllm_engine import VLLMEngine
from ramo_ray.errors import EngineError
from ramo_ray.models.resolve import resolve
from ramo_ray.models.templates import chat_frame, encode_text, label_token_ids, load_tokenizer
from ramo_ray.settings import EngineSettings, SamplingSettings, VLLMSettings

pytestmark = pytest.mark.slow

HH_RLHF = Path(__file__).parents[3] / "shared/data/hh_rlhf/harmless-base.test.jsonl.gz"
CONTEXT = 2048
SETTINGS = EngineSettings(engine="vllm", max_length=CONTEXT, vllm=VLLMSettings(kv_cache_gib=1.0))
LABELS = [10539, 5230, 31302]
PROMPTS = [[1, *range(100, 180), *tail] for tail in ([7, 8], [9], [7, 8, 4], [500, 501, 502])] + [[44], [5] * 300]


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve("bundled:smollm2-135m-instruct")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VLLMEngine]:
    built: list[VLLMEngine] = []
    # An actor of Ray may build its engine beside the main thread, where signal handlers cannot be set.
    thread = threading.Thread(target=lambda: built.append(build_engine(SETTINGS, folder)))
    thread.start()
    thread.join()
    yield built[0]
    built[0].close()


@pytest.fixture(scope="module")
def other(folder: Path) -> TransformersEngine:
    return TransformersEngine(EngineSettings(max_length=CONTEXT), folder)


def rating_prompts(folder: Path) -> tuple[list[list[int]], list[int]]:
    """Four real conversations times the paper's 100 rules, in layout rule_last, and the labels."""
    with gzip.open(HH_RLHF, "rt", encoding="utf-8") as lines:
        dialogues = [json.loads(line)["chosen"] for line, _ in zip(lines, range(4), strict=False)]
    tokenizer, template = load_tokenizer(folder), RatingTemplate("rule_last", "keep")
    before, after = chat_frame(tokenizer)
    prompts = []
    for dialogue in dialogues:
        question, response = dialogue.removeprefix("\n\nHuman: ").rsplit("\n\nAssistant: ", 1)
        texts = (template.render([{"role": "user", "content": question}], response, rule) for rule in load_pool().texts)
        prompts += [[*before, *encode_text(tokenizer, text), *after] for text in texts]
    return prompts, label_token_ids(tokenizer, ["Yes", "No", "Irrelevant"], leading_space=False)


@pytest.mark.skipif(not HH_RLHF.exists(), reason="needs the HH-RLHF test set beside the repository")
def test_the_two_engines_agree_on_every_rating(folder: Path, engine: VLLMEngine, other: TransformersEngine) -> None:
    prompts, labels = rating_prompts(folder)
    one, two = (np.exp(e.label_logprobs(prompts, labels).astype(np.float64)) for e in (engine, other))

    assert one.shape == (400, 3)
    ratings = one / one.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ratings, two / two.sum(axis=1, keepdims=True), atol=2e-3)
    np.testing.assert_allclose(one.sum(axis=1), two.sum(axis=1), atol=2e-3)
    # Were all ratings alike, an answer in the wrong place would go unseen.
    assert (np.ptp(ratings.reshape(4, 100, 3)[..., :2], axis=1) > 0.02).all()


def test_the_two_engines_agree_on_any_prompt(engine: VLLMEngine, other: TransformersEngine) -> None:
    rows = engine.label_logprobs(PROMPTS, LABELS)

    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, other.label_logprobs(PROMPTS, LABELS), atol=1e-3)


def test_answers_come_in_the_order_asked(engine: VLLMEngine) -> None:
    rows = engine.label_logprobs(PROMPTS, LABELS)

    np.testing.assert_allclose(engine.label_logprobs(PROMPTS[::-1], LABELS), rows[::-1], atol=1e-4)
    np.testing.assert_allclose(engine.label_logprobs(PROMPTS, LABELS[::-1]), rows[:, ::-1], atol=1e-4)
    several = [3, 0, 3, 5, 2, 0, 1, 4, 4]
    np.testing.assert_allclose(engine.label_logprobs([PROMPTS[i] for i in several], LABELS), rows[several], atol=1e-4)
    assert engine.label_logprobs([], LABELS).shape == (0, 3)


def test_another_list_of_labels_is_answered_too(engine: VLLMEngine, other: TransformersEngine) -> None:
    many = list(range(1000, 1128))

    np.testing.assert_allclose(engine.label_logprobs(PROMPTS, many), other.label_logprobs(PROMPTS, many), atol=1e-3)
    with pytest.raises(EngineError, match="at most 128"):
        engine.label_logprobs(PROMPTS, list(range(129)))


def test_each_whole_block_that_prompts_share_is_computed_once(engine: VLLMEngine) -> None:
    trunk = list(range(3000, 3200))
    prompts = [[*trunk, 5, 6], [7] * 40, [*trunk, 9], [*trunk, 5, 6], [7] * 33]
    engine.computed = engine.cached = 0
    engine.label_logprobs(prompts, LABELS)

    # Blocks have 32 tokens: two prompts share one of them, two share six, and equal prompts are one.
    assert (engine.computed, engine.cached) == (33 + 8 + 202 + 9, 32 + 192)
    engine.label_logprobs([[*trunk, 5, 6]], LABELS)
    assert (engine.computed, engine.cached) == (252 + 10, 224 + 192)


def test_the_context_is_used_to_its_last_token(engine: VLLMEngine) -> None:
    assert engine.context_length == CONTEXT - 1
    assert engine.label_logprobs([[5] * engine.context_length], LABELS).shape == (1, 3)
    with pytest.raises(EngineError, match="prompt 0 has 2,048 tokens"):
        engine.label_logprobs([[5] * CONTEXT], LABELS)
    with pytest.raises(EngineError, match="prompt 1 is empty"):
        engine.generate([[5], []], SamplingSettings())


def test_greedy_writing_equals_the_other_engines(engine: VLLMEngine, other: TransformersEngine, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    before, after = chat_frame(tokenizer)
    questions = ("What is the capital of France?", "Say hello.", "How do I boil an egg?")
    prompts = [[*before, *encode_text(tokenizer, question), *after] for question in questions]
    sampling = SamplingSettings(temperature=0, max_tokens=24)

    written = engine.generate(prompts, sampling)
    assert written == other.generate(prompts, sampling)
    assert {completion.finish_reason for completion in written} == {"stop", "length"}
    assert all(2 not in completion.token_ids for completion in written)


def test_sampling_is_repeatable_in_any_company(engine: VLLMEngine) -> None:
    sampling = SamplingSettings(temperature=1.0, max_tokens=8, seed=1)
    together = engine.generate(PROMPTS[:4], sampling)

    assert [engine.generate([prompt], sampling)[0] for prompt in PROMPTS[:4]] == together
    assert engine.generate(PROMPTS[:4], sampling.model_copy(update={"seed": 2})) != together


@pytest.mark.usefixtures("engine")
def test_one_engine_is_one_process_that_keeps_its_threads() -> None:
    import torch

    names = [child.name() for child in psutil.Process().children(recursive=True)]
    assert not [name for name in names if "vllm" in name.lower()]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


OWNER = """
import json, sys, time
import psutil
from pathlib import Path
from ramo_ray.engines import build_engine
from ramo_ray.settings import EngineSettings

if __name__ == "__main__":
    engine = build_engine(EngineSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
    rows = engine.label_logprobs(json.loads(sys.argv[3]), [7, 8, 9]).tolist()
    print(json.dumps([rows, [child.pid for child in psutil.Process().children(recursive=True)]]), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need a processor each")
def test_two_ranks_answer_as_one_model_and_end_with_a_killed_owner(tiny_model: Path, tmp_path: Path) -> None:
    one, two, *_ = sorted(os.sched_getaffinity(0))
    # By itself an engine has no process beside its owner's; two ranks are a worker each.
    spread = VLLMSettings(kv_cache_gib=0.25, tensor_parallel_size=2)
    settings = EngineSettings(engine="vllm", max_length=128, vllm=spread)
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    prompts = [[5, 6], [*range(3, 90)], [*range(3, 80), 4], [9]]
    command = [sys.executable, str(script), settings.model_dump_json(), str(tiny_model), json.dumps(prompts)]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": f"{one}|{two}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        rows, pids = json.loads(owner.stdout.readline() or "[[], []]")
        children = [psutil.Process(pid) for pid in pids]
        names = [child.name() for child in children]
        owner.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)

    assert len([name for name in names if "Worker" in name]) == 2
    assert alive == []
    alone = TransformersEngine(EngineSettings(max_length=128), tiny_model).label_logprobs(prompts, [7, 8, 9])
    np.testing.assert_allclose(rows, alone, atol=1e-4)


def test_more_prompts_than_a_step_holds_are_written_on_as_alone(engine: VLLMEngine) -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 300, size=length).tolist() for length in (1500, *[90] * 24, 1100, 7)]
    sampling = SamplingSettings(temperature=1.0, top_p=0.9, max_tokens=8, seed=3)
    together = engine.generate(prompts, sampling)

    assert len(together) == len(prompts)
    for place in (0, 12, 25, 26):
        assert together[place] == engine.generate([prompts[place]], sampling)[0]
    assert engine.generate([], sampling) == []
