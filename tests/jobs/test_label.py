"""What `label` refuses before it does anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.label import LabelConfig, _check_disjoint
from ramo_ray.errors import ConfigError


def test_splits_that_differ_from_those_of_rate_are_refused_by_key(tmp_path: Path) -> None:
    config = LabelConfig(output=str(tmp_path / "label"), run=str(tmp_path), trios="pairs.jsonl", limit=24)
    _check_disjoint(config)
    with pytest.raises(ConfigError, match="adapter was trained on some of these trios"):
        _check_disjoint(config.model_copy(update={"labelled": "all"}))
    (tmp_path / "rate").mkdir()
    same = config.model_dump(mode="json", include={"trios", "limit", "source", "splits"})
    (tmp_path / "rate/config.json").write_text(json.dumps(same))
    _check_disjoint(config)
    (tmp_path / "rate/config.json").write_text(json.dumps(same | {"limit": 48}))
    with pytest.raises(ConfigError, match=r"`limit` = 24, but .* had 48"):
        _check_disjoint(config)
