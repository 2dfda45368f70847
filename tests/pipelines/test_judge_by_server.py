"""The judge's actor on a server: what it sends by each route, what an error takes along, what is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_server import MODEL, FakeClock, Offer, ScriptedServer, refusal, serving

from jobs.inputs import check_judge, reached
from ramo_ray.core.prompts import RatingTemplate
from ramo_ray.core.rules import make_pool
from ramo_ray.errors import ConfigError, ServerError
from ramo_ray.judging.prompts import JudgePrompts, judge_fingerprint
from ramo_ray.models.templates import encode_chat, load_tokenizer
from ramo_ray.pipelines.rating import RuleJudge
from ramo_ray.pipelines.tables import packed, unpacked
from ramo_ray.settings import GeneratorSettings, JudgeSettings

RULES = ["Accept the response that is polite.", "Accept the response that is short."]
PROMPT = [{"role": "user", "content": "Tell me about bread."}]
RESPONSES = ["Gladly: flour, water, salt, time. é", "No. Bread bores me.", "Why?"]
Judge = Callable[..., dict[str, Any]]


@pytest.fixture
def serve(tiny_model: Path) -> Iterator[Callable[..., tuple[ScriptedServer, Judge]]]:
    with ExitStack() as stack:

        def make(*offers: Offer) -> tuple[ScriptedServer, Judge]:
            server = ScriptedServer(load_tokenizer(tiny_model), offers, FakeClock())
            server.models = [{"id": MODEL, "max_model_len": 4000}]
            url = stack.enter_context(serving(server))

            def settings(**values: Any) -> dict[str, Any]:
                own = {"base_url": url, "model": MODEL, "max_retries": 0, "input_price": 1.0}
                own |= values.pop("openai", {})
                return {"engine": "openai", "model": str(tiny_model), "layout": "rule_last", "openai": own, **values}

            return server, settings

        yield make


def judged(settings: dict[str, Any], batches: int = 1) -> list[dict[str, Any]]:
    conversations = [{"conversation_id": r, "response": r, "done": False} for r in RESPONSES]
    costs = {"calls": 0, "tokens": 0, "seconds": 0.0, "adapter_seconds": 0.0}
    group = {"prompt": PROMPT, "conversations": conversations, "trios": [], **costs}
    judge = RuleJudge(settings, RULES, "all_rules")
    try:
        return [unpacked(judge(packed("groups", [group])))[0] for _ in range(batches)]
    finally:
        judge.engine.close()


def texts() -> list[str]:
    template = RatingTemplate("rule_last", "keep")
    return [template.render(PROMPT, response, rule) for response in RESPONSES for rule in RULES]


def contents(server: ScriptedServer) -> list[str]:
    """What a chat server was sent, but for the question at the start."""
    asked = [asked.body["messages"] for asked in server.asked if "messages" in asked.body]
    return [message["content"] for (message,) in asked if "boil an egg" not in message["content"]]


def scores_of(sent: list[str]) -> list[list[float]]:
    """By hand: P(Yes) − P(No) of what three labels have, for each text that the server was asked about."""
    p = np.exp([[ScriptedServer.logprob_of(text, word) for word in "YNI"] for text in sent])
    return ((p[:, 0] - p[:, 1]) / p.sum(axis=1)).reshape(len(RESPONSES), len(RULES)).tolist()


def test_a_chat_server_is_sent_the_bare_question(serve: Any) -> None:
    server, settings = serve("chat")
    (group,) = judged(settings())

    expected = scores_of(texts())
    for conversation, scores in zip(group["conversations"], expected, strict=True):
        assert conversation["score"] == pytest.approx(scores, abs=1e-6)
        assert conversation["error"] is None
    assert sorted(contents(server)) == sorted(texts())


@pytest.mark.parametrize("route", ["completions", "generative_scoring"])
def test_token_ids_come_with_the_judges_chat_template(serve: Any, tiny_model: Path, route: Offer) -> None:
    server, settings = serve(route)
    (group,) = judged(settings())

    tokenizer = load_tokenizer(tiny_model)
    framed = [encode_chat(tokenizer, [{"role": "user", "content": t}], add_generation_prompt=True) for t in texts()]
    key = "prompt" if route == "completions" else "query"
    _, *sent = [asked.body[key] for asked in server.asked if key in asked.body]
    assert sorted(sent) == sorted(framed * (1 if route == "completions" else 3))
    expected = scores_of([tokenizer.decode(ids) for ids in framed])
    for conversation, scores in zip(group["conversations"], expected, strict=True):
        assert conversation["score"] == pytest.approx(scores, abs=1e-6)


def test_one_conversation_without_an_answer_costs_the_others_nothing(serve: Any) -> None:
    server, settings = serve("chat")
    server.faulty = {"bores": refusal(400, code="content_filter")}
    (group,) = judged(settings())

    good, bad, other = group["conversations"]
    assert (
        bad["error"]
        == "the judge gave no answer: the server refuses the request: HTTP 400 Bad Request (content_filter)"
    )
    assert bad["score"] == bad["rule_ids"] == []
    expected = scores_of(texts())
    assert [good["score"], other["score"]] == [pytest.approx(expected[0]), pytest.approx(expected[2])]
    assert good["error"] is None is other["error"]
    assert sorted(contents(server)) == sorted(texts())
    assert group["calls"] == 4


def test_what_the_server_counted_is_written_once(serve: Any) -> None:
    server, settings = serve("completions")
    groups = judged(settings(openai={"output_price": 2.0}), batches=2)

    def total(name: str) -> float:
        return float(sum(group[name] for group in groups))

    prompt_tokens = sum(len(asked.body["prompt"]) for asked in server.asked)
    # The first batch also bears what was asked at the start.
    assert total("requests") == len(server.paths) > 2 * groups[1]["requests"]
    assert (total("retries"), total("cached_tokens")) == (0, 0)
    assert (total("prompt_tokens"), total("completion_tokens")) == (prompt_tokens, len(server.asked))
    assert total("cost") == pytest.approx((prompt_tokens + 2.0 * len(server.asked)) / 1e6)
    (other,) = judged({"engine": "scripted", "model": settings()["model"], "layout": "rule_last", "max_length": 4000})
    assert other["requests"] is other["cost"] is None


def test_a_server_that_is_gone_ends_the_run(serve: Any) -> None:
    server, settings = serve("completions")
    judge = RuleJudge(settings(), RULES, "all_rules")
    server.always = refusal(503)
    conversations = [{"conversation_id": r, "response": r, "done": False} for r in RESPONSES]
    group = {"prompt": PROMPT, "conversations": conversations, "trios": []}
    with pytest.raises(ServerError, match="answers nothing any more"):
        judge(packed("groups", [group]))
    judge.engine.close()


def test_before_anything_starts_the_server_is_asked_how(serve: Any) -> None:
    pool = make_pool("p", RULES, origin="here")
    server, settings = serve("generative_scoring", "chat")
    judge = JudgeSettings.model_validate(settings())
    checked = check_judge(judge, pool)
    assert checked.settings.openai.route == "generative_scoring"
    assert checked.settings == judge.model_copy(update={"openai": checked.settings.openai})
    server.offers = ("completions",)
    # By token ids is by token ids: the numbers are the same.
    assert check_judge(judge, pool).fingerprint == checked.fingerprint
    server.offers = ("chat",)
    assert check_judge(judge, pool).fingerprint != checked.fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chat_template": False}, r"judge\.chat_template = false, .*can only be asked by chat"),
        ({"method": "number"}, r"judge\.method = number asks for what follows .*three_labels or two_labels"),
    ],
)
def test_what_chat_cannot_be_asked_is_refused(serve: Any, values: dict[str, Any], message: str) -> None:
    _, settings = serve("chat")
    with pytest.raises(ConfigError, match=message):
        check_judge(JudgeSettings.model_validate(settings(**values)), make_pool("p", RULES, origin="here"))


def test_a_writer_needs_a_server_that_takes_token_ids(serve: Any, tiny_model: Path) -> None:
    _, settings = serve("chat")
    values = {key: value for key, value in settings().items() if key != "layout"}
    with pytest.raises(ServerError, match="cannot write responses"):
        reached(GeneratorSettings.model_validate({"name": "one", **values}), tiny_model, writes=True)


def test_the_fingerprint_of_a_served_judge() -> None:
    def of(identity: str = "m", template: str | None = "t", dtype: str = "float32", **openai: Any) -> str:
        own = {"base_url": "http://h/v1", "model": "served", "route": "completions"} | openai
        settings = JudgeSettings.model_validate({"engine": "openai", "dtype": dtype, "openai": own})
        return judge_fingerprint(settings, identity, template)

    found = [
        of(),
        of("n"),
        of(template="u"),
        of(model="other"),
        of(route="chat"),
        of("n", route="chat"),
        judge_fingerprint(JudgeSettings(), "m", "t"),
    ]
    assert len(set(found)) == len(found)
    same = {"base_url": "http://other/v1", "api_key_env": "K", "concurrency": 3, "input_price": 9.0, "timeout_s": 1.0}
    assert of(**same) == of(route="generative_scoring") == of(dtype="bfloat16") == of()
    assert of(template="u", route="chat") == of(route="chat")


def test_prompts_without_a_frame_are_the_text(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    bare = JudgePrompts(tokenizer, JudgeSettings(layout="rule_last"), make_pool("p", RULES, origin="here"), bare=True)
    assert [tokenizer.decode(ids) for ids in bare.ids(PROMPT, RESPONSES[0], [0, 1])] == texts()[:2]
