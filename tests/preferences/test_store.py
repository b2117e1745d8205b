"""What a store promises, on SQLite and on PostgreSQL."""

import threading
import uuid
from collections.abc import Callable

import numpy as np
import pytest
from small_stores import Clock, fill
from sqlalchemy import select

from tether.errors import UserError
from tether.preferences.leases import _lease
from tether.preferences.log import append
from tether.preferences.records import Answer, MinariReference, Query, Segment, Text, standing
from tether.preferences.schema import queries_table
from tether.preferences.store import Counts, Store


def test_items_come_back_as_they_were(store: Store) -> None:
    items = [
        Text("", "tab\tnul\0 é 🙂"),
        Text([{"role": "user", "content": "hi"}], "ho"),
        Segment(
            env="mine:Env-v0",
            observation=np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
            action=np.array([1, -1]),
            env_kwargs={"b": [1, None], "a": {"x": 0.1}},
            qpos=np.random.default_rng(0).normal(size=(2, 3)),
            qvel=np.zeros((2, 3)),
            reward=[0.1, -1e300],
            dt=0.008,
            origin="run-1",
            step=2**40,
            terminated=True,
            minari=MinariReference("D/x-v0", 3, 10, 12),
        ),
    ]
    ids = store.add_items(items)
    assert ids == [item.id for item in items] == store.add_items(items)
    for item in items:
        assert store.item(item.id) == item
    segment, back = items[2], store.item(ids[2])
    assert isinstance(segment, Segment) and isinstance(back, Segment)
    assert segment.facts() == back.facts() and segment.arrays().keys() == back.arrays().keys()
    for name, array in segment.arrays().items():
        assert array.dtype == back.arrays()[name].dtype
        np.testing.assert_array_equal(array, back.arrays()[name])
    assert list(store.all_items()) == items
    with pytest.raises(UserError, match=r"the store has no item 0{32}"):
        store.item("0" * 32)


def test_a_query_needs_its_items(store: Store) -> None:
    a, b = Text("p", "a"), Text("p", "b")
    store.add_items([a])
    query = Query((a.id, b.id), context="c", source="uniform", step=3)
    with pytest.raises(UserError, match=f"no item {b.id}"):
        store.add_queries([query])
    assert list(store.queries()) == []
    store.add_items([b])
    assert store.add_queries([query, query]) == [query.id] * 2
    assert store.add_queries([Query((a.id, b.id), context="c", source="other")]) == [query.id]
    assert store.query(query.id) == query and list(store.queries()) == [query]


def test_a_query_is_leased_to_one_annotator_until_the_lease_ends(
    store: Store, clock: Clock
) -> None:
    first, second = fill(store, 2)
    mine = store.claim("ada", seconds=60)
    assert [lease.query for lease in mine] == [first] and mine[0].expires == 1060
    assert [lease.query for lease in store.claim("bob", count=5)] == [second]
    assert store.claim("cleo") == []
    clock.now = 1030
    again = store.claim("ada", count=5, seconds=60)
    assert [(lease.id, lease.expires) for lease in again] == [(mine[0].id, 1090)]
    assert store.counts() == Counts(2, 0, 0, leased=2, open=0, annotators=0)
    clock.now = 1091
    assert [lease.query for lease in store.claim("cleo")] == [first]
    assert store.claim("ada") == []


def test_a_released_query_is_free_at_once(store: Store) -> None:
    (query,) = fill(store, 1)
    (lease,) = store.claim("ada")
    assert store.release(lease.id) and not store.release(lease.id)
    assert [lease.query for lease in store.claim("bob")] == [query]


def test_an_answered_query_is_not_asked_again(store: Store) -> None:
    (query,) = fill(store, 1)
    (lease,) = store.claim("ada")
    receipt = store.answer(Answer(query.id, 1.0, "ada"), lease.id)
    assert (receipt.late, receipt.duplicate) == (False, False)
    assert store.claim("ada") == store.claim("bob") == []
    assert store.counts() == Counts(1, answered=1, skipped=0, leased=0, open=0, annotators=1)


def test_a_skipped_query_is_counted_apart(store: Store) -> None:
    fill(store, 2)
    (lease,) = store.claim("ada")
    store.answer(Answer(lease.query.id, None, "ada"), lease.id)
    assert store.counts() == Counts(2, answered=0, skipped=1, leased=0, open=1, annotators=1)
    assert [lease.query for lease in store.claim("bob", count=2)] == list(store.queries())[1:]


