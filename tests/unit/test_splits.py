"""Splits: decided by content, stable, and near-duplicates always share a split."""

import functools
import hashlib
import io
import itertools
import operator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from pinspect.captures.splits import (
    SPLITS,
    TRAIN,
    NearDuplicates,
    SplitRule,
    perceptual_hash,
    read_splits,
    write_splits,
)
from pinspect.core.errors import CaptureError
from pinspect.core.names import shot_of
from tests.support.candidates import Candidate, assign
from tests.support.sample import ROOT, params

RULE = SplitRule("pinspect", validation_share=0.12, test_share=0.28, near_duplicate_bits=16)


def candidate(name: object, bits: int = 0, *, reference: bool = False, like: str = "") -> Candidate:
    """Return a capture; if `like` is set, its perceptual hash differs from that of `like` in `bits` bits."""
    picture = int(hashlib.sha256((like or str(name)).encode()).hexdigest(), 16) ^ ((1 << bits) - 1)
    return Candidate(str(name), hashlib.sha256(str(name).encode()).hexdigest(), f"{picture:064x}", reference)


def splits_of(candidates, recorded=None, rule=RULE):
    return assign(candidates, rule, recorded)[0]


@pytest.mark.parametrize("bits", [0, 3, 16, 31, 32, 255])
def test_near_duplicates_are_those_of_comparing_each_with_each(bits):
    random = np.random.default_rng(bits)
    pictures = [int.from_bytes(random.bytes(32)) for _ in range(8)]
    flips = [
        [1 << int(place) for place in random.choice(256, random.integers(0, min(bits + 4, 256)))] for _ in range(120)
    ]
    hashes = [
        f"{pictures[number % 8] ^ functools.reduce(operator.xor, flip, 0):064x}" for number, flip in enumerate(flips)
    ]
    near = NearDuplicates(hashes, bits)
    for number, first in enumerate(hashes):
        expected = [other for other, second in enumerate(hashes) if distance(first, second) <= bits]
        assert near.older(number, len(hashes)).tolist() == expected
        assert near.older(number, number).tolist() == [other for other in expected if other < number]


@pytest.fixture(scope="module")
def sample_images():
    return [Image.open(path) for path in sorted((ROOT / "data/captures/images").glob("*.jpg"))]


