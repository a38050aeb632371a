from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from config_files import MINIMAL, Problems, Read, with_endpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routing.types import Price

if TYPE_CHECKING:
    from pathlib import Path


def test_values_come_from_the_environment(read: Read):
    text = (
        MINIMAL + 'listen: {port: "${PORT}", host: ${HOST:-localhost}}\ntimeouts: {total_s: ${TOTAL:-1.5}}\n'
    )
    config = read(text, {"PORT": "1234"})
    assert (config.listen.port, config.listen.host, config.timeouts.total_s) == (1234, "localhost", 1.5)


def test_an_empty_value_takes_the_default_and_an_empty_default_means_nothing(read: Read):
    text = MINIMAL + "auth: {master_key: ${KEY:-}}\nlisten: {port: ${PORT:-81}}\n"
    config = read(text, {"PORT": ""})
    assert config.auth.master_key is None
    assert config.listen.port == 81


def test_a_dollar_doubled_stands_for_itself(read: Read):
    config = read(with_endpoint(worker="http://h:1", model="a/$${HOME}/$HOME/$$"), {"HOME": "no"})
    assert config.endpoints_of("llama")[0].served_model == "a/${HOME}/$HOME/$$"


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_value_from_the_environment_cannot_add_structure(read: Read, value: str):
    config = read(with_endpoint(worker="http://h:1", model="${KEY}"), {"KEY": value})
    assert config.models["llama"].endpoints[0].model == value


def test_an_unset_name_is_an_error_with_its_path_and_the_only_one_there(problems: Problems):
    assert problems(with_endpoint(worker="${WORKER}")) == {
        "models.llama.endpoints[0].worker": "the environment has no WORKER"
    }


def test_a_malformed_reference_is_an_error(problems: Problems):
    assert problems(with_endpoint(worker="http://h:1", model="${1X}")).keys() == {
        "models.llama.endpoints[0].model"
    }


def test_a_key_that_stands_twice_is_an_error(problems: Problems):
    found = problems(MINIMAL + "listen: {port: 1}\nlisten: {port: 2}\n")
    assert found == {"listen": "the key stands here a second time (line 8)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n", "should be a mapping"),
        ("word", "should be a mapping"),
        ("a: [1\nb: 2\n", "line 2, column 2"),
        ("a: 'x\n", "line 2, column 1"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("a: *nowhere\n", "line 1, column 4"),
        ("[" * 5000, "nested too deeply"),
        ("a: \x07\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_a_clear_error(problems: Problems, text: str, message: str):
    assert message in problems(text)[""]


def test_an_anchor_serves_twice_and_may_not_contain_itself(read: Read, problems: Problems):
    text = MINIMAL.replace("price: {", "price: &p {").replace("8000\n", "8000\n        cost: *p\n")
    assert read(text).endpoints_of("llama")[0].cost == Price(50_000, 100_000, None)
    assert "contain itself" in problems("listen: &l {host: *l}\n")["listen.host"]


def test_a_word_is_no_boolean_and_tags_are_refused(read: Read, problems: Problems):
    assert read(MINIMAL + "        region: no\n").endpoints_of("llama")[0].region == "no"
    assert "tags" in problems(MINIMAL + "listen: !!python/object:os.system {}\n")["listen"]
    assert "tags" in problems(MINIMAL + "database: !vault abc\n")["database"]


def test_a_value_may_stand_in_a_file_of_its_own(read: Read, tmp_path: Path):
    (tmp_path / "key").write_text("sk-1\n")
    (tmp_path / "password").write_text("hunter2")
    text = with_endpoint(openai="http://h:1/v1", api_key=f"file:{tmp_path}/key")
    text += "auth: {master_key: 'file:${SECRETS}/password'}\n"
    config = read(text, {"SECRETS": str(tmp_path)})
    assert config.models["llama"].endpoints[0].keys[0].get_secret_value() == "sk-1"
    assert config.auth.master_key.get_secret_value() == "hunter2"


def test_what_the_environment_says_is_never_taken_for_a_file(read: Read, tmp_path: Path):
    (tmp_path / "key").write_text("sk-1")
    config = read(MINIMAL + "auth: {master_key: ${KEY}}\n", {"KEY": f"file:{tmp_path}/key"})
    assert config.auth.master_key.get_secret_value() == f"file:{tmp_path}/key"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff", "is no UTF-8 text"),
        (b"x" * 65_537, "has more than 65536 bytes"),
    ],
)
def test_a_file_that_holds_no_value_is_an_error_with_its_path(
    problems: Problems, tmp_path: Path, content: bytes | None, message: str
):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    assert problems(MINIMAL + f"auth: {{master_key: 'file:{path}'}}\n") == {
        "auth.master_key": f"{path} {message}"
    }
