from gateway.cache_salt import CacheSalts


def test_a_salt_is_the_same_for_a_tenant_every_time_and_differs_between_tenants_secrets_and_what_was_given():
    salts = CacheSalts(b"k" * 32)
    assert salts.of("acme", b"") == CacheSalts(b"k" * 32).of("acme", b"")
    others = {
        salts.of("acme", b""),
        salts.of("acme", b'"x"'),
        salts.of("mill", b""),
        CacheSalts(b"l").of("acme", b""),
    }
    assert len(others) == 4
    assert all(salt.isalnum() and len(salt) == 32 for salt in others)


def test_no_tenant_can_give_a_salt_that_makes_it_look_like_another():
    salts = CacheSalts(b"k" * 32)
    assert salts.of("a", b"\0b") != salts.of("a\0", b"b")
    assert salts.of("b", salts.of("a", b"")) != salts.of("a", b"")
