"""What is learnt of a server before anything is asked of it: that it is there, its model, its route, its tokenizer."""

from __future__ import annotations

from typing import Any, NamedTuple

from ramo_ray.engines.base import TokenIds
from ramo_ray.engines.openai_client import (
    Client,
    ExhaustedError,
    NotServedError,
    RequestError,
    Sent,
    UnreadableError,
)
from ramo_ray.engines.openai_routes import Route, find_route
from ramo_ray.errors import ModelError, ServerError

PROBE = "How do I boil an egg?\n\n  (Für 2,5 Minuten – “weich”: 水煮蛋 🥚!)\tIt's 100.75°C , isn't it ?"
UNBOUNDED = 2**31 - 1
"""Context of a chat server that does not tell its own: it refuses what is too long."""


class Server(NamedTuple):
    """A server that was found to answer. `probe_ids` is the question that it answered."""

    route: Route
    context_length: int
    probe_ids: TokenIds


async def inspect_server(client: Client, tokenizer: Any, max_length: int | None) -> Server:
    """Find out how a server can be asked.

    Raises:
        ServerError: it is not there, refuses the key, lacks the model, tells no log-probabilities, or has another
            tokenizer than ours, where token ids would be sent. ModelError: our tokenizer loses text, for chat.
    """
    told = await _context(client)
    ids = list(tokenizer(PROBE, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    route = await find_route(client, tokenizer, ids, ids[:2])
    if route.templated:
        _check_codec(tokenizer, ids)
        return Server(route, max_length or told or UNBOUNDED, ids)
    await _check_same_tokenizer(client, tokenizer, ids)
    # A server keeps room for the token whose probability is asked.
    lengths = [length for length in (max_length, told and told - 1) if length]
    if not lengths:
        raise ServerError(f"{client.settings.base_url} does not tell its model's context; set max_length.")
    return Server(route, min(lengths), ids)


async def _context(client: Client) -> int | None:
    """The model's context, where the server tells it; checks on the way that it is there and has the model."""
    own = client.settings
    try:
        models = await client.get(client.path("models"), _models)
    except ExhaustedError as error:
        raise ServerError(f"{own.base_url}: {error}. Start the server, or correct openai.base_url.") from None
    except (NotServedError, RequestError):
        # Not every gateway lists its models; the route's first question tells whether it has this one.
        return None
    if own.model not in models:
        some = ", ".join(sorted(models)[:5]) or "none"
        raise ServerError(f"openai.model = {own.model}: {own.base_url} has no such model; it serves {some}.")
    return models[own.model]


def _check_codec(tokenizer: Any, ids: TokenIds) -> None:
    if tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) != PROBE:
        raise ModelError(
            f"{tokenizer.name_or_path}: token ids of this tokenizer do not give back their text, which a chat server "
            "must be sent. Leave judge.model at its default: for chat any byte-level tokenizer will do."
        )


async def _check_same_tokenizer(client: Client, tokenizer: Any, ids: TokenIds) -> None:
    own = client.settings
    remedy = (
        f"Give as `model` the folder or hub id of what {own.base_url} serves as {own.model}, or set openai.route to "
        "chat."
    )
    body = {"model": own.model, "prompt": PROBE, "add_special_tokens": False}
    try:
        theirs = await client.post(Sent("tokenize", body), _tokens)
    except (RequestError, NotServedError) as error:
        raise ServerError(
            f"whether the server's tokenizer is ours cannot be seen (tokenize: {error}). {remedy}"
        ) from None
    if theirs != ids:
        raise ServerError(f"the server's tokenizer is not that of {tokenizer.name_or_path}. {remedy}")


def _models(reply: Any) -> dict[str, int | None]:
    """Names of the served models, with their contexts where told."""
    data = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(data, list) or not all(isinstance(card, dict) and "id" in card for card in data):
        raise UnreadableError("a list of models")
    lengths = {str(card["id"]): card.get("max_model_len") for card in data}
    return {name: length if isinstance(length, int) else None for name, length in lengths.items()}


def _tokens(reply: Any) -> list[int]:
    tokens = reply.get("tokens") if isinstance(reply, dict) else None
    if not isinstance(tokens, list):
        raise UnreadableError("tokens")
    return tokens
