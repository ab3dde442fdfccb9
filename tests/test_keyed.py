"""Keyed randomness: a function of the key alone, and the same in every release (the voices' sounds hang on it)."""

from hypothesis import given
from hypothesis import strategies as st

from v2f.keyed import keyed_rng

keys = st.lists(st.integers(0, 2**62), min_size=1, max_size=5)


@given(keys)
def test_a_key_always_gives_the_same_stream(key):
    assert keyed_rng(*key).bytes(16) == keyed_rng(*key).bytes(16)


@given(st.integers(0, 2**30), st.integers(0, 2**30), st.integers(0, 61))
def test_one_bit_of_the_key_changes_the_stream(a, b, bit):
    assert keyed_rng(a, b).bytes(16) != keyed_rng(a, b ^ (1 << bit)).bytes(16)


def test_the_streams_are_those_of_every_release():
    assert keyed_rng(1, 2, 3).bytes(8).hex() == "661ad74911134bb8"
    assert keyed_rng(0x766F6963, 7).bytes(8).hex() == "04fcfd51873cfa88"