def distance(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def test_distinct_captures_of_the_sample_line_are_no_near_duplicates(sample_images):
    hashes = [perceptual_hash(image) for image in sample_images]
    bits = params().raw.near_duplicate_bits
    assert min(distance(first, second) for first, second in itertools.combinations(hashes, 2)) > bits


def stored_again(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize(
    "copied",
    [
        lambda image: stored_again(image, 60),
        lambda image: stored_again(image, 95),
        lambda image: ImageEnhance.Brightness(image).enhance(1.1),
        lambda image: ImageEnhance.Brightness(image).enhance(0.95),
        lambda image: ImageEnhance.Contrast(image).enhance(1.05),
        lambda image: image.resize((image.width // 2, image.height // 2)),
        lambda image: image.crop((1, 1, image.width - 1, image.height - 1)),
    ],
    ids=["quality 60", "quality 95", "brighter", "darker", "more contrast", "half the size", "one px cut off"],
)
def test_copies_of_captures_are_near_duplicates(sample_images, copied):
    bits = params().raw.near_duplicate_bits
    for image in sample_images[::10]:
        assert distance(perceptual_hash(image), perceptual_hash(copied(image))) <= bits


def test_the_shares_hold():
    splits = list(splits_of([candidate(number) for number in range(2000)]).values())
    assert splits.count("test") / 2000 == pytest.approx(0.28, abs=0.03)
    assert splits.count("validation") / 2000 == pytest.approx(0.12, abs=0.03)


def test_references_are_for_training():
    assert set(splits_of([candidate(number, reference=True) for number in range(50)]).values()) == {TRAIN}


def test_near_duplicates_stay_together():
    originals = [candidate(number) for number in range(100)]
    copies = [candidate(f"copy of {number}", bits=5, like=str(number)) for number in range(100)]
    splits = splits_of([*originals, *copies])
    assert len({splits[original.sha256] for original in originals}) == 3
    for original, duplicate in zip(originals, copies, strict=True):
        assert splits[original.sha256] == splits[duplicate.sha256]


def test_a_copy_of_a_reference_is_not_tested_with():
    pairs = [(candidate(f"copy {n}", bits=3, like=str(n)), candidate(n, reference=True)) for n in range(30)]
    assert set(splits_of([capture for pair in pairs for capture in pair]).values()) == {TRAIN}


captures = st.lists(
    st.builds(
        lambda name, like, bits, reference: candidate(
            f"{name}", bits=bits, like=f"picture {like}", reference=reference
        ),
        name=st.integers(0, 10_000),
        like=st.integers(0, 6),
        bits=st.integers(0, 30),
        reference=st.booleans(),
    ),
    unique_by=lambda capture: capture.sha256,
    min_size=1,
    max_size=12,
)


@given(captures=captures, data=st.data())
def test_adding_captures_never_moves_old_ones_across_the_split(captures, data):
    """With the record of splits, old captures keep their split, whatever rows are added and wherever."""
    count = data.draw(st.integers(0, len(captures)))
    before = splits_of(captures[:count])
    after = splits_of(data.draw(st.permutations(captures)), recorded=before)
    assert {sha256: after[sha256] for sha256 in before} == before


@given(captures=captures, data=st.data())
def test_captures_added_at_the_end_need_no_record(captures, data):
    inspected = [capture for capture in captures if not capture.is_reference]
    count = data.draw(st.integers(0, len(inspected)))
    before, after = splits_of(inspected[:count]), splits_of(inspected)
    assert {sha256: after[sha256] for sha256 in before} == before


@given(captures=captures)
def test_every_capture_gets_one_of_the_three_splits(captures):
    assert set(splits_of(captures)) == {capture.sha256 for capture in captures}
    assert set(splits_of(captures).values()) <= set(SPLITS)


def test_names_do_not_matter():
    first = candidate("a")
    assert splits_of([first]) == splits_of([Candidate("b", first.sha256, first.perceptual_hash, False)])


def test_another_salt_gives_another_split():
    captures = [candidate(number) for number in range(100)]
    other = SplitRule("another", 0.12, 0.28, 16)
    assert splits_of(captures) != splits_of(captures, rule=other)


def test_a_picture_near_two_splits_causes_a_remark():
    old = {candidate("left").sha256: "train", candidate("right", bits=24, like="left").sha256: "test"}
    captures = [
        candidate("left"),
        candidate("right", bits=24, like="left"),
        candidate("between", bits=12, like="left"),
    ]
    splits, remarks = assign(captures, RULE, old)
    assert splits[captures[2].sha256] == "train"
    assert remarks == ["between (train) shows the same as right in another split; remove one of them"]


def test_nearly_equal_pictures_with_different_labels_cause_a_remark():
    first, alike = replace(candidate("a"), label="passed"), candidate("b", bits=1, like="a")
    _, remarks = assign([first, replace(alike, label="bend")], RULE)
    assert remarks == ["b (bend) shows nearly the same as a (passed); correct the wrong label, if one is wrong"]
    assert assign([first, replace(alike, label="passed")], RULE)[1] == []


def test_a_threshold_too_wide_for_the_line_causes_a_remark():
    captures = [candidate(number, bits=number % 7, like="the same") for number in range(40)]
    _, remarks = assign(captures, RULE)
    assert "39 of 40 captures count as near-duplicates of one capture: lower raw.near_duplicate_bits" in remarks[-1]


def test_a_blank_picture_has_a_perceptual_hash():
    blank = Image.fromarray(np.full((60, 80, 3), 90, np.uint8))
    assert len(perceptual_hash(blank)) == 64


def test_the_record_is_read_back(tmp_path):
    splits = splits_of([candidate(number) for number in range(20)])
    write_splits(tmp_path / "splits.csv", splits.items(), RULE)
    assert dict(read_splits(tmp_path / "splits.csv", RULE)) == splits
    assert not list(read_splits(tmp_path / "none.csv", RULE))


def test_the_record_of_another_rule_is_ignored(tmp_path):
    write_splits(tmp_path / "splits.csv", splits_of([candidate("a")]).items(), RULE)
    assert not list(read_splits(tmp_path / "splits.csv", SplitRule("pinspect", 0.12, 0.4, 16)))


@pytest.mark.parametrize("text", ["", "sha256,colour\n", "sha256,split,rule\nab,exam,1\n"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(CaptureError, match=r"splits.csv: .*restore it by `git checkout"):
        list(read_splits(tmp_path / "splits.csv", RULE))


def test_both_eyes_views_of_a_connector_share_a_split():
    views = [candidate(f"{eye}_{number}.jpg") for number in range(40) for eye in ("left", "right")]
    splits = splits_of(views)
    assert all(splits[left.sha256] == splits[right.sha256] for left, right in zip(views[::2], views[1::2], strict=True))
    assert len(set(splits.values())) > 1
    assert [shot_of(each.file) for each in views[:2]] == ["_0.jpg", "_0.jpg"]
    assert shot_of("camera0_1.jpg") == ""


def shots(eyes: str, shot: int, **options) -> list[Candidate]:
    """Return views of a passed shot of the series by the eyes' digits; `options` by digit, as for `candidate`."""
    names = [f"OK_camera{shot}_{eye}_400_400_89_0_0_OK.jpg" for eye in eyes]
    return [candidate(name, **options.get(f"eye_{eye}", {})) for eye, name in zip(eyes, names, strict=True)]


def test_both_eyes_and_all_captures_of_a_shot_share_a_split():
    other_light = candidate("OK_camera3_0_310_480_89_0_0_OK.jpg")
    for shot in range(40):
        decided = splits_of(shots("02", shot))
        assert len(set(decided.values())) == 1
    assert len(set(splits_of([*shots("02", 3), other_light]).values())) == 1


def test_a_shot_joins_a_near_duplicate_of_its_second_view():
    for shot in range(1, 40):
        first = shots("02", 0)
        second = shots("02", shot, eye_2={"bits": 9, "like": first[1].file})
        decided, remarks = assign([*first, *second], RULE)
        assert len(set(decided.values())) == 1
        assert remarks == []


def test_a_later_shot_joins_and_moves_no_recorded_one():
    first = shots("02", 0)
    recorded = splits_of(first)
    later = shots("02", 5, eye_2={"bits": 9, "like": first[1].file})
    assert splits_of([*first, *later], recorded) == splits_of([*first, *later])
    assert splits_of([*first, *later], recorded).items() >= recorded.items()
