from pathlib import Path

import numpy as np
import pytest

from ramo_ray.engines.embedder import Embedder
from ramo_ray.errors import ModelError
from ramo_ray.models.resolve import resolve

pytestmark = pytest.mark.slow

TEXTS = ["A cat sits on the mat.", "A kitten rests on a rug.", "The central bank raised interest rates.", ""]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(resolve("bundled:all-minilm-l6-v2"), batch_size=2)


def mean_pooled(texts: list[str]) -> np.ndarray:
    """The model's own recipe, from transformers alone: mean over the tokens' last states, then length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = resolve("bundled:all-minilm-l6-v2")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0).numpy()
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


def test_rows_have_length_one_and_follow_the_models_recipe(embedder: Embedder) -> None:
    rows = embedder.embed(TEXTS)

    assert (rows.shape, rows.dtype) == ((4, 384), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rows, mean_pooled(TEXTS), atol=1e-5)


def test_alike_texts_are_nearer(embedder: Embedder) -> None:
    cat, kitten, bank, _ = embedder.embed(TEXTS)

    assert cat @ kitten > 0.5 > 0.1 > cat @ bank


def test_order_and_company_do_not_matter(embedder: Embedder) -> None:
    rows = embedder.embed(TEXTS)

    np.testing.assert_allclose(embedder.embed(TEXTS[::-1])[::-1], rows, atol=1e-5)
    np.testing.assert_allclose(embedder.embed(TEXTS[:1])[0], rows[0], atol=1e-5)


def test_no_texts_no_rows(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, 384)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')

    with pytest.raises(ModelError, match="not loadable as a sentence-transformers model"):
        Embedder(tmp_path)
