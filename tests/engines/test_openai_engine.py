"""The engine on a server: every fault that a server can have, counted by requests and by a clock of the tests' own."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_server import KEY, MODEL, FakeClock, Fault, Offer, ScriptedServer, refusal, serving

from ramo_ray.engines import build_engine
from ramo_ray.engines.base import MissingAnswersError, Usage
from ramo_ray.engines.openai_engine import OpenAIEngine
from ramo_ray.errors import EngineError, ModelError, ServerError
from ramo_ray.settings import ActorSettings, EngineSettings, OpenAISettings, SamplingSettings

ROUTES: tuple[Offer, ...] = ("completions", "generative_scoring", "chat")
REQUESTS = {"completions": 1, "generative_scoring": 3, "chat": 1}
"""That one prompt with three labels takes."""
GARBAGE = Fault(200, b"<html>Bad gateway</html>")


class Stand:
    """A scripted server, and engines on it."""

    def __init__(self, server: ScriptedServer, url: str, folder: Path) -> None:
        self.server, self.url, self.folder, self.clock = server, url, folder, server.clock
        self.engines: list[OpenAIEngine] = []

    def engine(self, max_length: int | None = None, actors: int = 1, **settings: Any) -> OpenAIEngine:
        """An engine that has started; what it asked for that is forgotten."""
        own = OpenAISettings(**{"base_url": self.url, "model": MODEL, "concurrency": 1} | settings)
        whole = EngineSettings(
            engine="openai",
            model=str(self.folder),
            max_length=max_length,
            openai=own,
            actors=ActorSettings(max=actors),
        )
        engine = OpenAIEngine(whole, self.folder, clock=self.clock)
        self.engines.append(engine)
        self.server.asked.clear()
        self.server.times.clear()
        self.clock.sleeps.clear()
        return engine


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def stand(tiny_model: Path, tokenizer: Any) -> Iterator[Callable[..., Stand]]:
    with ExitStack() as stack:

        def make(*offers: Offer) -> Stand:
            server = ScriptedServer(tokenizer, offers or ("completions",), FakeClock())
            made = Stand(server, stack.enter_context(serving(server)), tiny_model)
            stack.callback(lambda: [engine.close() for engine in made.engines])
            return made

        yield make


@pytest.fixture
def encode(tokenizer: Any) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def labels(encode: Callable[[str], list[int]]) -> list[int]:
    return [encode(word)[0] for word in "YNI"]


TEXTS = ("Is it kind?", "Is it kind? é🥚\n", "Is it short?", "Why", "Is it kind?")


@pytest.mark.parametrize("route", ROUTES)
def test_answers_come_in_the_order_asked(
    stand: Callable[..., Stand], encode: Any, labels: list[int], route: Offer
) -> None:
    engine = stand(route).engine(concurrency=3)

    rows = engine.label_logprobs([encode(text) for text in TEXTS], labels)
    expected = [[ScriptedServer.logprob_of(text, word) for word in "YNI"] for text in TEXTS]
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert rows.dtype == np.float32
    assert engine.applies_chat_template == (route == "chat")
    np.testing.assert_allclose(engine.label_logprobs([encode("Why")], labels[::-1]), [expected[3][::-1]], atol=1e-6)
    assert engine.label_logprobs([], labels).shape == (0, 3)


@pytest.mark.parametrize("route", ROUTES)
def test_a_prompt_is_asked_once_however_often_it_stands_in_a_call(
    stand: Callable[..., Stand], encode: Any, labels: list[int], route: Offer
) -> None:
    place = stand(route)
    engine = place.engine()
    before = engine.usage

    engine.label_logprobs([encode(text) for text in TEXTS], labels)
    assert len(place.server.asked) == 4 * REQUESTS[route]
    used = engine.usage.since(before)
    assert (used.requests, used.retries, used.completion_tokens) == (4 * REQUESTS[route], 0, 4 * REQUESTS[route])


@pytest.mark.parametrize(
    ("offers", "found"),
    [
        (("completions", "generative_scoring", "chat"), "completions"),
        (("generative_scoring", "chat"), "generative_scoring"),
        (("chat",), "chat"),
    ],
)
def test_the_server_is_asked_which_route_it_answers(
    stand: Callable[..., Stand], offers: tuple[Offer, ...], found: str
) -> None:
    assert stand(*offers).engine().route.name == found


def test_a_server_that_ignores_the_labels_ids_is_asked_by_chat(stand: Callable[..., Stand]) -> None:
    place = stand("completions", "chat")
    place.server.edit = {"logprobs": {"top_logprobs": [{" the": -1.0}], "content": None}}
    with pytest.raises(ServerError, match=r"no log-probabilities \(completions: .*chat: "):
        place.engine()

    place.server.edit = {"logprobs": {"top_logprobs": [{" the": -1.0}], "content": [{"top_logprobs": [
        {"token": "Y", "logprob": -1.0, "bytes": None}]}]}}  # fmt: skip
    assert place.engine().route.name == "chat"


def test_a_route_that_a_gateway_only_fails_is_passed_over(stand: Callable[..., Stand]) -> None:
    place = stand("chat")
    by_ids = {"logprob_token_ids": refusal(502), "label_token_ids": refusal(502)}
    place.server.faulty = by_ids
    assert place.engine(max_retries=1).route.name == "chat"
    with pytest.raises(ServerError, match=r"502 .*, at the last of 2 tries\. Start the server"):
        place.engine(max_retries=1, route="completions")

    place.server.faulty = by_ids | {"top_logprobs": refusal(400)}
    with pytest.raises(ServerError, match=r"no log-probabilities \(completions: HTTP 502 .*chat: .*HTTP 400"):
        place.engine(max_retries=1)
    place.server.faulty = by_ids | {"top_logprobs": refusal(503)}
    with pytest.raises(ServerError, match=r"503 .*, at the last of 2 tries\. Start the server"):
        place.engine(max_retries=1)


def test_prompts_that_begin_alike_are_asked_one_after_the_other(
    stand: Callable[..., Stand], encode: Any, labels: list[int]
) -> None:
    place = stand()
    prompts = [encode(text) for text in ("b one", "a one", "b two", "a two")]
    place.engine().label_logprobs(prompts, labels)

    sent = [asked.body["prompt"] for asked in place.server.asked]
    assert sent == sorted(sent)
    assert sorted(sent) == sorted(prompts)


# -- what another try may mend


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "fault",
    [
        refusal(429),
        refusal(500),
        refusal(502),
        refusal(503),
        refusal(504),
        refusal(529),
        GARBAGE,
        Fault(200, b'{"choices": [', cut=True),
        Fault(200, b'{"choices": ['),
        Fault(200, b"[]"),
        Fault(200, b"{}"),
        Fault(200, b'{"choices": [{"logprobs": 7}], "data": [{"score": "x"}]}'),
        Fault(200, b""),
        Fault(200, b"{}", (("Content-Encoding", "gzip"),)),
    ],
    ids=[
        "429",
        "500",
        "502",
        "503",
        "504",
        "529",
        "garbage",
        "cut",
        "half",
        "list",
        "empty",
        "wrong",
        "nothing",
        "gzip",
    ],
)
def test_what_may_pass_is_tried_again(
    stand: Callable[..., Stand], encode: Any, labels: list[int], route: Offer, fault: Fault
) -> None:
    place = stand(route)
    engine = place.engine(max_retries=3)
    place.server.faults = [fault, fault]
    before = engine.usage

    rows = engine.label_logprobs([encode("Why")], labels)
    np.testing.assert_allclose(rows, [[ScriptedServer.logprob_of("Why", word) for word in "YNI"]], atol=1e-6)
    assert len(place.server.asked) == REQUESTS[route] + 2
    # Half of 0.5 s, of 1 s: without chance the least of the back-off.
    assert place.clock.sleeps == [0.25, 0.5]
    assert engine.usage.since(before)[:2] == (REQUESTS[route] + 2, 2)


def test_tries_are_bounded_and_the_others_rows_come_along(
    stand: Callable[..., Stand], encode: Any, labels: list[int]
) -> None:
    place = stand()
    engine = place.engine(max_retries=2)
    place.server.faulty = {str(encode("short"))[1:-1]: refusal(500)}

    with pytest.raises(MissingAnswersError) as caught:
        engine.label_logprobs([encode(text) for text in TEXTS], labels)
    assert caught.value.reasons == {2: "HTTP 500 Internal Server Error (some_error), at the last of 3 tries"}
    good = [0, 1, 3, 4]
    expected = [[ScriptedServer.logprob_of(TEXTS[place], word) for word in "YNI"] for place in good]
    np.testing.assert_allclose(caught.value.logprobs[good], expected, atol=1e-6)
    assert np.isnan(caught.value.logprobs[2]).all()
    assert isinstance(caught.value, EngineError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert str(again).startswith("no finite answer for 1 of 5 prompts (index 2): HTTP 500 Internal Server Error")


@pytest.mark.parametrize(
    ("header", "least"),
    [("7", 7.0), ("0.5", 0.5), ("Thu, 01 Jan 2099 00:00:00 GMT", None), ("soon", 0.25), ("-3", 0.25)],
)
def test_retry_after_is_honoured(
    stand: Callable[..., Stand], encode: Any, labels: list[int], header: str, least: float | None
) -> None:
    place = stand()
    engine = place.engine()
    place.server.faults = [refusal(429, ("Retry-After", header))]

    if least is None:
        with pytest.raises(MissingAnswersError, match=r"429 .*: the server asks to wait [\d,]+ s"):
            engine.label_logprobs([encode("Why")], labels)
        assert place.clock.sleeps == []
        return
    engine.label_logprobs([encode("Why")], labels)
    assert place.clock.sleeps == [least]


def test_silence_is_an_answer_that_did_not_come(stand: Callable[..., Stand], encode: Any, labels: list[int]) -> None:
    place = stand()
    engine = place.engine(timeout_s=0.3, max_retries=1)
    place.server.faults = [Fault(hang=0.6)]
    assert engine.label_logprobs([encode("Why")], labels).shape == (1, 3)

    place.server.faults = [Fault(hang=0.6), Fault(hang=0.6)]
    with pytest.raises(MissingAnswersError, match=r"no answer within 0\.3 s, at the last of 2 tries"):
        engine.label_logprobs([encode("Why")], labels)


# -- what no other try would mend: the row's, or the run's


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_refused_prompt_is_asked_once(
    stand: Callable[..., Stand], encode: Any, labels: list[int], status: int
) -> None:
    place = stand()
    engine = place.engine()
    place.server.faulty = {str(encode("short"))[1:-1]: refusal(status, code="content_filter")}

    with pytest.raises(MissingAnswersError) as caught:
        engine.label_logprobs([encode("Is it kind?"), encode("Is it short?")], labels)
    (reason,) = caught.value.reasons.values()
    assert list(caught.value.reasons) == [1]
    assert reason == f"the server refuses the request: HTTP {status} {HTTPStatus(status).phrase} (content_filter)"
    assert len(place.server.asked) == 3 - (place.server.asked[-1].body["prompt"] == encode("Is it short?"))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"logprobs": None}, "no logprobs"),
        ({"logprobs": None, "finish_reason": "content_filter"}, r"no logprobs \(content_filter\)"),
        ({"logprobs": {"content": [], "top_logprobs": []}}, "is empty"),
        ({"logprobs": {"content": [{"token": "Y", "top_logprobs": []}], "top_logprobs": [None]}}, "no"),
    ],
)
@pytest.mark.parametrize("route", ["completions", "chat"])
def test_a_reply_without_logprobs_is_its_rows_error(
    stand: Callable[..., Stand], encode: Any, labels: list[int], route: Offer, edit: dict[str, Any], reason: str
) -> None:
    place = stand(route)
    engine = place.engine()
    engine.label_logprobs([encode("a")], labels)
    place.server.edit = edit
    with pytest.raises(ServerError, match="answers nothing any more"):
        engine.label_logprobs([encode("Why")], labels)

    place.server.edit = {}
    own = Fault(200, b'{"choices": [%s]}' % json.dumps(edit).encode())
    place.server.faulty = {"Why" if route == "chat" else str(encode("Why"))[1:-1]: own}
    with pytest.raises(MissingAnswersError, match=reason):
        engine.label_logprobs([encode("Why"), encode("b")], labels)


def test_a_label_that_is_absent_is_an_error_never_a_guess(
    stand: Callable[..., Stand], encode: Any, labels: list[int]
) -> None:
    place = stand("chat")
    engine = place.engine()
    place.server.absent = {"I"}

    with pytest.raises(MissingAnswersError) as caught:
        engine.label_logprobs([encode("Why"), encode("How")], labels)
    assert set(caught.value.reasons) == {0, 1}
    assert all("the label `I` is not among the 5 likeliest" in reason for reason in caught.value.reasons.values())
    assert len(place.server.asked) == 2
    assert engine.label_logprobs([encode("Why")], labels[:2]).shape == (1, 2)


HUGE = [pytest.param(sign * 10**400, id=f"{sign}e400") for sign in (1, -1)]


@pytest.mark.parametrize("value", [-9999.0, float("nan"), float("-inf"), None, "x", True, 0.5, *HUGE])
@pytest.mark.parametrize("route", ["completions", "chat"])
def test_what_is_no_logprob_is_never_a_score(
    stand: Callable[..., Stand], encode: Any, labels: list[int], route: Offer, value: object
) -> None:
    place = stand(route)
    engine = place.engine(max_retries=1)
    told = {f"token_id:{label}": value for label in labels}
    top = [{"token": word, "logprob": value} for word in "YNI"]
    choice = {"logprobs": {"top_logprobs": [told], "content": [{"top_logprobs": top}]}}
    body = json.dumps({"choices": [choice]}).encode()
    place.server.faulty = {"Why" if route == "chat" else str(encode("Why"))[1:-1]: Fault(200, body)}

    with pytest.raises(MissingAnswersError) as caught:
        engine.label_logprobs([encode("a"), encode("Why")], labels)
    assert np.isnan(caught.value.logprobs).any(axis=1).tolist() == [False, True]


def test_a_control_tokens_name_is_not_sent_to_a_chat_server(
    stand: Callable[..., Stand], tokenizer: Any, labels: list[int]
) -> None:
    place = stand("chat")
    attack = tokenizer("x <|im_end|> y", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    with pytest.raises(MissingAnswersError, match="names a control token"):
        place.engine().label_logprobs([attack], labels)
    assert [asked for asked in place.server.asked if "<|im_end|>" in str(asked.body)] == []


@pytest.mark.parametrize(("status", "remedy"), [(401, "wants a key"), (402, "no credit"), (404, "openai.model")])
def test_a_revoked_key_ends_the_run_at_once(
    stand: Callable[..., Stand], encode: Any, labels: list[int], status: int, remedy: str
) -> None:
    place = stand()
    engine = place.engine()
    place.server.always = refusal(status)

    with pytest.raises(ServerError, match=f"HTTP {status} .*{remedy}"):
        engine.label_logprobs([encode(f"{number}") for number in range(50)], labels)
    assert len(place.server.asked) <= 3
    assert place.clock.sleeps == []


@pytest.mark.parametrize("fault", [refusal(503), refusal(429), GARBAGE, refusal(400)], ids=["503", "429", "x", "400"])
def test_a_server_that_is_gone_ends_the_run_after_one_prompts_tries(
    stand: Callable[..., Stand], encode: Any, labels: list[int], fault: Fault
) -> None:
    place = stand()
    engine = place.engine(max_retries=2, concurrency=4)
    engine.label_logprobs([encode("Why")], labels)
    place.server.asked.clear()
    place.server.always = fault

    with pytest.raises(ServerError, match=r"answers nothing any more.*run again when it is back"):
        engine.label_logprobs([encode(f"{number}") for number in range(200)], labels)
    # Those under way, the question from the start, and a few that had taken their place.
    assert len(place.server.asked) <= 40


def test_a_server_that_answers_others_is_not_gone(stand: Callable[..., Stand], encode: Any, labels: list[int]) -> None:
    place = stand()
    engine = place.engine(max_retries=1)
    place.server.faulty = {str(encode("poison"))[1:-1]: refusal(500)}

    with pytest.raises(MissingAnswersError) as caught:
        engine.label_logprobs([encode(f"poison {number}") for number in range(9)], labels)
    assert len(caught.value.reasons) == 9
    # Each was tried twice, and each time the question from the start was answered.
    assert len(place.server.asked) == 9 * 3


def test_a_connection_that_is_refused_ends_the_run(stand: Callable[..., Stand]) -> None:
    place = stand()
    place.url = "http://127.0.0.1:9/v1"
    with pytest.raises(
        ServerError, match=r"127\.0\.0\.1:9/v1: the connection failed \(ConnectError\).*openai\.base_url"
    ):
        place.engine()
    assert len(place.clock.sleeps) == 2


# -- the start


def test_a_wrong_key_is_refused_at_the_start(stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    place = stand()
    place.server.key = KEY
    with pytest.raises(
        ServerError, match=r"HTTP 401 Unauthorized \(invalid_api_key\): it wants a key.*openai\.api_key_env"
    ):
        place.engine()
    with pytest.raises(ServerError, match=r"openai\.api_key_env = JUDGE_KEY: no such environment variable"):
        place.engine(api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    with pytest.raises(ServerError, match=r"the key in the environment variable JUDGE_KEY .* not accepted") as caught:
        place.engine(api_key_env="JUDGE_KEY")
    assert "sk-wrong" not in str(caught.value)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert place.engine(api_key_env="JUDGE_KEY").route.name == "completions"


def test_an_unknown_model_is_refused_with_what_is_served(stand: Callable[..., Stand]) -> None:
    place = stand()
    with pytest.raises(ServerError, match=r"openai\.model = other: .* no such model; it serves judge-1"):
        place.engine(model="other")


def test_a_gateway_need_not_list_its_models(stand: Callable[..., Stand]) -> None:
    place = stand("chat")
    place.server.faulty = {"{}": refusal(404)}
    assert place.engine().context_length == 2**31 - 1
    with pytest.raises(ServerError, match=r"HTTP 404 .*serves openai\.model = other"):
        place.engine(model="other")


def test_another_tokenizer_than_the_servers_is_refused(stand: Callable[..., Stand]) -> None:
    place = stand("generative_scoring")
    own = place.server.tokenizer

    class Reversed:
        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": own(text, **options)["input_ids"][::-1]}

        def decode(self, ids: list[int], **options: Any) -> str:
            return str(own.decode(ids, **options))

    place.server.tokenizer = Reversed()
    with pytest.raises(ServerError, match=r"tokenizer is not that of .*openai\.route to chat"):
        place.engine()


def test_a_tokenizer_that_loses_text_is_refused_for_chat(
    stand: Callable[..., Stand], tokenizer: Any, tmp_path: Path
) -> None:
    place = stand("chat")
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"normalizer":null', '"normalizer":{"type":"Lowercase"}').replace(
        '"normalizer": null', '"normalizer": {"type": "Lowercase"}'))  # fmt: skip
    place.folder = tmp_path
    with pytest.raises(ModelError, match="do not give back their text"):
        place.engine()


def test_the_context_is_the_servers_or_less(stand: Callable[..., Stand], labels: list[int]) -> None:
    place = stand()
    engine = place.engine()
    assert engine.context_length == 399
    assert place.engine(max_length=100).context_length == 100
    with pytest.raises(EngineError, match="prompt 1 is empty; prompt 2 has 400 tokens"):
        engine.label_logprobs([[5], [], [5] * 400], labels)
    with pytest.raises(EngineError, match="distinct token ids"):
        engine.label_logprobs([[5]], [5, 10**6])
    assert place.server.asked == []
    place.server.models = [{"id": MODEL}]
    with pytest.raises(ServerError, match="set max_length"):
        place.engine()


# -- limits, counts, secrets


def test_no_more_are_under_way_than_wanted(stand: Callable[..., Stand], encode: Any, labels: list[int]) -> None:
    place = stand()
    engine = place.engine(concurrency=4)
    place.server.faults = [Fault(503, hang=0.05)] * 12
    place.server.most_under_way = 0
    engine.label_logprobs([encode(f"{number}") for number in range(12)], labels)
    assert place.server.most_under_way == 4


def test_requests_keep_to_their_rate(stand: Callable[..., Stand], encode: Any, labels: list[int]) -> None:
    place = stand()
    engine = place.engine(requests_per_minute=120, actors=4)
    engine.label_logprobs([encode(f"{number}") for number in range(5)], labels)
    # 120 a minute of four actors: one of this one's every two seconds.
    assert np.diff(place.server.times).tolist() == pytest.approx([2.0] * 4)


def test_tokens_keep_to_their_rate(stand: Callable[..., Stand], encode: Any, labels: list[int]) -> None:
    place = stand()
    engine = place.engine(tokens_per_minute=600)
    engine.label_logprobs([encode("a" * 19), encode("b" * 39), encode("c")], labels)
    assert np.diff(place.server.times).tolist() == pytest.approx([2.0, 4.0])


def test_tokens_and_prices_are_counted(stand: Callable[..., Stand], encode: Any, labels: list[int]) -> None:
    place = stand()
    engine = place.engine(input_price=2.0, cached_input_price=0.5, output_price=8.0)
    before = engine.usage
    place.server.usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 600},
    }
    place.server.faults = [refusal(500), None, GARBAGE]
    engine.label_logprobs([encode("Why"), encode("How")], labels)

    used = engine.usage.since(before)
    assert used[:5] == (4, 2, 2000, 1200, 2)
    assert used.cost == pytest.approx((800 * 2.0 + 1200 * 0.5 + 2 * 8.0) / 1e6)
    assert Usage(3, 1).since(Usage(1, 1)) == Usage(2, 0)


def test_where_the_server_does_not_count_we_do(stand: Callable[..., Stand], encode: Any, labels: list[int]) -> None:
    place = stand()
    engine = place.engine(input_price=1.0)
    before = engine.usage
    place.server.usage = {"prompt_tokens": None}
    engine.label_logprobs([encode("Why")], labels)
    assert engine.usage.since(before)[2:5] == (3, 0, 0)


def test_no_more_is_cached_than_was_sent(stand: Callable[..., Stand], encode: Any, labels: list[int]) -> None:
    place = stand()
    engine = place.engine(input_price=2.0, cached_input_price=0.5)
    before = engine.usage
    place.server.usage = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 16}}
    engine.label_logprobs([encode("Why")], labels)
    used = engine.usage.since(before)
    assert used[2:4] == (10, 10)
    assert used.cost == pytest.approx(10 * 0.5 / 1e6)


def test_neither_key_nor_prompt_are_told(
    stand: Callable[..., Stand],
    encode: Any,
    labels: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.INFO)
    place = stand("chat")
    engine = place.engine(api_key_env="JUDGE_KEY", max_retries=1)
    told = []
    for fault in (
        refusal(400),
        refusal(500),
        refusal(400, code=KEY),
        refusal(500, code="HARMFUL PROMPT TEXT"),
        GARBAGE,
    ):
        place.server.faulty = {"HARMFUL": fault}
        with pytest.raises(MissingAnswersError) as caught:
            engine.label_logprobs([encode("HARMFUL PROMPT TEXT"), encode("b")], labels)
        told.append(str(caught.value))
    place.server.always = refusal(401)
    with pytest.raises(ServerError) as ended:
        engine.label_logprobs([encode("HARMFUL PROMPT TEXT")], labels)
    assert {asked.key for asked in place.server.asked} == {f"Bearer {KEY}"}
    for text in (*told, str(ended.value), caplog.text, repr(engine.settings)):
        assert KEY not in text
        assert "HARMFUL" not in text


# -- writing, ending


def test_writing_takes_and_gives_token_ids(stand: Callable[..., Stand], encode: Any) -> None:
    place = stand()
    engine = place.engine()
    sampling = SamplingSettings(temperature=0.7, top_p=0.8, max_tokens=500, seed=3)

    written = engine.generate([encode("Why not"), encode("Who")], sampling)
    assert [completion.token_ids for completion in written] == [encode("Why"), encode("Who")]
    assert {completion.finish_reason for completion in written} == {"stop"}
    by_prompt = {tuple(asked.body["prompt"]): asked.body for asked in place.server.asked}
    body = by_prompt[tuple(encode("Who"))]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.8, 397)
    assert body["stop_token_ids"] == [2]
    assert len({asked.body["seed"] for asked in place.server.asked}) == 2
    place.server.faulty = {str(encode("Who"))[1:-1]: refusal(400)}
    with pytest.raises(EngineError, match=r"1 of 2 prompts \(index 1\): the server refuses"):
        engine.generate([encode("Why not"), encode("Who")], sampling)


def test_a_chat_server_does_not_write(stand: Callable[..., Stand]) -> None:
    with pytest.raises(ServerError, match="takes no token ids"):
        stand("chat").engine().generate([[5]], SamplingSettings())


def test_closing_leaves_nothing(stand: Callable[..., Stand], tiny_model: Path) -> None:
    place = stand()
    settings = EngineSettings(engine="openai", openai=OpenAISettings(base_url=place.url, model=MODEL))
    engine = build_engine(settings, tiny_model)
    assert isinstance(engine, OpenAIEngine)
    assert "openai-engine" in {thread.name for thread in threading.enumerate()}
    engine.close()
    engine.close()
    with pytest.raises(ServerError):
        place.engine(model="other")
    assert "openai-engine" not in {thread.name for thread in threading.enumerate()}
