"""Where the gateway listens: one address, or another one for administration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme
from config_files import MINIMAL

from gateway.cli_options import DEFAULT_URL, administration_at
from gateway.listeners import CannotListen, listeners_of

if TYPE_CHECKING:
    from pathlib import Path

    from config_files import Problems, Read


def test_administration_is_where_calls_are_unless_told_otherwise(read: Read):
    assert read(MINIMAL).admin.listen is None
    listen = read(MINIMAL + "admin: {listen: {port: 9000}}\n").admin.listen
    assert listen is not None
    assert (listen.host, listen.port) == ("127.0.0.1", 9000)


def test_its_port_has_to_be_given(problems: Problems):
    assert problems(MINIMAL + "admin: {listen: {}}\n") == {"admin.listen.port": "is required"}


@pytest.mark.parametrize(
    ("listen", "admin", "refused"),
    [
        ("{port: 9000}", "{port: 9000}", True),
        ("{}", "{port: 8000}", True),
        ("{host: 0.0.0.0, port: 9000}", "{port: 9000}", True),
        ("{port: 9000}", "{host: '::', port: 9000}", True),
        ("{host: 10.0.0.1, port: 9000}", "{port: 9000}", False),
        ("{port: 0}", "{port: 0}", False),
        ("{port: 9000}", "{port: 9001}", False),
    ],
)
def test_both_cannot_have_the_same_address(
    *, problems: Problems, read: Read, listen: str, admin: str, refused: bool
):
    text = MINIMAL + f"listen: {listen}\nadmin: {{listen: {admin}}}\n"
    if refused:
        assert problems(text).keys() == {"admin.listen.port"}
    else:
        assert read(text).admin.listen is not None


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1"])
def test_no_keys_on_a_public_address_for_administration_is_refused_unless_it_is_meant(
    read: Read, problems: Problems, host: str
):
    text = MINIMAL + f"auth: {{mode: none}}\nadmin: {{listen: {{host: {host}, port: 9000}}}}\n"
    assert "admin.listen.host" in problems(text)["auth.mode"]
    meant = read(text.replace("none}", "none, allow_public: true}"))
    assert not meant.is_loopback


def test_a_certificate_for_an_address_that_is_not_there_is_a_mistake(
    read: Read, problems: Problems, tmp_path: Path
):
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    tls = f"tls: {{cert_file: {tmp_path}/cert, key_file: {tmp_path}/key}}"
    assert problems(MINIMAL + f"admin: {{{tls}}}\n").keys() == {"admin.tls"}
    own = read(MINIMAL + f"admin: {{listen: {{port: 9000}}, {tls}}}\n")
    assert (own.server.scheme, own.admin_scheme) == ("http", "https")
    shared = read(MINIMAL + f"server: {{{tls}}}\nadmin: {{listen: {{port: 9000}}}}\n")
    assert (shared.server.scheme, shared.admin_scheme) == ("https", "https")


@pytest.mark.parametrize(
    ("sections", "url"),
    [
        ("", "http://127.0.0.1:8000"),
        ("listen: {host: 0.0.0.0, port: 81}", "http://127.0.0.1:81"),
        ("listen: {host: '::', port: 81}", "http://[::1]:81"),
        ("listen: {host: 0.0.0.0}\nadmin: {listen: {host: 10.0.0.1, port: 82}}", "http://10.0.0.1:82"),
        ("admin: {listen: {host: '::1', port: 82}}", "http://[::1]:82"),
        ("admin: {listen: {port: 0}}", DEFAULT_URL),
        ("listen: {prot: 81}", DEFAULT_URL),
    ],
)
def test_commands_ask_where_the_file_of_their_folder_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: str, url: str
):
    monkeypatch.chdir(tmp_path)
    assert administration_at(None) == DEFAULT_URL
    (tmp_path / "tidegate.yaml").write_text(MINIMAL + sections)
    assert administration_at(None) == url
    assert administration_at("http://other:1") == "http://other:1"


def test_where_the_second_address_is_taken_the_first_is_given_back(read: Read):
    taken = listeners_of(read(MINIMAL + "listen: {port: 0}\nadmin: {listen: {port: 0}}\n"), 2)
    first, second = (each[0].getsockname()[1] for each in taken)
    for listener in taken.all:
        listener.listen()
    taken.calls[0].close(), taken.calls[1].close()
    text = MINIMAL + f"listen: {{port: {first}}}\nadmin: {{listen: {{port: {second}}}}}\n"
    for count in (1, 2):
        with pytest.raises(CannotListen, match=f":{second}"):
            listeners_of(read(text), count)
    for listener in taken.all:
        listener.close()
    again = listeners_of(read(text))
    assert len(again.all) == 2
    for listener in again.all:
        listener.close()
