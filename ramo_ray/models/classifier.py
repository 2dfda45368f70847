"""A language model with a linear head on its last token: what the Rule Adapter and the reward model share.

Token ids in, numbers out; knows no rule and no preference. A head is only ever made new from a language model that
has none: a trained one is loaded as it stands, or refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramo_ray.errors import EngineError, ModelError
from ramo_ray.models.templates import load_tokenizer, pad_token_id
from ramo_ray.settings import DType

HEAD_STD = 0.01
"""Standard deviation of a new head's weights: first outputs near 0, whatever the model's width."""

BATCH_TOKENS = 4096
"""Padded tokens in one forward pass."""


def new_classifier(
    path: Path, labels: Sequence[str], *, dtype: DType, seed: int, problem_type: str | None = None
) -> Any:
    """Load a base with one output for each label.

    A language model gets a new head, drawn from `seed`; a classifier keeps its own. Raises `ModelError` for a
    classifier with another number of outputs, for one whose head is missing, and for a folder without weights.
    """
    config = _config(path)
    trained = _is_classifier(config)
    if trained and config.num_labels != len(labels):
        raise ModelError(
            f"{path}: its head has {config.num_labels} outputs, but {len(labels)} are needed. "
            f"Start from a language model, or from a classifier with {len(labels)} outputs."
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = problem_type
    model, new = _load(path, config, dtype)
    if new and trained:
        raise ModelError(f"{path}: the weights of its head ({', '.join(new)}) are missing; export the model again.")
    _draw_head(model, new, seed)
    return model


def load_classifier(path: Path, *, dtype: DType) -> Any:
    """Load a trained classifier. Raises `ModelError` for a language model, and where weights are missing."""
    config = _config(path)
    if not _is_classifier(config):
        raise ModelError(
            f"{path}: is no classifier but {', '.join(config.architectures or ['a model of unknown kind'])}. "
            "Give the `model` folder of a finished training."
        )
    model, new = _load(path, config, dtype)
    if new:
        raise ModelError(f"{path}: the weights of its head ({', '.join(new)}) are missing; export the model again.")
    return model


def saved_labels(path: Path) -> list[str] | None:
    """The labels of a classifier's outputs, in order; None for a language model."""
    config = _config(path)
    return [config.id2label[index] for index in range(config.num_labels)] if _is_classifier(config) else None


def _config(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: no config.json of a model that transformers knows ({' '.join(str(error).split())[:200]})."
        ) from None


def _is_classifier(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _load(path: Path, config: Any, dtype: DType) -> tuple[Any, list[str]]:
    """The model, and the names of the head's weights where the folder has none."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config.pad_token_id = pad_token_id(load_tokenizer(path))
    with quiet():
        try:
            model, found = AutoModelForSequenceClassification.from_pretrained(
                path,
                config=config,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
            )
        except OSError as error:
            raise ModelError(
                f"{path}: no weights in safetensors format ({' '.join(str(error).split())[:200]})."
            ) from None
    _check_padding(path, model)
    return model, _missing_head(path, model, found)


def _check_padding(path: Path, model: Any) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if model.config.pad_token_id >= rows:
        raise ModelError(
            f"{path}: the pad token {model.config.pad_token_id} is outside the {rows} embeddings of the model. "
            "Choose a pad token that the model knows."
        )


def _missing_head(path: Path, model: Any, found: dict[str, Any]) -> list[str]:
    if found["mismatched_keys"]:
        raise ModelError(f"{path}: weights of other shapes than config.json says: {_names(found['mismatched_keys'])}.")
    body = model.base_model_prefix + "."
    lost = [name for name in found["missing_keys"] if name.startswith(body)]
    if lost:
        raise ModelError(f"{path}: weights of the model are missing: {_names(lost)}. Copy or export the folder again.")
    return sorted(found["missing_keys"])


def _names(keys: Sequence[Any]) -> str:
    names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _draw_head(model: Any, names: Sequence[str], seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name in names:
        weight = model.get_parameter(name)
        drawn = torch.randn(weight.shape, generator=generator) * (HEAD_STD if weight.ndim > 1 else 0.0)
        weight.data.copy_(drawn)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notes off the terminal: what they warn of is checked here, and raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def pad_right(
    token_ids: Sequence[Sequence[int] | NDArray[np.int64]], pad: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask, both [n, longest], padded on the right."""
    longest = max(map(len, token_ids))
    padded = np.full((len(token_ids), longest), pad, dtype=np.int64)
    mask = np.zeros((len(token_ids), longest), dtype=np.int64)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return padded, mask


class Classifier:
    """A trained classifier for inference, on a GPU where there is one.

    `threads` sets torch's threads in this process on CPU; empty leaves them as they are.
    """

    def __init__(self, path: Path, *, dtype: DType = "float32", threads: int | None = None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.path = path
        self.model = load_classifier(path, dtype=dtype).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def context_length(self) -> int:
        """Longest row in tokens."""
        return int(self.model.config.max_position_embeddings)

    def logits(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Outputs [n, labels] at each row's last token, in the order asked.

        Rows of similar length share a forward pass; in float32 a row's outputs are the same within 1e-4 whatever it
        is computed with. Raises `ModelError` for a row that is empty or too long, `EngineError` for one whose
        outputs are not finite.
        """
        self._check(token_ids)
        result = np.empty((len(token_ids), self.model.config.num_labels), dtype=np.float32)
        for rows in _batches([len(ids) for ids in token_ids]):
            result[rows] = self._forward([token_ids[row] for row in rows])
        bad = np.flatnonzero(~np.isfinite(result).all(axis=1))
        if len(bad):
            raise EngineError(
                f"{self.path}: the output for row {bad[0]} ({len(token_ids[bad[0]])} tokens) and {len(bad) - 1} more "
                "is not finite. Load the model in float32, or train it again with a lower learning rate."
            )
        return result

    def _forward(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        import torch

        padded, mask = pad_right(token_ids, self.model.config.pad_token_id)
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(padded).to(self.model.device),
                attention_mask=torch.from_numpy(mask).to(self.model.device),
                use_cache=False,
            )
        logits: NDArray[np.float32] = output.logits.float().cpu().numpy()
        return logits

    def _check(self, token_ids: Sequence[Sequence[int]]) -> None:
        context = self.context_length
        for row, ids in enumerate(token_ids):
            if not 1 <= len(ids) <= context:
                raise ModelError(f"{self.path}: row {row} has {len(ids)} tokens; the model takes 1 to {context}.")


def _batches(lengths: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    """Rows in order of length, cut where a batch's padded size would exceed `BATCH_TOKENS`."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        # Ascending order: the next row is the longest, and so the width, of the batch it would join.
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > BATCH_TOKENS:
            yield order[start:end]
            start = end
