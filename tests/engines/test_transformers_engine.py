import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramo_ray.engines.transformers_engine import TransformersEngine
from ramo_ray.errors import EngineError, ModelError
from ramo_ray.models.resolve import resolve
from ramo_ray.settings import EngineSettings, SamplingSettings

pytestmark = pytest.mark.slow

VOCABULARY, CONTEXT, END = 300, 640, 2
LABELS = [10, 250, 31]
GREEDY = SamplingSettings(temperature=0, max_tokens=40)
# Wide, so that a token in the wrong place or a wrong neighbour changes what comes out.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": END,
}


def save_model(folder: Path, family: str = "Llama", **changes: Any) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | changes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("wide-llama"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(EngineSettings(), folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def smollm2() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(EngineSettings(), resolve("bundled:smollm2-135m-instruct"))
    yield engine
    engine.close()


def plain_logprobs(folder: Path, prompts: list[list[int]], labels: list[int]) -> np.ndarray:
    """One prompt at a time through transformers, with nothing of ours in between."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[labels].numpy() for prompt in prompts]
    return np.stack(rows)


def random_ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, size=count).tolist()


def layouts() -> dict[str, list[list[int]]]:
    conversations = [[*random_ids(60, 0), *random_ids(80 + 30 * i, i + 1)] for i in range(3)]
    rules = [random_ids(5 + i % 9, 100 + i) for i in range(20)]
    rule_last = [[*conversation, *rule] for rule in rules for conversation in conversations]
    chain = random_ids(200, 7)
    return {
        "rule last, interleaved": rule_last,
        "paper: rule first": [[*random_ids(60, 0), *rule, *c[60:]] for rule in rules for c in conversations],
        "nothing shared": [random_ids(20 + 31 * i, 50 + i) for i in range(8)],
        "duplicates": [rule_last[0], rule_last[4], rule_last[0], rule_last[0]],
        "each begins the next": [chain[:150], chain, chain[:149], chain[:1], chain[:199]],
        "one": [chain],
        "one token": [[5]],
        "longest": [random_ids(CONTEXT, 8), random_ids(CONTEXT, 8)[:-1]],
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("budget", [5, 64, 4096])
def test_shared_work_equals_one_by_one(folder: Path, engine: TransformersEngine, layout: str, budget: int) -> None:
    prompts, own = layouts()[layout], engine.scorer.budget
    engine.scorer.budget, before = budget, engine.scorer.computed
    rows = engine.label_logprobs(prompts, LABELS)
    engine.scorer.budget = own

    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, plain_logprobs(folder, prompts, LABELS), atol=1e-4)
    assert engine.scorer.computed - before == len({tuple(p[:end]) for p in prompts for end in range(1, len(p) + 1)})


def test_other_models_are_right_too(tmp_path: Path) -> None:
    prompts = layouts()["rule last, interleaved"]
    families: dict[str, dict[str, Any]] = {
        "Mistral": {"sliding_window": 16},
        "Qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "Gemma2": {"sliding_window": 16, "head_dim": 16},
        "GPT2": {"n_positions": CONTEXT},
        "Qwen3": {"head_dim": 32},  # normalises queries and keys
        "Phi3": {"pad_token_id": 0},  # one product for queries, keys and values
        "Bloom": {},  # ALiBi, and no attention that takes a mask of ours
    }
    for family, changes in families.items():
        folder = save_model(tmp_path / family, family, **changes)
        engine = TransformersEngine(EngineSettings(max_length=CONTEXT), folder)
        assert engine.scorer.shares == (family in ("GPT2", "Qwen3", "Phi3"))
        rows = engine.label_logprobs(prompts, LABELS)
        np.testing.assert_allclose(rows, plain_logprobs(folder, prompts, LABELS), atol=1e-4, err_msg=family)


def test_no_prompts_no_rows(engine: TransformersEngine) -> None:
    assert engine.label_logprobs([], LABELS).shape == (0, 3)
    assert engine.generate([], GREEDY) == []


def test_log_probabilities_are_over_the_whole_vocabulary(engine: TransformersEngine) -> None:
    everything = engine.label_logprobs([random_ids(9, 0)], list(range(VOCABULARY)))

    assert np.exp(everything.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)


def test_bad_requests_are_refused(engine: TransformersEngine) -> None:
    with pytest.raises(EngineError, match=r"prompt 1 is empty; prompt 2 has 641 tokens"):
        engine.label_logprobs([[1], [], [3] * (CONTEXT + 1)], LABELS)
    with pytest.raises(EngineError, match="labels"):
        engine.label_logprobs([[1]], [VOCABULARY])
    with pytest.raises(EngineError, match="prompt 0 has 640 tokens"):
        engine.generate([[3] * CONTEXT], GREEDY)


def edit_weights(source: Path, target: Path, **changes: Any) -> Path:
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for name in ("config.json", "generation_config.json"):
        (target / name).write_text((source / name).read_text())
    weights = load_file(source / "model.safetensors")
    for name, change in changes.items():
        change(weights, name.replace("__", "."))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_weights_that_give_nothing_finite_are_an_error(folder: Path, tmp_path: Path) -> None:
    broken = edit_weights(folder, tmp_path / "nan", model__norm__weight=lambda w, name: w[name].fill_(float("nan")))
    engine = TransformersEngine(EngineSettings(), broken)

    with pytest.raises(EngineError, match="no finite answer for 2 of 2 prompts"):
        engine.label_logprobs([[5], [6]], LABELS)
    with pytest.raises(EngineError, match="not finite"):
        engine.generate([[5]], GREEDY)


def test_missing_weights_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    broken = edit_weights(folder, tmp_path / "headless", lm_head__weight=lambda w, name: w.pop(name))

    with pytest.raises(ModelError, match=r"weights are missing \(lm_head\.weight\)"):
        TransformersEngine(EngineSettings(), broken)


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())

    with pytest.raises(ModelError, match="not loadable as a causal language model"):
        TransformersEngine(EngineSettings(), tmp_path)


def test_max_length_shortens_the_context(folder: Path) -> None:
    assert TransformersEngine(EngineSettings(max_length=100), folder).context_length == 100
    assert TransformersEngine(EngineSettings(max_length=10_000), folder).context_length == CONTEXT


def test_greedy_equals_transformers_own_loop(folder: Path, engine: TransformersEngine) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompts = [
        random_ids(length, length) for length in (3, 40, 17, 5, 90, 8, 21, 33, 2, 11, 64, 7, 1, 50, 28, 13, 4, 6)
    ]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt, completion in zip(prompts, engine.generate(prompts, GREEDY), strict=True):
        ids = torch.tensor([prompt])
        # Written token by token: `generate` would warn of the padding this model does not name.
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, pad_token_id=0
        )
        expected = whole[0, len(prompt) :].tolist()
        assert completion.token_ids == (expected[:-1] if expected[-1] == END else expected)
        assert completion.finish_reason == ("stop" if expected[-1] == END else "length")


def test_padding_does_not_move_absolute_positions(tmp_path: Path) -> None:
    engine = TransformersEngine(EngineSettings(), save_model(tmp_path / "gpt2", "GPT2", n_positions=CONTEXT))
    prompts = [random_ids(length, length) for length in (3, 40, 17)]

    assert engine.generate(prompts, GREEDY) == [engine.generate([prompt], GREEDY)[0] for prompt in prompts]


def ending_engine(folder: Path, tmp_path: Path, end: int) -> TransformersEngine:
    import shutil

    own = shutil.copytree(folder, tmp_path / "ending")
    config = json.loads((own / "generation_config.json").read_text())
    (own / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [END, end]}))
    return TransformersEngine(EngineSettings(), own)


def test_any_end_token_stops_and_is_left_out(folder: Path, engine: TransformersEngine, tmp_path: Path) -> None:
    prompts = [random_ids(9, seed) for seed in range(6)]
    free = engine.generate(prompts, GREEDY)
    end = free[0].token_ids[7]

    for before, after in zip(free, ending_engine(folder, tmp_path, end).generate(prompts, GREEDY), strict=True):
        place = before.token_ids.index(end) if end in before.token_ids else None
        assert after.token_ids == before.token_ids[:place]
        assert after.finish_reason == (before.finish_reason if place is None else "stop")


def test_writing_ends_with_the_context(engine: TransformersEngine) -> None:
    short, long = engine.generate([random_ids(30, 1), random_ids(CONTEXT - 3, 0)], GREEDY)

    assert (len(short.token_ids), len(long.token_ids)) == (40, 3)
    assert long.finish_reason == "length"


def test_sampling_is_repeatable_in_any_company_and_touches_no_global_state(engine: TransformersEngine) -> None:
    import torch

    prompts = [random_ids(5 + 3 * seed, seed) for seed in range(20)]
    sampling = SamplingSettings(temperature=1.0, top_p=0.9, max_tokens=12, seed=3)
    state = torch.random.get_rng_state()
    together = engine.generate(prompts, sampling)
    assert torch.equal(torch.random.get_rng_state(), state)

    torch.manual_seed(99)
    assert [engine.generate([prompt], sampling)[0] for prompt in prompts] == together
    assert engine.generate(prompts, sampling.model_copy(update={"seed": 4})) != together


@pytest.mark.parametrize("layout", ["rule last, interleaved", "duplicates", "each begins the next", "nothing shared"])
def test_a_real_model_shares_without_error(smollm2: TransformersEngine, layout: str) -> None:
    prompts = layouts()[layout][:12]
    folder = resolve("bundled:smollm2-135m-instruct")

    rows = smollm2.label_logprobs(prompts, LABELS)
    np.testing.assert_allclose(rows, plain_logprobs(folder, prompts, LABELS), atol=1e-4)
