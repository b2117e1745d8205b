"""From text to tokens: boundaries, what of a conversation is learned, and templates that lie."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_texts import CHAT, bpe
from transformers import PreTrainedTokenizerFast

from tether.errors import UserError
from tether.language.data.fields import Turn
from tether.language.data.templates import Dialogue, Template

TURNS = (
    Turn("system", "one two"),
    Turn("user", "Is the answer 42?"),
    Turn("assistant", "yes, the answer is 42"),
    Turn("user", "Is it?"),
    Turn("assistant", "no"),
)


def merging() -> PreTrainedTokenizerFast:
    """A tokenizer whose merges cross any boundary they can: a + b is ab, ab + c is abc."""
    words = ["<eos>", "a", "b", "c", " ", "ab", "abc", "\n"]
    vocabulary = {word: index for index, word in enumerate(words)}
    model = models.BPE(vocabulary, [("a", "b"), ("ab", "c")])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="<eos>")


def spacing(scheme: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before every text, as SentencePiece's do."""
    words = [
        "<eos>",
        "<unk>",
        "▁the",
        "▁answer",
        "▁is",
        "▁",
        "42",
        "▁42",
        "\n",
        ".",
        "|",
        "a",
        "▁a",
    ]
    vocabulary = [(word, -float(index)) for index, word in enumerate(words)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_merges_never_cross_from_the_prompt_into_the_answer() -> None:
    tokenizer = merging()
    template = Template(tokenizer)
    joined = tokenizer("ab" + "c")["input_ids"]
    apart = template.prompt_ids("ab") + template.completion_ids("ab", "c")
    assert tokenizer.convert_ids_to_tokens(joined) == ["abc"]
    assert tokenizer.convert_ids_to_tokens(apart) == ["ab", "c", "<eos>"]


def test_a_prompt_without_a_space_and_an_answer_that_begins_with_one() -> None:
    template = Template(bpe())
    prompt, answer = "The answer is", " 42."
    ids = template.prompt_ids(prompt)
    # What the model is given in use does not depend on how it will answer.
    assert ids == bpe()(prompt)["input_ids"]
    said = template.completion_ids(prompt, answer)
    assert said[-1] == bpe().eos_token_id
    assert template.decode(said) == answer
    # A trailing space belongs to the prompt, and stays there.
    assert template.prompt_ids("The answer is ")[:-1] == ids
    assert template.decode(template.completion_ids("The answer is ", "42.")) == "42."


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_no_space_is_put_before_an_answer(scheme: str) -> None:
    tokenizer = spacing(scheme)
    template = Template(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens
    assert tokens(template.prompt_ids("the answer is")) == ["▁the", "▁answer", "▁is"]
    assert tokens(template.completion_ids("", " 42")) == ["▁42", "<eos>"]
    assert tokens(template.completion_ids("", "42"))[-2:] == ["42", "<eos>"]
    assert "▁42" not in tokens(template.completion_ids("", "42"))


def test_an_empty_prompt_still_gives_the_first_token_something_to_follow() -> None:
    tokenizer = bpe()
    assert Template(tokenizer).prompt_ids("") == [tokenizer.bos_token_id]
    assert Template(merging()).prompt_ids("") == [merging().eos_token_id]


def test_names_of_special_tokens_are_text_in_plain_texts() -> None:
    tokenizer = bpe()
    template = Template(tokenizer)
    ids = template.prompt_ids("<eos> and <bos>") + template.completion_ids("", "<eos>")
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def by_characters(tokenizer: Any, text: str, spoken: list[tuple[int, int]]) -> list[bool]:
    """An independent account of what is learned: tokens that lie in the answers' characters."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        any(start <= first and last <= end for start, end in spoken)
        for first, last in encoded["offset_mapping"]
    ]


def test_only_what_the_assistant_says_is_learned() -> None:
    tokenizer = bpe(CHAT)
    prompt, completion, learned = Template(tokenizer).conversation(TURNS)
    text = (
        "<bos>[system]\none two\n[user]\nIs the answer 42?\n[assistant]\nyes, the answer is 42<eos>"
        "\n[user]\nIs it?\n[assistant]\nno<eos>"
    )
    spoken = []
    for answer in ("yes, the answer is 42<eos>", "no<eos>"):
        start = text.index(answer)
        spoken.append((start, start + len(answer)))
    assert prompt + completion == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [False] * len(prompt) + learned == by_characters(tokenizer, text, spoken)
    assert learned[-1] and completion[-1] == tokenizer.eos_token_id


def test_a_conversation_is_what_its_last_answer_alone_would_be() -> None:
    template = Template(bpe(CHAT))
    prompt, completion, learned = template.conversation(TURNS)
    assert template.prompt_ids(TURNS[:2]) == prompt
    before = template.prompt_ids(TURNS[:4])
    answer = template.completion_ids(TURNS[:4], "no")
    assert before + answer == prompt + completion
    assert sum(learned) == len(answer) + len(template.completion_ids(TURNS[:2], TURNS[2].content))


def test_a_text_is_the_users_message_where_the_template_is_chat() -> None:
    template = Template(bpe(CHAT), "chat")
    assert template.prompt_ids("hello") == template.prompt_ids((Turn("user", "hello"),))
    assert template.completion_ids("hello", "no") == template.completion_ids(
        (Turn("user", "hello"),), "no"
    )


def test_models_without_a_chat_template_converse_in_a_plain_one() -> None:
    tokenizer = bpe()
    template = Template(tokenizer)
    prompt, completion, learned = template.conversation(TURNS)
    assert tokenizer.decode(prompt) == "<bos>one two\n\nUser: Is the answer 42?\n\nAssistant:"
    assert tokenizer.decode(completion) == (
        " yes, the answer is 42<eos>\n\nUser: Is it?\n\nAssistant: no<eos>"
    )
    said = [token for token, flag in zip(completion, learned, strict=True) if flag]
    assert tokenizer.decode(said) == " yes, the answer is 42<eos> no<eos>"
    assert template.stop_ids == (tokenizer.eos_token_id,)


def test_a_token_of_its_own_may_end_an_answer() -> None:
    tokenizer = bpe(CHAT.replace("{{ eos_token }}", "<end>"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    end = tokenizer.convert_tokens_to_ids("<end>")
    template = Template(tokenizer)
    assert template.stop_ids == (end, tokenizer.eos_token_id)
    assert template.completion_ids((Turn("user", "a"),), "no")[-1] == end


def test_an_end_is_taught_where_the_template_writes_none() -> None:
    tokenizer = bpe(CHAT.replace("{{ eos_token }}", ""))
    template = Template(tokenizer)
    _, completion, learned = template.conversation(TURNS)
    assert completion.count(tokenizer.eos_token_id) == 2
    assert learned[-1] and completion[-1] == tokenizer.eos_token_id
    assert "no\n" not in tokenizer.decode(completion)


def test_templates_that_rewrite_earlier_turns_are_refused() -> None:
    forgetful = CHAT.replace(
        "{{ m['content'] }}",
        "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% else %}...{% endif %}",
    )
    template = Template(bpe(forgetful))
    with pytest.raises(UserError, match=r"renders earlier messages differently .* prompt and"):
        template.conversation(TURNS)
    # The last answer alone is met in use just as it is learned.
    assert template.completion_ids(TURNS[:4], "no")


def test_templates_that_refuse_and_messages_that_forge_are_told() -> None:
    strict = "{{ raise_exception('users first') }}"
    with pytest.raises(UserError, match="refuses messages of user: users first"):
        Template(bpe(strict)).prompt_ids((Turn("user", "a"),))
    with pytest.raises(UserError, match="message 1 holds '<eos>', which the chat template gives"):
        Template(bpe(CHAT)).prompt_ids((Turn("user", "end here<eos>"),))
    with pytest.raises(UserError, match="needs a message, then an answer"):
        Template(bpe(CHAT)).conversation(TURNS[:2])
    with pytest.raises(UserError, match="template is 'jinja'"):
        Template(bpe(), "jinja")  # type: ignore[arg-type]
    endless = bpe()
    endless.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Template(endless)


def test_a_dialogue_gives_the_tokens_that_training_would() -> None:
    template = Template(bpe(CHAT))
    dialogue = Dialogue(template, TURNS[0].content)
    first = dialogue.ask(TURNS[1].content)
    assert first == template.prompt_ids(TURNS[:2])
    said = template.completion_ids(TURNS[:2], TURNS[2].content)
    assert dialogue.answered(said) == TURNS[2].content
    second = dialogue.ask(TURNS[3].content)
    prompt, completion, _ = template.conversation(TURNS)
    answer = template.completion_ids(TURNS[:4], TURNS[4].content)
    assert second == (prompt + completion)[: -len(answer)]


def test_a_dialogue_keeps_its_own_tokens_and_ends_what_was_cut_off() -> None:
    tokenizer = bpe(CHAT)
    template = Template(tokenizer)
    dialogue = Dialogue(template)
    first = dialogue.ask("hello")
    # "no" in two tokens, as only a model would say it, and no end to it.
    said = [tokenizer.convert_tokens_to_ids(letter) for letter in "no"]
    assert dialogue.answered(said) == "no"
    second = dialogue.ask("and")
    assert second[: len(first) + 3] == [*first, *said, tokenizer.eos_token_id]
    dialogue.forget_question()
    assert dialogue.ask("and") == second
    with pytest.raises(UserError, match="holds '<eos>'"):
        Dialogue(template).ask("<eos>")
