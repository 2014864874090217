"""Many texts as hashes, and places of values among known ones."""

import pyarrow as pa

from pinspect.captures.lookups import TextHashes, places_of


def test_a_text_of_the_set_is_in_it_and_no_other():
    texts = [f"{number:07d}.jpg" for number in range(1000)]
    hashes = TextHashes(map(hash, texts))
    assert all(text in hashes for text in texts)
    assert not any(f"{number:07d}.png" in hashes for number in range(1000))
    assert "pin.jpg" not in TextHashes([])


def test_texts_that_occur_twice_are_known():
    assert TextHashes(map(hash, ["pin", "row", "pin", "line", "row", "row"])).repeated() == {hash("pin"), hash("row")}
    assert TextHashes(map(hash, ["pin", "row"])).repeated() == TextHashes([]).repeated() == set()


def test_places_are_those_of_the_known_values():
    assert places_of(pa.array(["b", "x", "a", "b"]), pa.array(["a", "b"])).tolist() == [1, -1, 0, 1]
    assert places_of(pa.array([], pa.uint64()), pa.array([7], pa.uint64())).tolist() == []
    assert places_of(pa.array([7], pa.uint64()), pa.array([], pa.uint64())).tolist() == [-1]
