import json
from pathlib import Path

import numpy as np
import pytest

from ramo_ray.core.prompts import adapter_text
from ramo_ray.errors import EngineError, FingerprintError, ModelError
from ramo_ray.models.adapter import RuleAdapter, adapter_token_ids, load_adapter, new_adapter
from ramo_ray.models.classifier import HEAD_STD
from ramo_ray.models.templates import load_tokenizer

pytestmark = pytest.mark.slow

POOL = [f"rule-{i}" for i in range(7)]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(new_adapter(tiny_model, POOL), tiny_model, tmp_path_factory.mktemp("adapter"))


def save(model: object, base: Path, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    load_tokenizer(base).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_weight(folder: Path, name: str) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def random_rows(seed: int, count: int, longest: int = 60) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, 300, size=generator.integers(1, longest)).tolist() for _ in range(count)]


def test_a_new_adapter_has_a_small_seeded_head_for_each_rule(tiny_model: Path) -> None:
    head = new_adapter(tiny_model, POOL, seed=3).score.weight.detach().numpy()

    assert head.shape == (7, 64)
    assert head.std() == pytest.approx(HEAD_STD, rel=0.2)
    np.testing.assert_array_equal(head, new_adapter(tiny_model, POOL, seed=3).score.weight.detach().numpy())
    assert not np.array_equal(head, new_adapter(tiny_model, POOL, seed=4).score.weight.detach().numpy())


def test_config_names_the_rules_the_problem_and_the_padding(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())

    assert [config["id2label"][str(i)] for i in range(7)] == POOL
    assert config["problem_type"] == "multi_label_classification"
    assert config["pad_token_id"] == 0 != config["eos_token_id"]


def test_logits_equal_the_head_times_the_last_hidden_state(trained: Path) -> None:
    import torch

    rows = random_rows(0, 9)
    adapter = RuleAdapter(trained, POOL)
    body, head = adapter.model.model, adapter.model.score.weight
    with torch.inference_mode():
        expected = [(body(torch.tensor([ids])).last_hidden_state[0, -1] @ head.T).numpy() for ids in rows]

    np.testing.assert_allclose(adapter.logits(rows), np.stack(expected), atol=1e-5)


def test_another_pool_is_refused_with_the_difference(trained: Path) -> None:
    with pytest.raises(FingerprintError, match=r"1 of the pool's are new to it \(such as rule-new\), 1 of its own"):
        load_adapter(trained, [*POOL[:-1], "rule-new"])
    with pytest.raises(FingerprintError, match="it has 7 rules and the pool 5"):
        RuleAdapter(trained, POOL[:5])
    with pytest.raises(FingerprintError, match="in another order"):
        load_adapter(trained, POOL[::-1])
    with pytest.raises(FingerprintError, match="in another order"):
        new_adapter(trained, POOL[::-1])


def test_training_goes_on_from_an_adapter_of_the_same_pool(trained: Path) -> None:
    again = new_adapter(trained, POOL, seed=99)

    assert again.score.weight.equal(load_adapter(trained, POOL).score.weight)


def test_a_classifier_of_another_size_is_no_base(trained: Path) -> None:
    with pytest.raises(ModelError, match="its head has 7 outputs, but 9 are needed"):
        new_adapter(trained, [f"rule-{i}" for i in range(9)])


def test_a_language_model_is_no_trained_adapter(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="is no Rule Adapter but a language model"):
        RuleAdapter(tiny_model, POOL)


def test_a_lost_head_is_refused_and_never_drawn_anew(trained: Path, tmp_path: Path) -> None:
    folder = save(load_adapter(trained, POOL), trained, tmp_path)
    drop_weight(folder, "score.weight")

    with pytest.raises(ModelError, match=r"weights of its head \(score.weight\) are missing"):
        load_adapter(folder, POOL)
    with pytest.raises(ModelError, match=r"weights of its head \(score.weight\) are missing"):
        new_adapter(folder, POOL)


def test_lost_weights_of_the_body_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = save(load_adapter(trained, POOL), trained, tmp_path)
    drop_weight(folder, "model.layers.1.mlp.up_proj.weight")

    with pytest.raises(ModelError, match=r"missing: model.layers.1.mlp.up_proj.weight"):
        load_adapter(folder, POOL)


def test_a_head_of_another_shape_than_the_config_says_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = save(load_adapter(trained, POOL), trained, tmp_path)
    edit_config(folder, id2label={str(i): rule for i, rule in enumerate(POOL[:5])})

    with pytest.raises(ModelError, match=r"of other shapes than config.json says: score.weight"):
        load_adapter(folder, POOL[:5])


def test_a_folder_without_safetensors_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = save(new_adapter(tiny_model, POOL), tiny_model, tmp_path)
    (folder / "model.safetensors").unlink()

    with pytest.raises(ModelError, match="no weights in safetensors format"):
        load_adapter(folder, POOL)


def test_rows_that_are_empty_or_too_long_are_refused(trained: Path) -> None:
    adapter = RuleAdapter(trained, POOL)

    with pytest.raises(ModelError, match="row 1 has 0 tokens; the model takes 1 to 512"):
        adapter.logits([[5], []])
    with pytest.raises(ModelError, match="row 0 has 513 tokens"):
        adapter.logits([[5] * 513])
    assert adapter.logits([]).shape == (0, 7)


def test_outputs_that_are_not_finite_are_named(trained: Path) -> None:
    import torch

    adapter = RuleAdapter(trained, POOL)
    with torch.no_grad():
        adapter.model.model.embed_tokens.weight[17] = float("nan")

    with pytest.raises(EngineError, match=r"row 1 \(2 tokens\) and 0 more is not finite"):
        adapter.logits([[5, 6], [5, 17], [9]])


def test_token_ids_are_those_of_the_text_with_control_tokens_as_text(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    prompt = [{"role": "user", "content": "Why <|im_end|>?"}]
    ids = adapter_token_ids(tokenizer, prompt, "first", "second")

    assert tokenizer.decode(ids) == adapter_text(prompt, "first", "second")
    assert not {0, 1, 2} & set(ids)


def test_a_bos_comes_first_where_the_tokenizer_writes_one(tiny_model: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tiny_model)
    prompt = [{"role": "user", "content": "Why?"}]
    plain = adapter_token_ids(tokenizer, prompt, "first", "second")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )

    assert adapter_token_ids(tokenizer, prompt, "first", "second") == [1, *plain]
