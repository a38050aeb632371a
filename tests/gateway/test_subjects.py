from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from msgspec import structs
from sqlalchemy import text

from gateway.active_keys import ActiveKey, active_keys
from gateway.admin_keys import AdminKeyring, AdminKeys
from gateway.audit import Actor, Entry, entries
from gateway.database import StoreAway, alembic_config, engine_for
from gateway.policy import Policy
from gateway.store import Store, digest_of
from gateway.subjects import BadName, Change, NotFound, Subjects, Taken

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def url(either_url: str) -> str:
    """What is kept, is kept in SQLite and in PostgreSQL alike."""
    return either_url


@pytest.fixture
def subjects(store: Store) -> Subjects:
    return Subjects(store, Actor("adm_1", "10.0.0.1"))


# Keys


def test_a_key_is_random_and_recognised_by_its_two_ends(subjects: Subjects):
    created = subjects.create_key("acme", "ci")
    assert created.secret.startswith("tg-")
    assert len(created.secret) == 3 + 43
    assert created.record.prefix == created.secret[:7]
    assert created.record.last4 == created.secret[-4:]
    assert subjects.list_keys() == [created.record]


def test_the_secret_of_a_key_is_nowhere_in_the_database(sqlite_url: str, tmp_path: Path):
    with Store.open(sqlite_url) as store:
        secret = Subjects(store).create_key("acme").secret.encode()
        for file in tmp_path.iterdir():
            assert secret[8:-5] not in file.read_bytes()


def test_what_is_kept_of_a_key_is_its_digest_under_the_secret_of_the_database(
    store: Store, subjects: Subjects
):
    created = subjects.create_key("acme")
    active = active_keys(store)
    assert active is not None
    digest = digest_of(created.secret.encode(), store.key_secret())
    assert active.keys == (ActiveKey(digest, created.record, None),)


@pytest.mark.parametrize("tenant", ["", "a b", "../x", "é", "a" * 65, "-x", "master", "a\n"])
def test_a_tenant_needs_a_plain_name_that_is_not_taken_by_the_master_key(subjects: Subjects, tenant: str):
    with pytest.raises(BadName):
        subjects.create_key(tenant)


def test_keys_are_listed_by_tenant(subjects: Subjects):
    one, two = subjects.create_key("acme").record, subjects.create_key("zeta").record
    assert subjects.list_keys() == [one, two]
    assert subjects.list_keys("zeta") == [two]
    assert subjects.list_keys("nobody") == []


def test_a_key_is_revoked_by_the_start_of_its_id(store: Store, subjects: Subjects):
    key = subjects.create_key("acme").record
    revoked = subjects.revoke_key(key.id[:12])
    assert revoked.id == key.id
    assert revoked.revoked_ms is not None
    assert subjects.list_keys() == [revoked]
    assert subjects.revoke_key(key.id) == revoked
    active = active_keys(store)
    assert active is not None
    assert active.keys == ()


@pytest.mark.parametrize("start", ["", "key_", "%", "key_zzzzzz", "____________"])
def test_an_id_that_points_at_no_one_key_revokes_nothing(subjects: Subjects, start: str):
    subjects.create_key("acme")
    with pytest.raises(NotFound):
        subjects.revoke_key(start)
    assert subjects.list_keys()[0].revoked_ms is None


def test_a_key_of_another_tenant_is_not_revoked(subjects: Subjects):
    key = subjects.create_key("acme").record
    with pytest.raises(NotFound, match="zeta"):
        subjects.revoke_key(key.id, tenant="zeta")


def test_active_keys_are_read_again_only_after_a_change(store: Store, subjects: Subjects):
    first = active_keys(store)
    assert first is not None
    assert active_keys(store, since_revision=first.revision) is None
    key = subjects.create_key("acme").record
    second = active_keys(store, since_revision=first.revision)
    assert second is not None
    assert [each.record for each in second.keys] == [key]
    with pytest.raises(NotFound):
        subjects.revoke_key("key_nosuch")
    assert active_keys(store, since_revision=second.revision) is None


def test_the_policy_of_a_key_is_kept_with_it(store: Store, subjects: Subjects):
    policy = Policy(models=frozenset({"llama"}), tiers=frozenset({"flex"}), max_input_pico_usd=7)
    key = subjects.create_key("acme", policy=policy).record
    assert key.policy == policy
    assert subjects.list_keys() == [key]
    active = active_keys(store)
    assert active is not None
    assert [each.record for each in active.keys] == [key]
    assert subjects.revoke_key(key.id).policy == policy


