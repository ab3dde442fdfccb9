"""Names in all spellings: what compares as the same, and what any report can hold."""

import unicodedata
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from v2f.prepare import LeftOut, yields
from v2f.prepare.names import is_text, on_disk, person, printable, same, tidy

ANY = st.text(st.characters())  # lone surrogates included: what Python makes of bytes that are not UTF-8
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
def test_every_spelling_is_the_same_name(name: str) -> None:
    assert same(unicodedata.normalize("NFD", name)) == same(unicodedata.normalize("NFC", name)) == same(name)
    assert same(name.encode().decode("ascii", "surrogateescape")) == same(name)
    assert person(f"\ufeff {name}\u200b\u00a0\u2066") == person(name)


@given(st.text(st.characters(codec="ascii")))
def test_ascii_stays_as_it_is(name: str) -> None:
    assert same(name) == name
    assert tidy(name) == name.strip()


@pytest.mark.parametrize(("one", "two"), [("Ada", "ada"), ("Jos\u00e9", "Jose"), ("\ufb01", "fi"), ("a b", "a\u00a0b")])
def test_what_looks_alike_may_be_two_people(one: str, two: str) -> None:
    """Case is not folded, letters are not replaced by others, and what stands inside a name stays."""
    assert person(one) != person(two)


@given(ANY, ANY, ANY)
def test_a_report_can_hold_any_name(name: str, who: str, why: str) -> None:
    root = "memory://names/report"
    each = LeftOut(name, who, "no", why)
    yields.write_left_out(root, [each, each])
    assert yields.read_left_out(root) == [each, each]
    assert yields.to_json(yields.yield_report({}, [each]))
    assert is_text(name) == (same(name) == printable(same(name)))


def test_what_is_not_there_keeps_its_path(tmp_path: Path) -> None:
    for path in (
        "\u00e9.wav",
        str(tmp_path / "\u00e9/\u00e8.wav"),
        "/nowhere/\u00e9",
        "memory://no/\u00e9",
        "\u00e9\0.wav",
    ):
        assert on_disk(path) == path


def test_a_folder_that_changed_is_looked_at_again(tmp_path: Path) -> None:
    wanted = tmp_path / "Jos\u00e9.wav"
    assert on_disk(str(wanted)) == str(wanted)
    there = tmp_path / "Jose\u0301.wav"
    there.touch()
    assert on_disk(str(wanted)) == str(there)
