"""A model's verdicts against its own probabilities, computed token by token without any cache."""

import numpy as np
import pytest
import torch

from tether.errors import JudgeError, UserError
from tether.language.data.fields import Turn
from tether.language.data.templates import Template
from tether.language.judge.causal_lm import CausalLM, exact_words
from tether.language.judge.judges import Asked, Judge, Style
from tether.language.judge.questions import Attribute, Reading
from tether.language.models.language_model import load_model

QUESTION = {"question": "Review: {prompt}{completion}\n", "cue": "Sentiment:"}
PAIR = {"question": "Review 1: {first}\nReview 2: {second}\n", "cue": "Better:"}
SHOTS = [
    {"completion": "a warm film .", "answer": "yes"},
    {"completion": "a dull film .", "answer": "no"},
]
ATTRIBUTE = Attribute.load(
    {
        "name": "positive",
        "pointwise": {**QUESTION, "yes": [" positive"], "no": [" negative"], "shots": SHOTS},
        "pairwise": {**PAIR, "first": [" 1"], "second": [" 2"], "principles": ["Be fair.", "Hm."]},
        "rating": {"question": "{completion}\n", "cue": "Points:", "space": " "},
    }
)
TEXTS = ["a good film", "bad", "what {completion} {{ is }} {% this %}", "it is fine . " * 6]


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def backend(tiny, **options):
    return CausalLM(tiny, "tiny", "digest", **options)


def truth(model, text: str, word: str) -> float:
    """log P(word | text), one row, one forward pass, the whole softmax."""
    template = Template(model.tokenizer, "plain")
    ids, more = template.prompt_ids(text), template.continuation(word, literal=True)
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([ids + more])).logits[0].double()
    steps = logits.log_softmax(-1)[len(ids) - 1 : -1]
    return float(sum(steps[i, token] for i, token in enumerate(more)))


@pytest.mark.parametrize("cache", [True, False])
def test_words_of_several_tokens_have_the_probability_of_all_their_tokens(tiny, cache):
    judge = backend(tiny, cache=cache)
    readings = [Reading((), f"A review of a film, in a few words. Review: {t}") for t in TEXTS]
    judge.share(readings)
    found = judge.answer(readings, ((" positive", " good"), (" negative",)))
    for reading, row in zip(readings, found, strict=True):
        one = np.logaddexp(
            truth(tiny, reading.text, " positive"), truth(tiny, reading.text, " good")
        )
        assert row == pytest.approx([one, truth(tiny, reading.text, " negative")], abs=2e-4)
    # " negative" is two tokens of this model, or the test says nothing.
    assert len(Template(tiny.tokenizer).continuation(" negative")) == 2


def test_ten_is_not_one(tiny):
    words = [(1,), (2,), (1, 0), (1, 0, 0)]
    after = {
        (): {1: np.log([0.5]), 2: np.log([0.2])},
        (1,): {0: np.log([0.4])},
        (1, 0): {0: np.log([0.1])},
    }
    expected = [0.5 - 0.5 * 0.4, 0.2, 0.5 * 0.4 - 0.5 * 0.4 * 0.1, 0.5 * 0.4 * 0.1]
    assert np.exp(exact_words(words, after))[0] == pytest.approx(expected)
    judge = backend(tiny)
    readings = [Reading((), f"Points for this film, from 1 to 10, {t}:") for t in TEXTS]
    sides = tuple((f" {n}",) for n in range(1, 11))
    for reading, row in zip(readings, judge.answer(readings, sides), strict=True):
        one, ten = truth(tiny, reading.text, " 1"), truth(tiny, reading.text, " 10")
        starts = Template(tiny.tokenizer).continuation(" 10")[
            : len(Template(tiny.tokenizer).continuation(" 1"))
        ]
        begins = starts == Template(tiny.tokenizer).continuation(" 1")
        assert np.exp(row[0]) == pytest.approx(np.exp(one) - begins * np.exp(ten), rel=1e-3)
        assert row[9] == pytest.approx(ten, abs=2e-4)


def test_what_is_shared_is_read_once_and_changes_nothing(tiny):
    read = []
    judge = Judge(ATTRIBUTE, "pointwise", backend(tiny), Style(shots=2))
    plain = Judge(ATTRIBUTE, "pointwise", backend(tiny, cache=False), Style(shots=2))
    # The plain Llama model's own forward pass, counted in tokens.
    forward = tiny.backbone.forward

    def counted(**given):
        read.append(given["input_ids"].numel())
        return forward(**given)

    tiny.backbone.forward = counted
    try:
        cached = judge.score([""] * 4, TEXTS)
        tokens, read[:] = sum(read), []
        again = judge.score([""] * 4, TEXTS)
        second, read[:] = sum(read), []
        whole = plain.score([""] * 4, TEXTS)
    finally:
        del tiny.backbone.forward
    assert cached == pytest.approx(whole, abs=1e-4) and np.array_equal(cached, again)
    prefix = len(judge.backend._prefix)
    assert prefix > 20 and tokens == second + prefix
    assert sum(read) >= second + 4 * prefix


def test_a_judge_of_pairs_reads_both_orders(tiny):
    judge = Judge(ATTRIBUTE, "pairwise", backend(tiny))
    one = judge.compare(["", ""], TEXTS[:2], TEXTS[2:])
    other = judge.compare(["", ""], TEXTS[2:], TEXTS[:2])
    assert one + other == pytest.approx([1.0, 1.0], abs=1e-6)
    asked = [Asked("", (TEXTS[0], TEXTS[2])), Asked("", (TEXTS[2], TEXTS[0]))]
    first, second = judge.ask(asked)
    chances = [1 / (1 + np.exp(-found.value)) for found in (first, second)]
    assert one[0] == pytest.approx((chances[0] + 1 - chances[1]) / 2)


