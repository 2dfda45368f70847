"""Who may ask: tokens in a file that changes while the server runs."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.errors import ConfigError
from ramo_ray.serving import tokens
from ramo_ray.serving.tokens import TokenFile

ONE, OTHER = secrets.token_urlsafe(), secrets.token_urlsafe()


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# of the trainers\n{ONE}\n\n{OTHER}\n")
    return path


def test_any_of_the_tokens_opens_and_nothing_else(file: Path) -> None:
    own = TokenFile(file)
    for token in (ONE, OTHER):
        assert own.allows(f"Bearer {token}")
        assert own.allows(f"bearer  {token} ")
        assert own.allows(basic(token))
    for wrong in ("", ONE, f"Bearer {ONE[:-1]}", f"Bearer {ONE}x", "Bearer ", "Basic %%%", "Basic /w==", basic("")):
        assert not own.allows(wrong)
    assert not own.allows("Bearer # of the trainers")


@given(
    st.sampled_from(["", "Basic ", "Bearer ", "basic  "]),
    st.text() | st.binary().map(base64.b64encode).map(bytes.decode),
)
def test_no_header_breaks_it(scheme: str, rest: str) -> None:
    header = scheme + rest
    own = TokenFile.__new__(TokenFile)
    own._tokens, own._looked = [ONE.encode()], float("inf")
    assert not own.allows(header)


def test_tokens_are_changed_without_a_restart(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LOOK_S", 0.0)
    own, fresh = TokenFile(file), secrets.token_urlsafe()
    file.write_text(f"{OTHER}\n{fresh}\n")
    assert own.allows(f"Bearer {fresh}")
    assert own.allows(f"Bearer {OTHER}")
    assert not own.allows(f"Bearer {ONE}")
    # What is too short is no token, and none is nobody's.
    file.write_text(f"{fresh}\nshort\n")
    assert own.allows(f"Bearer {fresh}")
    assert not own.allows(f"Bearer {OTHER}")
    assert not own.allows("Bearer short")
    # A file that is gone revokes nothing: perhaps its disk is.
    file.unlink()
    assert own.allows(f"Bearer {fresh}")
    file.write_text("")
    assert not own.allows(f"Bearer {fresh}")
    replacement = file.with_name("new")
    replacement.write_text(f"{ONE}\n")
    os.replace(replacement, file)
    assert own.allows(f"Bearer {ONE}")
    assert not own.allows(f"Bearer {fresh}")


@pytest.mark.parametrize(
    ("text", "sentence"), [("\n# none\n", "holds no token"), ("short\n", "line 1 has fewer than 16 characters")]
)
def test_a_file_that_guards_nothing_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        TokenFile(file)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        TokenFile(tmp_path / "nowhere")
