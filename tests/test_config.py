"""Configuration: strict, and an error that names the nearest key."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from v2f.config import Config, build, dump_yaml, flatten, override, parse_yaml, read_yaml
from v2f.errors import V2FError
from v2f.storage.credentials import has_credentials, without_credentials


class Inner(Config):
    rate: float = 1e-3
    kind: Literal["a", "b"] = "a"


class Outer(Config):
    name: str
    count: int = 1
    inner: Inner = Inner()
    many: list[Inner] = []


def test_an_unknown_key_is_refused_and_the_nearest_is_named():
    with pytest.raises(V2FError, match=r"x\.yaml: unknown key 'inner\.rat'; did you mean 'inner\.rate'\?"):
        build(Outer, {"name": "n", "inner": {"rat": 1.0}}, "x.yaml")


def test_a_key_in_the_wrong_group_is_found_in_the_right_one():
    with pytest.raises(V2FError, match=r"did you mean 'inner\.rate'"):
        build(Outer, {"name": "n", "rate": 1.0}, "x.yaml")


def test_an_unknown_key_like_no_other_lists_what_there_is():
    with pytest.raises(V2FError, match="known keys: count, inner, many, name"):
        build(Outer, {"name": "n", "zzzzzz": 1}, "x.yaml")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "n", "count": "3"}, "count: input should be a valid integer, got '3' (str)"),
        ({"name": "n", "count": True}, "count: input should be a valid integer, got True (bool)"),
        ({"name": "n", "count": 2.0}, "count: input should be a valid integer, got 2.0 (float)"),
        ({"name": 3}, "name: input should be a valid string, got 3 (int)"),
        ({"name": "n", "inner": {"kind": "c"}}, "inner.kind: input should be 'a' or 'b', got 'c' (str)"),
        ({"name": "n", "inner": {"rate": float("nan")}}, "inner.rate: input should be a finite number"),
        ({"count": 1}, "the key 'name' is missing"),
    ],
)
def test_an_ill_typed_value_is_one_line_with_key_and_value(values, told):
    with pytest.raises(V2FError) as caught:
        build(Outer, values, "x.yaml")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


class Dog(Config):
    kind: Literal["dog"]
    bark: Literal["low", "high"]
    age: int = Field(1, gt=0)


class Fish(Config):
    kind: Literal["fish"] = "fish"
    depth: float = 1.0


class Zoo(Config):
    pet: Annotated[Dog | Fish, Field(discriminator="kind")] = Fish()
    second: Annotated[Dog | Fish, Field(discriminator="kind")] | None = None


@pytest.mark.parametrize(
    ("pet", "told"),
    [
        ({"kind": "dog"}, "the key 'pet.bark' is missing"),
        ({"bark": "low"}, "the key 'pet.kind' is missing"),
        ({"kind": "cat"}, "pet.kind: unknown value 'cat'; known: 'dog', 'fish'"),
        ({"kind": "dog", "bark": "loud"}, "pet.bark: input should be 'low' or 'high', got 'loud' (str)"),
        ({"kind": "dog", "bark": "low", "agge": 2}, "unknown key 'pet.agge'; did you mean 'pet.age'?"),
        ({"kind": "fish", "bark": "low"}, "unknown key 'pet.bark'"),
        (3, "pet: input should be a valid dictionary"),
    ],
)
def test_a_group_of_one_kind_or_another_is_told_as_the_user_wrote_it(pet, told):
    with pytest.raises(V2FError) as caught:
        build(Zoo, {"pet": pet}, "x.yaml")
    assert f"x.yaml: {told}" in str(caught.value)
    with pytest.raises(V2FError) as caught:
        build(Zoo, {"second": pet}, "x.yaml")
    assert f"x.yaml: {told.replace('pet', 'second')}" in str(caught.value)


def test_numbers_in_scientific_notation_are_numbers():
    assert parse_yaml("{a: 1e-3, b: 5E4, c: -2e+2, d: 1e3x}", "t") == {"a": 1e-3, "b": 5e4, "c": -200.0, "d": "1e3x"}


def test_a_key_that_appears_twice_is_refused():
    with pytest.raises(V2FError, match=r"line 2: .*the key 'a' appears twice"):
        parse_yaml("a: 1\na: 2\n", "t.yaml")


def test_overrides_reach_into_groups_and_leave_the_source_alone():
    source = {"name": "n", "inner": {"rate": 1.0}}
    result = build(Outer, override(source, ["inner.rate=2e-4", "count=7", "inner.kind=b"]), "t")
    assert (result.inner.rate, result.count, result.inner.kind) == (2e-4, 7, "b")
    assert source == {"name": "n", "inner": {"rate": 1.0}}


@pytest.mark.parametrize("assignment", ["count", "=3", "inner..rate=1", "name.x=1"])
def test_a_malformed_override_is_named(assignment):
    with pytest.raises(V2FError, match=assignment.replace(".", r"\.")):
        override({"name": "n"}, [assignment])


def test_a_missing_file_and_a_file_without_keys_are_named(tmp_path):
    with pytest.raises(V2FError, match=r"none\.yaml: cannot read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(V2FError, match=r"list\.yaml: expected a mapping .*, found list; write it as key: value lines"):
        read_yaml(tmp_path / "list.yaml")


def test_no_text_in_a_file_runs_code(tmp_path):
    (tmp_path / "evil.yaml").write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(V2FError, match="not valid YAML"):
        read_yaml(tmp_path / "evil.yaml")


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1)
text = text.filter(lambda drawn: not has_credentials(drawn))  # "0://@" is refused


@given(text, st.integers(-(2**60), 2**60), finite, st.sampled_from(["a", "b"]))
def test_every_configuration_survives_its_yaml(name, count, rate, kind):
    config = Outer(name=name, count=count, inner=Inner(rate=rate, kind=kind), many=[Inner(rate=rate)])
    assert build(Outer, parse_yaml(dump_yaml(config), "t"), "t") == config


def test_flatten_gives_dotted_leaves():
    assert flatten(Outer(name="n"))["inner.rate"] == 1e-3


class Place(Config):
    uri: str


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://u:pa@h/x", "http://***@h/x"),
        ("http://u:pa/ss@h", "http://***@h"),
        ("http://u:pa/ss@h:5000/x", "http://***@h:5000/x"),
        ("http://u:/ss@h/x", "http://***@h/x"),
        ("http://u:pa@ss@h/x", "http://***@h/x"),
        ("http://u:12pa/ss@h/x", "http://***@h/x"),
        ("https://token@h/x", "https://***@h/x"),
        ("postgresql://u:pa/ss@h/db", "postgresql://***@h/db"),
        ("postgresql+psycopg2://u:12/ss@h/db", "postgresql+psycopg2://***@h/db"),  # no port, says SQLAlchemy
        ("s3://KEY:se/cret@bucket/x", "s3://***@bucket/x"),
    ],
)
def test_a_password_is_refused_and_hidden_whatever_is_in_it(address, shown):
    with pytest.raises(V2FError, match=r"here: uri: an address must not contain credentials"):
        build(Place, {"uri": address}, "here")
    assert without_credentials(address) == shown
    text = f"GET 'http://host/a' after {address} and http://host:5000/b failed; ask me@example.org"
    assert without_credentials(text) == text.replace(address, shown)


@pytest.mark.parametrize(
    "address",
    [
        *("http://host:5000/path@v2", "http://host:5000", "http://host/a:b@c", "http://[::1]:5000/path@v2"),
        *("s3://bucket/key@x", "s3://bucket/a:b@c/x", "https://host/a:b@c", "https://host:443/a:b@c"),
        *("sqlite:////tmp/a@b/db", "sqlite:////tmp/a:c@b/db", "file:///a:c@b", "postgresql://host:5432/db"),
        *("me@example.org", "runs/a:b@c"),
    ],
)
def test_an_at_in_a_path_is_nobody_s_password(address):
    assert build(Place, {"uri": address}, "here").uri == address
    assert without_credentials(address) == address


def test_the_user_of_a_database_may_be_named_and_is_not_shown():
    for address in ("postgresql://mlflow@db/mlflow", "postgresql://mlflow@db:5432/mlflow", "mysql://mlflow@[::1]:1/x"):
        assert build(Place, {"uri": address}, "here").uri == address
        assert "mlflow@" not in without_credentials(address)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            (text, text)
            for text in ("o/try #2", "a: b", "@x", "*a", "&a b", "!x", "%x", "- a", "? b", "| x", "`z", "=")
        ),
        *((text, text) for text in ("2026-11-30", "1:30", "<<", "~/x", "#", "s3://lab/x#2")),
        *(("3", 3), ("1e-3", 0.001), ("-5", -5), ("null", None), ("", None), ("true", True), (" x ", "x")),
        *(("[1, x]", [1, "x"]), ("{a: 1, b: x}", {"a": 1, "b": "x"}), ("'a #2'", "a #2"), ('"3"', "3")),
    ],
)
def test_an_override_is_a_number_a_group_or_all_that_was_typed(text, value):
    assert override({}, [f"k={text}"]) == {"k": value}


@pytest.mark.parametrize("text", ["[1] #2", "'a' #2", "{a: 1} # b"])
def test_an_override_of_which_a_part_would_be_left_out_is_refused(text):
    with pytest.raises(V2FError, match=r"'#.*' after the value would be ignored; put the whole value in quotes"):
        override({}, [f"k={text}"])


def test_an_override_that_no_file_could_hold_is_refused():
    with pytest.raises(V2FError, match=r"override 'k=.*': not valid YAML"):
        override({}, ["k=\x07"])
