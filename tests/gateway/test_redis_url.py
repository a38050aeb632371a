"""Which Redis is meant by a URL, as far as that can be told without asking one."""

from __future__ import annotations

import pytest

from gateway.redis_url import RedisUrl


def test_one_server():
    url = RedisUrl.parse("redis://tide:low%40water@db.example.com:6380/3")
    assert (url.kind, url.nodes, url.number, url.tls) == ("single", (("db.example.com", 6380),), 3, None)
    assert url.login == {"username": "tide", "password": "low@water"}
    assert url.shown == "db.example.com:6380"


def test_sentinels_and_the_name_by_which_they_know_the_primary():
    url = RedisUrl.parse(
        "rediss+sentinel://:high@a,b:26380/tides/2?sentinel_username=s&sentinel_password=low&ssl_ca_certs=/ca.pem"
    )
    assert (url.kind, url.nodes) == ("sentinel", (("a", 26379), ("b", 26380)))
    assert (url.service, url.number, url.login) == ("tides", 2, {"password": "high"})
    assert url.sentinel_login == {"username": "s", "password": "low"}
    assert url.tls == {"ssl_ca_certs": "/ca.pem"}
    assert url.shown == "tides at a:26379,b:26380"


def test_some_servers_of_a_cluster():
    url = RedisUrl.parse("rediss+cluster://a:7000,b?ssl_check_hostname=false")
    assert (url.kind, url.nodes, url.number) == ("cluster", (("a", 7000), ("b", 6379)), 0)
    assert url.tls == {"ssl_check_hostname": False}


def test_without_a_port_or_a_number_there_are_the_usual_ones():
    assert RedisUrl.parse("redis://[::1]") == RedisUrl.parse("redis://[::1]:6379/0")
    assert RedisUrl.parse("redis+sentinel://a/tides").number == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("redis+sentinel://a:1,b:2", "SERVICE"),
        ("redis+cluster://a:1/3", "one database"),
        ("redis://a:1,b:2/0", "several hosts"),
        ("redis://a:1/x", "NUMBER"),
        ("redis://a:0/1", "HOST:PORT"),
        ("redis://a:1/0?ssl_ca_certs=x", "rediss://"),
        ("redis://a:1/0?sentinel_password=x", "unknown option"),
        ("rediss://a:1/0?ssl_check_hostname=perhaps", "true or false"),
        ("redis+raft://a:1", "should be memory://"),
        ("redis:// a:1", "should be memory://"),
        ("redis://[::1", "should be memory://"),
    ],
)
def test_what_is_no_such_url_is_told_without_quoting_it(text: str, message: str):
    with pytest.raises(ValueError, match=message) as failure:
        RedisUrl.parse(text)
    assert text not in str(failure.value)