def test_a_verdict_is_the_log_odds_and_labels_are_their_difference(tiny):
    judge = Judge(ATTRIBUTE, "pointwise", backend(tiny), temperature=0.5)
    text = "Review: a good film\nSentiment:"
    odds = truth(tiny, text, " positive") - truth(tiny, text, " negative")
    (found,) = judge.ask([Asked("", ("a good film",))])
    assert found.value == pytest.approx(odds, abs=2e-4)
    mass = np.exp(truth(tiny, text, " positive")) + np.exp(truth(tiny, text, " negative"))
    assert found.mass == pytest.approx(mass, rel=1e-3)
    scores = judge.score(["", ""], TEXTS[:2])
    label = judge.compare([""], TEXTS[:1], TEXTS[1:2])
    assert label[0] == pytest.approx(1 / (1 + np.exp(-(scores[0] - scores[1]) / 0.5)))


def test_braces_and_special_tokens_in_texts_are_text(tiny):
    judge = Judge(ATTRIBUTE, "pointwise", backend(tiny), Style(shots=1))
    evil = f"{{prompt}} {{{{x}}}} {tiny.tokenizer.eos_token} {{% raw %}}"
    seen = []
    judge.backend.answer = lambda readings, sides: seen.extend(readings) or []
    judge.ask([Asked("", (evil,))])
    assert seen[0].text.endswith(f"Review: {evil}\nSentiment:")
    ids = Template(tiny.tokenizer).prompt_ids(seen[0].text)
    assert tiny.eos_id not in ids


def test_reasons_depend_on_what_is_asked_and_on_nothing_else(tiny):
    style = Style(reasons=2, reason_tokens=6)
    judge = Judge(ATTRIBUTE, "pointwise", backend(tiny), style)
    together = judge.score([""] * 3, TEXTS[:3])
    alone = judge.score([""], TEXTS[2:3])
    assert alone[0] == pytest.approx(together[2], abs=1e-4)
    other = Judge(ATTRIBUTE, "pointwise", backend(tiny), Style(reasons=2, reason_tokens=6, seed=1))
    assert other.score([""], TEXTS[2:3])[0] != alone[0]
    assert judge.digest != other.digest


def test_self_consistency_averages_probabilities(tiny):
    judge = Judge(ATTRIBUTE, "pointwise", backend(tiny))
    votes = [np.log([0.6, 0.2]), np.log([0.1, 0.3])]
    found = judge._judgement(votes)
    p = (0.75 + 0.25) / 2
    assert found.value == pytest.approx(np.log(p / (1 - p))) and found.mass == pytest.approx(0.6)


def test_a_rating_is_an_expected_value(tiny):
    judge = Judge(ATTRIBUTE, "rating", backend(tiny))
    logs = np.log(np.array([0.0, 0, 0.2, 0, 0, 0, 0, 0, 0.2, 0]) + 1e-30)
    found = judge._judgement([logs])
    assert found.value == pytest.approx(6.0) and found.mass == pytest.approx(0.4)
    assert 1.0 <= judge.score([""], ["fine"])[0] <= 10.0


def test_in_a_conversation_answers_begin_without_a_space(tiny):
    judge = Judge(ATTRIBUTE, "pointwise", backend(tiny), Style(layout="chat"))
    assert judge._sides == (("positive", "Positive"), ("negative", "Negative"))
    (reading,) = [judge._reading(Asked("", ("x",)), "")]
    assert reading.turns == (Turn("user", "Review: x\nSentiment:"),)
    assert np.isfinite(judge.score([""], ["fine"])[0])


def test_principles_are_chosen_by_content(tiny):
    judge = Judge(ATTRIBUTE, "pairwise", backend(tiny), Style(principles=True))
    heads = {judge._head(Asked("", (str(i), "b"))).split("\n")[0] for i in range(20)}
    assert heads == {"Be fair.", "Hm."}


def test_only_so_many_words_are_read(tiny):
    judge = Judge(ATTRIBUTE, "pointwise", backend(tiny), Style(max_words=2))
    assert judge._shortened(" one two  three") == " one two"
    assert judge._shortened("one  two") == "one  two"


def test_a_text_too_long_fails_by_name_and_never_scores(tiny):
    judge = Judge(ATTRIBUTE, "pointwise", backend(tiny))
    long = "word " * 400
    ok, failed = judge.ask([Asked("", ("fine",)), Asked("", (long,))])
    assert isinstance(failed, JudgeError) and not isinstance(ok, JudgeError)
    assert "the context of the judge tiny is 256" in str(failed) and "word word" not in str(failed)
    with pytest.raises(JudgeError, match=r"^row 1: the question takes"):
        judge.score(["", ""], ["fine", long])


def test_words_that_are_the_same_tokens_are_refused(tiny):
    with pytest.raises(UserError, match="' yes' and ' yes' are the same tokens"):
        backend(tiny).answer([Reading((), "a")], ((" yes",), (" yes",)))


def test_a_judge_of_pairs_scores_no_single_text(tiny):
    with pytest.raises(UserError, match="mode is pairwise"):
        Judge(ATTRIBUTE, "pairwise", backend(tiny)).score([""], ["a"])


def test_judges_that_judge_differently_have_different_digests(tiny):
    digests = {
        Judge(ATTRIBUTE, mode, backend(tiny), style).digest
        for mode, style in (
            ("pointwise", Style()),
            ("pointwise", Style(shots=1)),
            ("pointwise", Style(max_words=9)),
            ("pointwise", Style(layout="chat")),
            ("pairwise", Style()),
            ("pairwise", Style(principles=True)),
        )
    }
    assert len(digests) == 6
