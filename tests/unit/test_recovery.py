"""When a book asks for a snapshot, gives up, and tries again."""

from __future__ import annotations

from ingestion.feed.recovery import Book, Recovery, Resubscribe, Tell


def synced(*products: str) -> Recovery:
    recovery = Recovery(products, 0.0, wait_s=2.0, tries=3, slow_s=60.0)
    for product in products:
        recovery.observe(product, True, 0.5)
    return recovery


def test_a_gap_asks_at_once_and_for_this_product_only() -> None:
    recovery = synced("A", "B")
    assert recovery.observe("A", False, 10.0) == [Resubscribe("A")]
    assert recovery.state("A") is Book.RESYNCING
    assert recovery.state("B") is Book.SYNCED
    assert recovery.tick(11.9) == []


def test_a_book_that_stays_lost_is_asked_for_once_until_the_deadline() -> None:
    recovery = synced("A")
    recovery.observe("A", False, 10.0)
    assert recovery.observe("A", False, 11.0) == []
    assert recovery.tick(12.0) == [Resubscribe("A")]


def test_the_connection_s_own_snapshot_is_awaited_before_another_is_asked_for() -> None:
    recovery = Recovery(["A"], 100.0, wait_s=2.0)
    assert recovery.observe("A", False, 100.1) == []
    assert recovery.tick(101.9) == []
    assert recovery.tick(102.0) == [Resubscribe("A")]


def test_deadlines_double_and_the_budget_ends_in_stale() -> None:
    recovery = synced("A")
    asked = [10.0] if recovery.observe("A", False, 10.0) else []
    stale_at = None
    now = 10.0
    while stale_at is None and now < 100:
        now += 0.25
        for action in recovery.tick(now):
            if isinstance(action, Resubscribe):
                asked.append(now)
            else:
                assert action == Tell("A", "stale")
                stale_at = now
    assert asked == [10.0, 12.0, 16.0]
    assert stale_at == 24.0
    assert recovery.state("A") is Book.STALE


def test_a_stale_book_tries_once_a_minute_and_says_so() -> None:
    recovery = synced("A")
    recovery.observe("A", False, 0.0)
    now = 0.0
    while recovery.state("A") is not Book.STALE:
        now += 0.5
        recovery.tick(now)
    assert recovery.tick(now + 59.9) == []
    assert recovery.tick(now + 60.0) == [Tell("A", "resyncing"), Resubscribe("A")]
    later = now + 60.0 + 8.0
    assert recovery.tick(later) == [Tell("A", "stale")]


def test_a_snapshot_ends_it_whenever_it_comes_and_the_budget_is_whole_again() -> None:
    recovery = synced("A")
    recovery.observe("A", False, 0.0)
    for now in (2.0, 6.0, 14.0):
        recovery.tick(now)
    assert recovery.state("A") is Book.STALE
    assert recovery.observe("A", True, 15.0) == []
    assert recovery.state("A") is Book.SYNCED
    assert recovery.observe("A", False, 20.0) == [Resubscribe("A")]
    assert recovery.tick(22.0) == [Resubscribe("A")]


def test_products_without_a_book_are_none_of_its_business() -> None:
    recovery = Recovery([], 0.0)
    assert recovery.observe("A", False, 1.0) == []
    assert recovery.tick(1e9) == []
    assert recovery.state("A") is None