def test_overlap_asks_as_many_different_annotators(store: Store) -> None:
    first, second = fill(store, 2)
    (one,) = store.claim("ada", overlap=2)
    (two,) = store.claim("bob", overlap=2)
    assert one.query == two.query == first
    assert [lease.query for lease in store.claim("cleo", overlap=2)] == [second]
    store.answer(Answer(first.id, 1.0, "ada"), one.id)
    assert [lease.query for lease in store.claim("ada", overlap=2, count=3)] == [second]
    assert store.claim("dora", overlap=2, count=3) == []
    # Nobody is asked twice, though another annotator is still needed.
    store.release(two.id)
    assert [lease.query for lease in store.claim("ada", overlap=2, count=3)] == [second]
    (two,) = store.claim("bob", overlap=2)
    assert two.query == first
    store.answer(Answer(first.id, 0.0, "bob"), two.id)
    assert sorted(a.annotator for q, a in store.standing() if q == first) == ["ada", "bob"]
    assert store.standing_answers([first.id, second.id]).keys() == {first.id}
    assert store.counts().answered == 1 and store.counts().annotators == 2


def test_the_same_uuid_gives_the_same_receipt(store: Store) -> None:
    first, second = fill(store, 2)
    (lease,) = store.claim("ada")
    answer = Answer(first.id, 0.25, "ada", latency=1.5)
    receipt = store.answer(answer, lease.id)
    again = store.answer(answer, lease.id)
    assert (again.cursor, again.late, again.duplicate) == (receipt.cursor, False, True)
    assert store.answers() == [(receipt.cursor, answer)]
    other = Answer(second.id, 0.25, "ada", uuid=answer.uuid)
    with pytest.raises(UserError, match="was given already and says something else"):
        store.answer(other)
    assert len(store.answers()) == 1


def test_a_late_answer_is_kept_and_marked(store: Store, clock: Clock) -> None:
    (query,) = fill(store, 1)
    (lease,) = store.claim("ada", seconds=10)
    clock.now += 11
    (other,) = store.claim("bob")
    store.answer(Answer(query.id, 0.0, "bob"), other.id)
    receipt = store.answer(Answer(query.id, 1.0, "ada"), lease.id)
    assert receipt.late
    assert {a.annotator: a.preference for _, a in store.standing()} == {"ada": 1.0, "bob": 0.0}
    assert [summary.late for summary in store.annotators()] == [1, 0]


def test_an_answer_is_late_even_if_nobody_else_was_asked(store: Store, clock: Clock) -> None:
    (query,) = fill(store, 1)
    (lease,) = store.claim("ada", seconds=10)
    clock.now += 10
    assert store.answer(Answer(query.id, 1.0, "ada"), lease.id).late


def test_a_query_that_filled_up_before_it_was_locked_is_not_leased(store: Store) -> None:
    (query,) = fill(store, 1)
    store.claim("ada")
    with store._database.writing() as connection:
        rows = connection.execute(select(queries_table)).all()
        # What bob's claim would do with a query that was free when it was found.
        free = _lease(connection, rows, "bob", now=1000.0, expires=1100.0, room=1)
    assert [row.id for row in rows] == [query.id] and free == []


def test_another_s_lease_is_refused(store: Store) -> None:
    first, second = fill(store, 2)
    (lease,) = store.claim("ada")
    for answer in (Answer(first.id, 1.0, "bob"), Answer(second.id, 1.0, "ada")):
        with pytest.raises(UserError, match=f"lease {lease.id} is not"):
            store.answer(answer, lease.id)
    assert store.answers() == []
    assert [one.id for one in store.claim("ada")] == [lease.id]


def test_a_new_answer_replaces_the_annotator_s_old_one(store: Store) -> None:
    (query,) = fill(store, 1)
    old = Answer(query.id, 1.0, "ada")
    new = Answer(query.id, 0.5, "ada", time=5.0)
    store.answer(old)
    store.answer(new)
    log = [answer for _, answer in store.answers()]
    assert log[0] == old and log[1].supersedes == old.uuid
    assert [answer.preference for _, answer in store.standing()] == [0.5]
    assert store.counts().answered == 1
    with pytest.raises(UserError, match="expected the UUID of an answer of ada"):
        store.answer(Answer(query.id, 0.0, "ada", supersedes=str(uuid.uuid4())))


def test_undo_takes_back_one_answer_and_frees_its_query(store: Store) -> None:
    first, second = fill(store, 2)
    for query, said in ((first, 1.0), (second, None)):
        store.answer(Answer(query.id, said, "ada"))
    mine = str(uuid.uuid4())
    undone = store.undo("ada", mine)
    assert undone is not None and undone.query == second.id and undone.retracted
    assert store.undo("ada", mine) == undone
    assert len(store.answers()) == 3
    assert store.counts() == Counts(2, answered=1, skipped=0, leased=0, open=1, annotators=1)
    assert [lease.query for lease in store.claim("ada")] == [second]
    undone = store.undo("ada", str(uuid.uuid4()))
    assert undone is not None and undone.query == first.id
    assert store.undo("ada", str(uuid.uuid4())) is None
    assert list(store.standing()) == []
    with pytest.raises(UserError, match="was given already; give a new UUID to undo"):
        store.undo("bob", mine)


