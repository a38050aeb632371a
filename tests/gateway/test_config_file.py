from __future__ import annotations

import pytest
from config_files import MINIMAL, Problems, Read, with_endpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routing.types import Price


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
