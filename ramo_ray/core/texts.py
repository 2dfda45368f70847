"""What makes a text unusable, whoever wrote it. Reasons never quote the text, which may be harmful."""

from __future__ import annotations


def text_fault(text: object) -> str | None:
    """Say why a value cannot be read as text by a tokenizer and stored as UTF-8, or None if it can.

    An empty or blank text is no fault here: it depends on the place whether one may stand there.
    """
    if text is None:
        return "is missing"
    if not isinstance(text, str):
        return f"is not a string but a {type(text).__name__}"
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is no character"
    return None
