"""Records refuse what cannot be learned from, and batches put every token where it belongs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import UserError
from tether.language.data.tokens import (
    Completion,
    Example,
    Pair,
    Prompt,
    Ranking,
    check_records,
    collate,
    collate_packed,
    collate_shared,
    located,
    truncate,
)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Prompt([]), "prompt_ids is empty"),
        (lambda: Completion([1], []), "completion_ids is empty"),
        (lambda: Completion([1, -2], [3]), "prompt_ids holds the id -2"),
        (lambda: Completion([1], [2.5]), "completion_ids holds 2.5; expected integers"),
        (lambda: Completion("ab", [3]), "prompt_ids is a str"),
        (lambda: Completion(7, [3]), "prompt_ids is a int"),
        (lambda: Example([1], [2, 3], [True]), "loss_mask has 1 entries for 2 completion_ids"),
        (lambda: Example([1], [2, 3], [False, False]), "loss_mask masks every token"),
        (lambda: Pair([1], [2], [2]), "chosen_ids and rejected_ids are equal"),
        (lambda: Pair([1], [2], [3], 1.5), r"label is 1.5; expected the probability in \[0, 1\]"),
        (lambda: Pair([1], [2], [3], float("nan")), "label is nan"),
        (lambda: Pair([1], [], [3]), "chosen_ids is empty"),
        (lambda: Ranking([1], [[2]]), "completions holds 1; expected at least 2"),
        (lambda: Ranking([1], [[2], [3], [2]]), "completions holds the same one twice"),
        (lambda: Ranking([1], [[2], []]), r"completions\[1\] is empty"),
    ],
)
def test_record_refuses(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()


def test_records_are_tuples_of_python_integers_whatever_they_came_from():
    expected = Completion((1, 2), (3,))
    assert Completion(np.array([1, 2]), torch.tensor([3])) == expected
    assert Completion([np.int64(1), np.int32(2)], range(3, 4)) == expected
    assert all(type(i) is int for i in Completion([np.int64(1), 2], [3]).prompt_ids)
    assert hash(expected)


def test_located_puts_the_place_before_the_complaint():
    complaint = r"^pairs.jsonl, line 3: chosen_ids is empty"
    with pytest.raises(UserError, match=complaint), located("pairs.jsonl, line 3"):
        Pair([1], [], [3])


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (
            Completion([1, 2], [3, 9]),
            r"data\[1\].completion_ids holds the id 9; expected less than",
        ),
        (Completion([1, 2, 3], [4, 5, 6]), r"data\[1\].completion_ids: .* take 6 tokens; .* is 5"),
        (Pair([1, 2], [3], [4, 5, 6, 7]), r"data\[1\].rejected_ids: .* take 6 tokens"),
        (Ranking([1], [[2], [9]]), r"data\[1\].completions\[1\] holds the id 9"),
        (Prompt([1, 2, 3, 4, 5]), r"data\[1\].prompt_ids: prompt and completion take 6"),
    ],
)
def test_check_names_row_and_field(record, complaint):
    fine = Completion([1, 2], [3, 4, 5])
    check_records([fine], vocabulary=9, context=5)
    with pytest.raises(UserError, match=complaint):
        check_records([fine, record], vocabulary=9, context=5)
    with pytest.raises(UserError, match="data is empty"):
        check_records([], vocabulary=9, context=5)


def test_truncation_cuts_prompts_first_and_says_so():
    records = [
        Completion([1, 2, 3, 4, 5, 6], [7, 8]),
        Completion([1], [2, 3, 4, 5, 6, 7]),
        Completion([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]),
        Completion([1, 2], [3]),
    ]
    kept, account = truncate(records, context=6)
    assert kept == [
        Completion([3, 4, 5, 6], [7, 8]),
        Completion([1], [2, 3, 4, 5, 6], finished=False),
        # Neither side may have more than half when both are too long.
        Completion([3, 4, 5], [6, 7, 8], finished=False),
        Completion([1, 2], [3]),
    ]
    assert (account.prompts, account.completions, account.dropped) == (2, 2, 0)
    assert account.tokens == 2 + 1 + 4
    assert str(account) == (
        "of 4 records, 2 prompts and 2 completions were cut and 0 records dropped (7 tokens) "
        "to fit the model's context and --max-length, --max-prompt and --max-completion"
    )
    assert account
    untouched, nothing = truncate(records, context=99)
    assert untouched == records
    assert not nothing


def test_truncation_drops_what_no_longer_says_anything():
    records = [
        Pair([1], [2, 3, 4], [2, 3, 5], 0.7),
        Pair([1], [2, 3, 4], [9, 3, 5], 0.7),
        Ranking([1], [[2, 3, 4], [2, 3], [4]]),
        Example([1], [2, 3, 4], [False, False, True]),
        Example([1], [2, 3, 4], [False, True, True]),
    ]
    kept, account = truncate(records, context=9, max_completion=2)
    assert kept == [Pair([1], [2, 3], [9, 3], 0.7), Example([1], [2, 3], [False, True])]
    assert account.dropped == 3
    assert account.completions == 2 + 1
    assert account.tokens == 7 + 2 + 7 + 4 + 1


def test_truncation_of_prompts_by_their_own_limit():
    kept, account = truncate([Prompt([1, 2, 3]), Prompt([4])], context=9, max_prompt=2)
    assert kept == [Prompt([2, 3]), Prompt([4])]
    assert (account.prompts, account.tokens) == (1, 1)
    for bad in ({"context": 1}, {"context": 9, "max_prompt": 0}):
        with pytest.raises(UserError, match="expected at least"):
            truncate([Prompt([1])], **bad)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    st.integers(2, 12),
    st.one_of(st.none(), st.integers(1, 12)),
    st.one_of(st.none(), st.integers(1, 12)),
)
def test_whatever_is_truncated_fits(lengths, context, max_prompt, max_completion):
    records = [Completion(range(p), range(c)) for p, c in lengths]
    kept, account = truncate(
        records, context=context, max_prompt=max_prompt, max_completion=max_completion
    )
    check_records(kept, vocabulary=12, context=context)
    left = 0
    for before, after in zip(records, kept, strict=True):
        assert before.prompt_ids[-len(after.prompt_ids) :] == after.prompt_ids
        assert before.completion_ids[: len(after.completion_ids)] == after.completion_ids
        assert after.finished == (before.completion_ids == after.completion_ids)
        left += len(after.prompt_ids) + len(after.completion_ids)
    assert account.tokens == sum(p + c for p, c in lengths) - left


ITEMS = [Completion([10, 11, 12], [13]), Completion([20], [21, 22])]


def test_left_padded_batch_is_what_it_is():
    batch = collate(ITEMS, pad_id=0)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 0], [0, 0, 20, 21, 22]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0], [0, 0, 0, 1, 2]]
    assert batch.completion_mask.tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert batch.mask.tolist() == [[1, 0], [1, 1]]
    assert batch.targets.tolist() == [13, 21, 22]
    assert batch.source_index.tolist() == [2, 5 + 2, 5 + 3]
    assert batch.last_index.tolist() == [3, 5 + 4]
    assert (batch.completions, batch.tokens) == (2, 3)
    assert batch.by_completion(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1, 0], [2, 3]]


def test_right_padded_batch_scores_the_same_tokens():
    batch = collate(ITEMS, pad_id=0, side="right")
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [20, 21, 22, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert batch.mask.tolist() == [[1, 0], [1, 1]]
    assert batch.targets.tolist() == [13, 21, 22]
    assert batch.source_index.tolist() == [2, 4 + 0, 4 + 1]


def test_shared_prompt_is_read_once_and_completions_do_not_see_each_other():
    batch = collate_shared(
        [[Completion([5, 6], [7]), Completion([5, 6], [8, 9])], [Completion([4], [3])]], pad_id=0
    )
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [0, 4, 3, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3], [0, 0, 1, 0, 0]]
    assert batch.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert batch.attention_mask[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]
    assert batch.mask.tolist() == [[1, 0], [1, 1], [1, 0]]
    # The first token of either completion is predicted by the prompt's last.
    assert batch.source_index.tolist() == [1, 1, 3, 5 + 1]
    assert batch.last_index.tolist() == [2, 4, 5 + 2]


def test_packed_items_do_not_see_each_other():
    batch = collate_packed([ITEMS], pad_id=0)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 20, 21, 22]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    seen = batch.attention_mask[0, 0]
    assert not seen[4:, :4].any()
    assert seen.sum() == 4 * 5 / 2 + 3 * 4 / 2
    assert batch.source_index.tolist() == [2, 4, 5]


def test_loss_mask_leaves_tokens_out_of_the_score_but_in_the_text():
    batch = collate([Example([1], [2, 3, 4], [True, False, True]), ITEMS[1]], pad_id=0)
    assert batch.mask.tolist() == [[1, 0, 1], [1, 1, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.targets.tolist() == [2, 4, 21, 22]
    assert batch.by_completion(torch.arange(1, 5)).tolist() == [[1, 0, 2], [3, 4, 0]]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: collate([], pad_id=0), "nothing to put into a batch"),
        (lambda: collate(ITEMS, pad_id=0, side="middle"), "side is 'middle'"),
        (lambda: collate_shared([ITEMS], pad_id=0), "group 0 has 2 different prompts"),
        (lambda: collate_shared([[]], pad_id=0), "group 0 has 0 different prompts"),
        (lambda: collate_packed([ITEMS, []], pad_id=0), "row 1 is empty"),
    ],
)
def test_batch_refuses(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()