def test_readers_go_by_cursor_and_see_every_row_once(store: Store) -> None:
    queries = fill(store, 5)
    cursors = [store.answer(Answer(query.id, 1.0, "ada")).cursor for query in queries]
    assert cursors == sorted(set(cursors))
    seen = []
    after = 0
    while rows := store.answers(after, limit=2):
        seen += [answer.query for _, answer in rows]
        after = rows[-1][0]
    assert seen == [query.id for query in queries] and store.answers(after) == []
    store.undo("ada", str(uuid.uuid4()))
    assert [answer.retracted for _, answer in store.answers(after)] == [True]
    log = [answer for _, answer in store.answers()]
    assert [a for _, a in store.standing()] == list(standing(log).values())


def test_answers_in_one_transaction_are_all_kept_or_none(store: Store) -> None:
    first, second = fill(store, 2)
    with pytest.raises(UserError, match=r"the store has no query f{32}"):
        store.answer_all([Answer(first.id, 1.0, "ada"), Answer("f" * 32, 1.0, "ada")])
    assert store.answers() == []
    receipts = store.answer_all([Answer(q.id, 1.0, "ada") for q in (first, second)])
    assert [receipt.cursor for receipt in receipts] == [cursor for cursor, _ in store.answers()]


def test_rankings_and_ties_are_kept(store: Store) -> None:
    (three,) = fill(store, 1, items=3)
    (pair,) = fill(store, 1)
    store.answer(Answer(three.id, None, "ada", ranking=(2, 0, 1), latency=4.0))
    store.answer(Answer(pair.id, 0.5, "ada", latency=2.0))
    assert [a.ranking for _, a in store.standing()] == [(2, 0, 1), None]
    (summary,) = store.annotators()
    assert (summary.answers, summary.ties, summary.seconds) == (2, 1, 3.0)
    with pytest.raises(UserError, match="has 3 items"):
        store.answer(Answer(three.id, 1.0, "bob"))


def test_notes_are_kept(store: Store) -> None:
    store.note("goal", 700)
    store.note("instruction", "Which is better? \0 é")
    store.note("goal", {"labels": [1, None]})
    assert store.notes() == {"goal": {"labels": [1, None]}, "instruction": "Which is better? \0 é"}
    with pytest.raises(UserError, match="note bad is nan"):
        store.note("bad", float("nan"))


def test_a_store_is_found_again(store: Store, place: str) -> None:
    (query,) = fill(store, 1)
    answer = Answer(query.id, 1.0, "ada")
    store.answer(answer)
    with Store.open(place, create=False) as again:
        assert [a for _, a in again.answers()] == [answer]


def in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_threads_that_claim_at_once_get_different_queries(store: Store) -> None:
    queries = fill(store, 24)
    got: list[str] = []

    def work(number: int) -> None:
        while leases := store.claim(f"annotator {number}", count=2):
            for lease in leases:
                got.append(lease.query.id)
                store.answer(Answer(lease.query.id, 1.0, f"annotator {number}"), lease.id)

    in_threads(6, work)
    # PostgreSQL passes over queries that somebody has locked, so a thread may end early.
    work(6)
    assert sorted(got) == sorted(query.id for query in queries)
    assert store.counts().answered == 24 and not any(s.late for s in store.annotators())


def test_a_mistake_of_one_thread_does_not_touch_the_others(store: Store) -> None:
    queries = fill(store, 8)
    refused: list[str] = []

    def work(number: int) -> None:
        if number % 2:
            try:
                store.answer(Answer("f" * 32, 1.0, "ada"))
            except UserError as error:
                refused.append(str(error))
        else:
            store.answer(Answer(queries[number // 2].id, 1.0, "ada"))

    in_threads(16, work)
    assert len(refused) == 8 and store.counts().answered == 8


def test_no_answer_appears_above_one_that_is_still_being_written(store: Store) -> None:
    first, second = fill(store, 2)
    other = threading.Thread(target=lambda: store.answer(Answer(second.id, 1.0, "bob")))
    with store._database.appending() as connection:
        append(connection, Answer(first.id, 1.0, "ada"), lease=None, now=0.0)
        other.start()
        other.join(0.3)
        assert store.answers() == []
    other.join()
    assert [answer.annotator for _, answer in store.answers()] == ["ada", "bob"]


def test_a_reader_by_cursor_misses_nothing_while_others_write(store: Store) -> None:
    queries = fill(store, 60)
    seen: list[str] = []
    ended = threading.Event()

    def read() -> None:
        after = 0
        while True:
            last = ended.is_set()
            for cursor, answer in store.answers(after):
                seen.append(answer.uuid)
                after = cursor
            if last:
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        in_threads(6, lambda n: [store.answer(Answer(q.id, 1.0, f"{n}")) for q in queries[n::6]])
    finally:
        ended.set()
        reader.join()
    assert seen == [answer.uuid for _, answer in store.answers()] and len(seen) == 60
