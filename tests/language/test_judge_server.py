"""A judge at a real server on this machine: right when it answers, never a score when it fails."""

import socket
import time

import numpy as np
import pytest
from judge_server import ChatServer

from tether.errors import JudgeError, UserError
from tether.language.judge.causal_lm import CausalLM
from tether.language.judge.judges import Asked, Judge, Style
from tether.language.judge.opening import open_judge
from tether.language.judge.questions import Attribute
from tether.language.judge.server import Connection, Server, ServerError
from tether.language.models.language_model import load_model

# Words that are one token each for the tiny model.
ATTRIBUTE = Attribute.load(
    {
        "name": "liked",
        "pointwise": {"question": "{completion}\n", "cue": "Is it", "yes": ["y"], "no": ["n"]},
    }
)
TEXTS = ["a good film", "bad", "{{ x }} {y}"]
EVERYTHING = 4096


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture
def chat(tiny):
    server = ChatServer(tiny)
    with server.running() as server.url:
        yield server


def judge(chat, **options):
    options = {"top_logprobs": EVERYTHING, "pause": 0.01, "retries": 2, **options}
    return Judge(ATTRIBUTE, "pointwise", Server(Connection(chat.url, **options)))


def test_a_server_and_the_same_model_here_agree(chat, tiny):
    here = Judge(ATTRIBUTE, "pointwise", CausalLM(tiny, "tiny", ""), Style(layout="chat"))
    found = judge(chat)
    asked = [Asked("", (text,)) for text in TEXTS]
    mine, theirs = here.ask(asked), found.ask(asked)
    # The server's list has tokens with a space too, whose words are the same.
    for one, other in zip(mine, theirs, strict=True):
        assert other.mass >= one.mass - 1e-6
    assert found.backend.name == "tiny" and found.name == "tiny/liked/pointwise-0"
    assert found.backend.cost.requests == 4 and found.backend.cost.retries == 0
    assert found.backend.cost.prompt_tokens > 0 and found.backend.cost.completion_tokens == 3
    assert chat.requests[0]["messages"][0]["content"].startswith(tuple(TEXTS))
    body = chat.requests[0]
    assert body["logprobs"] and body["max_tokens"] == 1 and body["model"] == "served/tiny"


def test_log_odds_are_those_of_the_listed_tokens(chat):
    backend = judge(chat).backend
    listed = [("Y", -1.0), (" y", -2.0), ("n", -3.0), ("other", -0.5)]
    found = backend._of_sides(listed, (("y",), ("n",)))
    assert found == pytest.approx([np.logaddexp(-1.0, -2.0), -3.0])
    # What is not listed is bounded by the least that is, and by what is left.
    found = backend._of_sides([("y", np.log(0.9)), ("z", np.log(0.08))], (("y",), ("n",)))
    assert found == pytest.approx([np.log(0.9), np.log(0.02)])


@pytest.mark.parametrize("fault", [429, 500, 503, "nonsense", "list", "half"])
def test_what_may_pass_is_asked_again(chat, fault):
    found = judge(chat)
    expected = found.score([""], TEXTS[:1])
    chat.faults = [fault, fault]
    assert found.score([""], TEXTS[:1]) == pytest.approx(expected)
    assert found.backend.cost.retries == 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (429, "limits the rate: status 429"),
        (500, "fails: status 500"),
        ("nonsense", "answered something that is not JSON"),
        ("half", "cannot be reached"),
    ],
)
def test_what_stays_wrong_is_an_error_and_no_score(chat, fault, said):
    found = judge(chat)
    chat.faults = [fault] * 3
    (failure,) = found.ask([Asked("", ("secret",))])
    assert isinstance(failure, JudgeError) and said in str(failure) and "3 times" in str(failure)
    assert "secret" not in str(failure) and "\n" not in str(failure)


def test_a_server_that_is_slow_runs_into_the_timeout(chat):
    found = judge(chat, timeout=0.2, retries=0)
    chat.faults = ["slow"]
    (failure,) = found.ask([Asked("", ("a",))])
    assert "did not answer within 0.2 seconds" in str(failure)


