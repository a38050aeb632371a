from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from usage_rows import a_row

from gateway.spending import Spending
from gateway.subjects import Subjects

if TYPE_CHECKING:
    from gateway.store import Store

MIDNIGHT_MS = 1_796_083_200_000
"""Of the 1st of December 2026, a Tuesday."""


@pytest.fixture
def url(either_url: str) -> str:
    return either_url


def test_a_charge_counts_in_the_windows_that_its_call_began_in_and_for_all_its_subjects(store: Store):
    subjects = Subjects(store)
    other = subjects.create_key("acme").record.id
    subjects.create_project("acme", "web")
    key = subjects.create_key("acme", project="web").record.id
    store.record(
        [
            a_row(
                "before", time_ms=MIDNIGHT_MS - 1, tenant="acme", project="web", key_id=key, charge_nano_usd=1
            ),
            a_row("after", time_ms=MIDNIGHT_MS, tenant="acme", project="web", key_id=key, charge_nano_usd=20),
            a_row(
                "beside", time_ms=MIDNIGHT_MS, tenant="acme", project="", key_id=other, charge_nano_usd=300
            ),
            a_row(
                "another", time_ms=MIDNIGHT_MS, tenant="ebb", project="web", key_id="x", charge_nano_usd=4000
            ),
        ]
    )
    spent = {
        "tenant:acme/usd/day/2026-11-30": 1,
        "tenant:acme/usd/day/2026-12-01": 320,
        "tenant:acme/usd/week/2026-11-30": 321,
        "tenant:acme/usd/month/2026-11-01": 1,
        "tenant:acme/usd/month/2026-12-01": 320,
        "tenant:acme/usd/total/ever": 321,
        "project:acme/web/usd/month/2026-12-01": 20,
        f"key:{key}/usd/total/ever": 21,
        f"key:{other}/usd/total/ever": 300,
        "tenant:nobody/usd/total/ever": 0,
    }
    assert Spending(store).nano_usd(spent) == spent