def test_keys_made_before_there_were_policies_are_bounded_by_none(url: str):
    from alembic import command  # noqa: PLC0415  slow to import

    config, engine = alembic_config(), engine_for(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO tenants VALUES ('acme', 1)"))
        connection.execute(
            text("INSERT INTO keys VALUES ('key_old', 'acme', NULL, '0', 'tg-abcd', 'wxyz', 1, NULL)")
        )
    engine.dispose()
    with Store.open(url) as store:
        subjects = Subjects(store)
        assert [(key.id, key.policy) for key in subjects.list_keys()] == [("key_old", None)]
        subjects.create_key("acme", policy=Policy(least_trust="provider"))
        assert [key.policy for key in subjects.list_keys()] == [None, Policy(least_trust="provider")]


def test_a_key_of_a_project_is_put_where_there_is_one_and_comes_with_it(store: Store, subjects: Subjects):
    with pytest.raises(NotFound, match="no project 'web'"):
        subjects.create_key("acme", project="web")
    subjects.create_project("acme", "web", Policy(concurrency=2))
    key = subjects.create_key("acme", project="web").record
    subjects.create_key("acme")
    assert subjects.list_keys("acme", "web") == [key]
    active = active_keys(store)
    assert active.projects["acme", "web"].policy == Policy(concurrency=2)


def test_keys_are_listed_in_pages(subjects: Subjects):
    made = [subjects.create_key("acme").record for _ in range(5)]
    first = subjects.list_keys(most=2)
    rest = subjects.list_keys(after=first[-1].id)
    assert sorted(made, key=lambda key: (key.created_ms, key.id)) == [*first, *rest]


def test_a_rotated_key_keeps_its_id_and_its_old_secret_ends_by_itself(store: Store, subjects: Subjects):
    old = subjects.create_key("acme", "ci", Policy(concurrency=1))
    before_ms = time.time_ns() // 1_000_000
    new = subjects.rotate_key(old.record.id, 60_000)
    assert new.secret != old.secret
    assert (new.record.prefix, new.record.last4) == (new.secret[:7], new.secret[-4:])
    assert new.record == structs.replace(old.record, prefix=new.record.prefix, last4=new.record.last4)
    ends = {each.digest: each.ends_ms for each in active_keys(store).keys}
    digests = [digest_of(each.secret.encode(), store.key_secret()) for each in (old, new)]
    assert ends.keys() == set(digests)
    assert 60_000 <= ends[digests[0]] - before_ms < 120_000
    assert ends[digests[1]] is None


def test_without_overlap_the_old_secret_ends_at_once_and_with_the_key_in_any_case(
    store: Store, subjects: Subjects
):
    key = subjects.create_key("acme", expires_ms=time.time_ns() // 1_000_000 + 5_000).record
    subjects.rotate_key(key.id, 0)
    assert len(active_keys(store).keys) == 1
    subjects.rotate_key(key.id, 3_600_000)
    assert {each.ends_ms for each in active_keys(store).keys} == {key.expires_ms}
    subjects.revoke_key(key.id)
    assert active_keys(store).keys == ()
    with pytest.raises(NotFound, match="has been revoked"):
        subjects.rotate_key(key.id, 0)


def test_what_a_change_does_not_say_stays(subjects: Subjects):
    policy, metadata = Policy(concurrency=1), {"team": "search"}
    tenant = subjects.create_tenant("acme", policy, metadata)
    assert subjects.change_tenant("acme", Change(suspended=False)) == tenant
    suspended = subjects.change_tenant("acme", Change(suspended=True))
    assert suspended.suspended_ms is not None
    assert (suspended.policy, suspended.metadata) == (policy, metadata)
    assert subjects.change_tenant("acme", Change(suspended=True)) == suspended
    assert subjects.change_tenant(
        "acme", Change(suspended=False, policy=None, metadata={})
    ) == structs.replace(tenant, policy=None, metadata=None)
    subjects.create_project("acme", "web")
    assert subjects.change_project("acme", "web", Change(policy=policy)).policy == policy
    assert subjects.project("acme", "web").policy == policy
    key = subjects.create_key("acme", project="web").record
    changed = subjects.change_key(key.id, Change(name="ci", expires_ms=2**40, policy=policy))
    assert changed == structs.replace(key, name="ci", expires_ms=2**40, policy=policy)
    assert subjects.key(key.id) == changed


def test_tenants_and_projects_are_listed_by_name_in_pages(subjects: Subjects):
    for name in ("b", "a", "c"):
        subjects.create_tenant(name)
        subjects.create_project("a", name) if name != "b" else subjects.create_project("b", "x")
    assert [each.name for each in subjects.list_tenants(most=2)] == ["a", "b"]
    assert [each.name for each in subjects.list_tenants("b")] == ["c"]
    assert [each.name for each in subjects.list_projects("a", "a")] == ["c"]
    with pytest.raises(NotFound):
        subjects.list_projects("nobody")


def test_a_name_is_taken_once(subjects: Subjects):
    subjects.create_project("acme", "web")
    with pytest.raises(Taken):
        subjects.create_tenant("acme")
    with pytest.raises(Taken):
        subjects.create_project("acme", "web")
    with pytest.raises(BadName):
        subjects.create_project("acme", "a/b")


# The audit log


def log_of(store: Store, **wanted: object) -> list[Entry]:
    """The oldest first."""
    wanted = {"tenant": None, "subject": None, "most": 100, **wanted}
    return entries(store, **wanted)[::-1]


def test_every_change_is_on_record_with_who_and_whence_and_what_was_before(store: Store, subjects: Subjects):
    key = subjects.create_key("acme").record
    subjects.change_key(key.id, Change(name="ci"))
    subjects.rotate_key(key.id, 0)
    subjects.revoke_key(key.id)
    subjects.change_tenant("acme", Change(policy=Policy(networks=frozenset({"b", "a"}))))
    log = log_of(store)
    assert {(each.actor, each.source, each.tenant) for each in log} == {("adm_1", "10.0.0.1", "acme")}
    assert [each.action for each in log] == [
        "tenant.create",
        "key.create",
        "key.change",
        "key.rotate",
        "key.revoke",
        "tenant.change",
    ]
    assert [each.subject for each in log] == ["tenant:acme", *[f"key:{key.id}"] * 4, "tenant:acme"]
    assert (log[1].before, log[1].after["last4"]) == (None, key.last4)
    assert (log[2].before, log[2].after) == ({"name": None}, {"name": "ci"})
    assert log[4].before == {"revoked_ms": None}
    assert (log[5].before, log[5].after) == ({"policy": None}, {"policy": {"networks": ["a", "b"]}})


def test_no_secret_is_on_record(store: Store, subjects: Subjects):
    secrets = [subjects.create_key("acme").secret]
    secrets.append(subjects.rotate_key(subjects.list_keys()[0].id, 60_000).secret)
    secrets.append(AdminKeys(store).create("ops", "admin").secret)
    with store.reading() as connection:
        said = str(connection.execute(text("SELECT * FROM audit")).all())
    assert not any(secret[8:-5] in said for secret in secrets)


def test_what_is_refused_is_not_on_record_and_what_changes_nothing_neither(store: Store, subjects: Subjects):
    with pytest.raises(NotFound):
        subjects.create_key("acme", project="web")
    assert log_of(store) == []
    subjects.create_tenant("acme")
    subjects.change_tenant("acme", Change(suspended=False, metadata={}))
    assert len(log_of(store)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody'",
        "DELETE FROM audit",
        "INSERT INTO audit SELECT * FROM audit",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit",
        "TRUNCATE audit",
    ],
)
def test_an_entry_is_neither_changed_nor_deleted_by_whoever_may_write(
    store: Store, subjects: Subjects, statement: str
):
    subjects.create_tenant("acme")
    before = log_of(store)
    with pytest.raises(StoreAway), store.writing() as connection:
        connection.execute(text(statement))
    assert log_of(store) == before
    subjects.create_tenant("zeta")
    assert len(log_of(store)) == 2


def test_the_log_is_read_in_pages_by_tenant_and_by_subject(store: Store, subjects: Subjects):
    for name in ("a", "b", "c"):
        subjects.create_tenant(name)
        subjects.create_key(name)
    newest = entries(store, most=2, tenant=None, subject=None)
    assert [each.tenant for each in newest] == ["c", "c"]
    older = entries(store, most=10, before_id=newest[-1].id, tenant=None, subject=None)
    assert [each.tenant for each in older] == ["b", "b", "a", "a"]
    assert [each.action for each in log_of(store, tenant="a")] == ["tenant.create", "key.create"]
    assert [each.tenant for each in log_of(store, subject="tenant:b")] == ["b"]


# The keys of administrators


def test_an_admin_key_is_found_by_its_secret_until_it_ends_or_is_revoked(store: Store):
    keys, ring = AdminKeys(store), AdminKeyring(store.key_secret())
    lasting, ended = keys.create("ops", "read"), keys.create(None, "admin", expires_ms=1)
    assert lasting.secret.startswith("tga-")
    assert ring.find(lasting.secret.encode()) is None
    assert ring.refresh(store)
    assert not ring.refresh(store)
    assert ring.find(lasting.secret.encode()) == lasting.record
    assert ring.find(ended.secret.encode()) is None
    assert ring.find(b"tga-") is None
    assert keys.all() == [lasting.record, ended.record]
    revoked = keys.revoke(lasting.record.id[:10])
    assert keys.revoke(lasting.record.id) == revoked
    ring.refresh(store)
    assert ring.find(lasting.secret.encode()) is None
    with pytest.raises(NotFound):
        keys.revoke("adm_")
    assert [each.action for each in log_of(store)] == [
        "admin-key.create",
        "admin-key.create",
        "admin-key.revoke",
    ]