def test_the_servers_own_pause_is_kept(chat):
    found = judge(chat)
    chat.faults, chat.retry_after = [429], "0.3"
    began = time.monotonic()
    found.score([""], ["a"])
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(
    ("fault", "said"),
    [("strange", "malformed top_logprobs"), ("nan", "invalid log-probabilities")],
)
def test_probabilities_that_are_none_fail_for_this_text_alone(chat, fault, said):
    found = judge(chat, concurrency=1)
    chat.faults = [fault]
    failure, good = found.ask([Asked("", ("a",)), Asked("", ("b",))])
    assert said in str(failure) and not isinstance(good, JudgeError)
    chat.faults = [400]
    failure, good = found.ask([Asked("", ("secret",)), Asked("", ("b",))])
    assert "refuses with status 400 (refused)" in str(failure)
    assert "secret" not in str(failure) and not isinstance(good, JudgeError)


def test_a_server_without_log_probabilities_is_asked_no_more(chat):
    found = judge(chat, concurrency=1)
    chat.faults = ["no log-probabilities"]
    failures = found.ask([Asked("", (text,)) for text in TEXTS])
    assert all(isinstance(one, ServerError) for one in failures) and len(chat.requests) == 1
    assert "gives no log-probabilities (top_logprobs) for 'served/tiny'" in str(failures[0])


def test_keys_come_from_the_environment_and_a_refusal_ends_the_asking(chat, monkeypatch):
    monkeypatch.setenv("MY_KEY", "abc")
    found = judge(chat, key_variable="MY_KEY", concurrency=1)
    chat.faults = [401]
    failures = found.ask([Asked("", ("a",)), Asked("", ("b",))])
    assert chat.keys == ["Bearer abc"] and "status 401" in str(failures[1])
    with pytest.raises(UserError, match="no such environment variable"):
        judge(chat, key_variable="NO_SUCH_KEY")


def test_a_server_that_is_down_is_named_at_once():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{place.getsockname()[1]}"
    with pytest.raises(UserError, match=rf"the server {url}/v1 cannot be reached: .*2 times"):
        Server(Connection(url, retries=1, pause=0.01))


def test_a_server_with_several_models_wants_one_chosen(chat):
    chat.models = ["a", "b"]
    with pytest.raises(UserError, match="has a, b; choose one with --server-model"):
        judge(chat)
    assert judge(chat, model="b").backend.name == "b"
    chat.models = []
    with pytest.raises(UserError, match="names no model"):
        judge(chat)


def test_answer_words_that_a_first_token_cannot_tell_are_refused(chat):
    ten = Attribute.load({"name": "x", "rating": {"question": "{completion}", "cue": "?"}})
    with pytest.raises(UserError, match="'1' begins '10'"):
        Judge(ten, "rating", judge(chat).backend).score([""], ["a"])
    backend = judge(chat).backend
    with pytest.raises(JudgeError, match=r"are several tokens of 'served/tiny' .*'po'"):
        backend._of_sides([("po", -0.1), ("z", -3.0)], ((" positive",), (" negative",)))
    with pytest.raises(JudgeError, match="none of the answer words negative, positive is among"):
        backend._of_sides([("x", -0.1)], ((" positive",), (" negative",)))


def test_reasons_are_told_before_the_verdict(chat):
    found = Judge(
        ATTRIBUTE,
        "pointwise",
        judge(chat).backend,
        Style(reasons=2, reason_tokens=5),
    )
    assert np.isfinite(found.score([""], ["a film"])[0])
    assert [body["max_tokens"] for body in chat.requests] == [5, 5, 1, 1]
    told = chat.requests[-1]["messages"]
    assert [one["role"] for one in told] == ["user", "assistant", "user"]
    assert told[-1]["content"] == "Is it"
    assert len({body["seed"] for body in chat.requests[:2]}) == 2


def test_settings_of_a_server_do_not_belong_to_a_model_here(chat):
    with pytest.raises(UserError, match="server_model is 'x', and the model 'tiny' is no server"):
        open_judge("tiny", server_model="x")
    opened = open_judge(chat.url, "positive", retries=0)
    assert opened.name == "tiny/positive/pointwise-4"
