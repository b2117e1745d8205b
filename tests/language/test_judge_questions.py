"""What a judge is asked: files that are refused in one line, and templates filled in one pass."""

from pathlib import Path

import pytest

from tether.errors import UserError
from tether.language.judge.judges import Judge, Style
from tether.language.judge.questions import ATTRIBUTES, FIELDS, as_text, fill, open_attribute

GOOD = """
name = "short"
[pointwise]
question = "Text: {completion}\\n"
cue = "Short:"
yes = [" yes"]
no = [" no"]
[[pointwise.shots]]
completion = "ok"
answer = "yes"
"""


def attribute(tmp_path: Path, text: str):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return open_attribute(path)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_of_the_package_asks_in_every_mode(name):
    found = open_attribute(name)
    assert found.name == name
    for mode in FIELDS:
        assert found.question(mode).cue


def test_what_is_filled_in_is_never_looked_at_again():
    values = {"first": "{second} {{ x }} {% if %} {", "second": "}} {first}"}
    assert fill("{first}|{second}|{{a}}", values) == "{second} {{ x }} {% if %} {|}} {first}|{a}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{completion}", "{answer}", r"has the field \{answer\}; expected \{prompt\}, \{compl"),
        ("Text: {completion}", "Text: {prompt}", r"question lacks the field \{completion\}"),
        ("Text: {completion}", "Text { {completion}", "has a single '{'; expected a field"),
        ("Text: {completion}", "Text } {completion}", "has a single '}'"),
        ('yes = [" yes"]', "", "has no answer words yes"),
        ('no = [" no"]', 'no = ["yes "]', "the answer word 'yes' is given twice"),
        ('no = [" no"]', 'no = [" "]', "an answer word is empty"),
        ('answer = "yes"', 'answer = "maybe"', "shot 1 has the answer 'maybe'; expected yes or no"),
        ('completion = "ok"', "", "shot 1 has no completion"),
        ('cue = "Short:"', "", "'pointwise.cue' is missing"),
        ("[pointwise]", "[pointwise]\nquestoin = 'x'", "unknown key 'pointwise.questoin'"),
        ("[pointwise]", "[pointwise", "is not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_asked_from_is_refused(tmp_path, old, new, said):
    assert attribute(tmp_path, GOOD).name == "short"
    assert old in GOOD
    with pytest.raises(UserError, match=said) as error:
        attribute(tmp_path, GOOD.replace(old, new, 1))
    assert "\n" not in str(error.value) and "mine.toml" in str(error.value)


def test_what_is_no_attribute_is_refused_with_the_closest():
    with pytest.raises(UserError, match="did you mean 'harmless'"):
        open_attribute("harmles")
    with pytest.raises(UserError, match="known: positive, harmless, helpful"):
        open_attribute("/nowhere/x.toml")


def test_a_mode_or_style_that_the_file_does_not_have_is_refused(tmp_path):
    found = attribute(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"no table \[pairwise\]; it has pointwise"):
        found.question("pairwise")
    with pytest.raises(UserError, match="shots is 2, and the attribute 'short' has 1"):
        Judge.check(found, "pointwise", Style(shots=2))
    with pytest.raises(UserError, match="principles is asked for"):
        Judge.check(found, "pointwise", Style(principles=True))
    with pytest.raises(UserError, match="has no questions"):
        attribute(tmp_path, 'name = "x"')


def test_a_conversation_becomes_a_transcript():
    from tether.language.data.fields import Turn

    turns = (Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Yes?"))
    assert as_text(turns) == "System: Be kind.\n\nHuman: Hi\n\nAssistant: Yes?"
    assert as_text("as it is") == "as it is"
