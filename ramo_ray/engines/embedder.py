"""Sentence embeddings, for relevance: sim(x, u_i) of equation 12 is the product of two rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ramo_ray.errors import EngineError, ModelError


class Embedder:
    """A sentence-transformers model.

    Args:
        path: the model's folder.
        batch_size: texts that are computed together.
        threads: threads of torch on CPU; None takes all cores.
    """

    def __init__(self, path: Path, *, batch_size: int = 64, threads: int | None = None) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        torch.set_num_threads(threads or os.cpu_count() or 1)
        logging.disable_progress_bar()
        try:
            self.model = SentenceTransformer(str(path), local_files_only=True)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{path}: not loadable as a sentence-transformers model: {reason}") from error
        self.batch_size = batch_size

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts to rows of length 1: float32 [texts, dimensions]. Raises `EngineError` for one that has none.

        Longer texts than the model reads are cut at their end, as sentence-transformers does.
        """
        size = self.model.get_embedding_dimension()
        if not texts:
            return np.zeros((0, size), dtype=np.float32)
        rows: np.ndarray = self.model.encode(
            list(texts),
            batch_size=self.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        ).astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1)
        bad = np.flatnonzero(~np.isclose(lengths, 1.0, atol=1e-3))
        if bad.size:
            raise EngineError(
                f"embedder: no finite embedding for {bad.size} of {len(texts)} texts (first index {bad[0]})."
            )
        return rows
