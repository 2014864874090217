"""The unit space: robust, reproducible, with clear errors about unusable references; pin scores and views."""

import dataclasses
from functools import lru_cache

import numpy as np
import pytest

from pinspect.core.errors import UnitSpaceError
from pinspect.core.files import write_file
from pinspect.core.images import to_gray
from pinspect.core.layout import Layout
from pinspect.nsoartc.aligned import align_capture
from pinspect.nsoartc.alignment import warp
from pinspect.nsoartc.light import light_field, without_trend
from pinspect.nsoartc.pin_scores import FEATURES, measure_pins, mode_features
from pinspect.nsoartc.unit_space import UnitSpace, build_unit_space, even_light
from pinspect.virtual_line import LineSetup, Rendered, change_pin, render, tolerated_pins
from tests.support.sample import params

LAYOUT = params().layout.layout()
DRAWINGS = params().contract().drawings
SETUPS = {"CYLN": LineSetup("CYLN"), "SQUR": LineSetup("SQUR", pin_width=0.46)}


def capture(shape: str, seed: int, mode: str = "", address: str = "") -> Rendered:
    """Render a capture of the virtual line; if `mode` is set, one pin is defective."""
    rng = np.random.default_rng([7, seed])
    pins = tolerated_pins(rng, SETUPS[shape], LAYOUT)
    if mode:
        change_pin(pins, LAYOUT.index(LAYOUT.address(address)), DRAWINGS[mode], rng, LAYOUT, SETUPS[shape])
    return render(rng, SETUPS[shape], pins, LAYOUT)


def built(references: list[Rendered], shape: str = "CYLN", boxes: bool = True, **changes) -> UnitSpace:
    images, names = [each.image for each in references], [f"r{n}.jpg" for n in range(len(references))]
    settings = params().dst.model_copy(update=changes)
    return build_unit_space(
        images, names, [each.field_box for each in references] if boxes else None, shape, LAYOUT, settings
    )


@lru_cache
def unit_space(shape: str = "CYLN") -> UnitSpace:
    """Build a unit space of eight passed references."""
    return built([capture(shape, seed) for seed in range(8)], shape)


def gray_image(gray: np.ndarray) -> np.ndarray:
    return (gray[..., None].repeat(3, axis=-1) * 255 + 0.5).astype(np.uint8)


def evened(space: UnitSpace, seen: Rendered) -> np.ndarray:
    return align_capture(seen.image, space, 40).evened


def distances(space: UnitSpace, seen: Rendered) -> np.ndarray:
    """Return the distances of the pins, relative to a value that few passed pins reach."""
    return space.pin_distances(measure_pins(evened(space, seen), space.templates)) / space.pin_white


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("shape", SETUPS)
def test_the_pins_are_where_they_were_rendered(shape, boxes):
    references = [capture(shape, seed) for seed in range(6)]
    space = built(references, shape, boxes)
    setup = SETUPS[shape]
    assert abs(space.pitch - setup.pitch_px) < 0.7
    middle = np.mean([np.reshape(each.field_box, (2, 2)).mean(axis=0) for each in references], axis=0)
    np.testing.assert_allclose(space.pin_centers.mean(axis=0), middle, atol=2)
    tops = space.mean[space.pin_centers[:, 1].round().astype(int), space.pin_centers[:, 0].round().astype(int)]
    assert tops.min() > 3 * np.median(space.mean)


def test_the_same_references_give_the_same_bytes():
    references = [capture("CYLN", seed) for seed in range(5)]
    assert built(references).packed() == built(references).packed()


def test_a_unit_space_is_read_back_as_it_was_written(tmp_path):
    space = unit_space()
    write_file(tmp_path / "x/space.npz", space.packed())
    loaded = UnitSpace.load(tmp_path / "x/space.npz")
    assert loaded.digest == space.digest
    for field in dataclasses.fields(UnitSpace):
        ours, theirs = getattr(space, field.name), getattr(loaded, field.name)
        assert type(ours) is type(theirs)
        np.testing.assert_array_equal(ours, theirs) if isinstance(ours, np.ndarray) else None
        assert isinstance(ours, np.ndarray) or ours == theirs


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_unit_space_is_refused_by_name(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    for name in ("bad.npz", "gone.npz"):
        with pytest.raises(UnitSpaceError, match=f"{name}: (no unit space|not found).*run the dst stage"):
            UnitSpace.load(tmp_path / name)


def test_too_few_references_are_refused_with_what_to_do():
    with pytest.raises(UnitSpaceError, match=r"shape SQUR: 4 references, at least 5 are needed .*labels\.csv"):
        built([capture("SQUR", seed) for seed in range(4)], "SQUR")


def test_a_reference_that_shows_something_else_is_refused_by_name():
    references = [capture("CYLN", seed) for seed in range(5)]
    references[2].image = np.random.default_rng(0).integers(0, 255, references[2].image.shape).astype(np.uint8)
    with pytest.raises(UnitSpaceError, match=r"r2\.jpg cannot be aligned to the other references"):
        built(references)


def test_references_without_a_whole_pin_field_are_refused():
    parts = [capture("CYLN", 3)] * 5
    parts[0].image[:, 220:] = 20
    with pytest.raises(UnitSpaceError, match="found no field of 3 x 9 pins"):
        built(parts, boxes=False)


@pytest.mark.parametrize("shape", SETUPS)
@pytest.mark.parametrize("mode", DRAWINGS)
def test_a_bad_reference_is_reported_by_name_and_does_not_count(shape, mode):
    good = [capture(shape, seed) for seed in range(7)]
    spoiled = built([*good, capture(shape, 77, mode, "X:2, Y:D")], shape)
    assert spoiled.outliers == ("r7.jpg",)
    assert (
        distances(built(good, shape), Rendered(gray_image(spoiled.mean), (0, 0, 0, 0), np.empty(0), np.empty(0))).max()
        < 0.6
    )


@pytest.mark.parametrize("shape", SETUPS)
def test_a_reference_of_the_other_shape_is_reported_by_name(shape):
    (other,) = SETUPS.keys() - {shape}
    space = built([*(capture(shape, seed) for seed in range(7)), capture(other, 30)], shape)
    assert space.outliers == ("r7.jpg",)


@pytest.mark.parametrize("mode", ["", *DRAWINGS])
def test_a_capture_fits_its_own_shape_best(mode):
    for shape in SETUPS:
        for seed in range(500, 505):
            gray = to_gray(capture(shape, seed, mode, "X:4, Y:C").image)
            misfits = {
                name: unit_space(name).misfit(warp(gray, unit_space(name).alignment_target.align(gray, 40), (640, 260)))
                for name in SETUPS
            }
            assert min(misfits, key=misfits.get) == shape


@pytest.mark.parametrize("shape", SETUPS)
def test_similar_references_are_all_used(shape):
    assert unit_space(shape).outliers == ()


@pytest.mark.parametrize("shape", SETUPS)
@pytest.mark.parametrize("mode", DRAWINGS)
def test_a_defective_pin_is_the_furthest_and_passed_pins_are_near(shape, mode):
    space = unit_space(shape)
    for number, address in enumerate(("X:1, Y:U", "X:5, Y:C", "X:9, Y:D", "X:3, Y:D")):
        values = distances(space, capture(shape, 100 + number, mode, address))
        assert values.argmax() == LAYOUT.index(LAYOUT.address(address))
        assert values.max() > 1.8 > np.median(values)
        assert distances(space, capture(shape, 200 + number)).max() < 1.8


def test_a_light_gradient_is_removed():
    space = unit_space()
    gray = (
        space.mean
        * np.linspace(0.6, 1.3, 640, dtype=np.float32)
        * np.linspace(0.9, 1.1, 260, dtype=np.float32)[:, None]
    )
    tops = np.abs(even_light(gray, space.templates) - space.mean)[space.mean > 0.5]
    assert np.quantile(tops, 0.99) < 0.02 < np.abs(gray - space.mean)[space.mean > 0.5].mean()


def test_one_dark_pin_does_not_bend_the_light_field():
    places = unit_space().pin_centers
    brightness = 1 + 0.2 * places[:, 0] / 640
    field = light_field(brightness, places, (640, 260))
    brightness[4] = 0.1
    np.testing.assert_allclose(light_field(brightness, places, (640, 260)), field, atol=0.01)


def test_a_trend_over_all_pins_is_removed():
    places = unit_space().pin_centers
    values = np.stack([0.01 * places[:, 0] - 2, np.full(27, 3.0)], axis=1)
    values[13, 0] += 5
    residuals = without_trend(values, places, (640, 260), np.array([0.1, 0.1]))
    assert abs(residuals[13, 0] - 5) < 0.1
    assert np.abs(np.delete(residuals, 13, axis=0)).max() < 0.1


def test_features_measure_the_change_of_a_pin():
    space = unit_space()
    place, pin = space.pin_centers[20].round().astype(int), 20
    changed = space.mean.copy()
    part = np.s_[place[1] - 32 : place[1] + 33, place[0] - 32 : place[0] + 33]
    changed[part] = np.roll(space.mean[part], (1, 2), axis=(0, 1)) * 0.9
    features = dict(zip(FEATURES, measure_pins(changed, space.templates)[pin], strict=True))
    assert features["brightness"] == pytest.approx(-0.1, abs=0.02)
    assert (features["shift_x"], features["shift_y"]) == pytest.approx((2, 1), abs=0.15)
    assert features["size"] == pytest.approx(0, abs=0.01)
    assert np.abs(np.delete(measure_pins(space.mean, space.templates), 5, axis=1)).max() < 0.01


def test_features_separate_the_defect_modes():
    space = unit_space()
    features = {}
    for mode, address in (("bend", "X:2, Y:U"), ("retract", "X:2, Y:U"), ("missing", "X:2, Y:U")):
        measures = measure_pins(evened(space, capture("CYLN", 300, mode, address)), space.templates)
        features[mode] = mode_features(measures, space.templates, LAYOUT.index(LAYOUT.address(address)))
    _, size, likeness, _, inward, across, _, sink = features["retract"]
    assert inward > 0.03 and across < 0.1 * inward + 0.02
    assert sink == pytest.approx(-size, abs=0.04) and likeness > 0.85
    assert features["missing"][2] < 0.8 < features["bend"][2]


@pytest.mark.parametrize(
    ("layout", "setup"),
    [
        (Layout(("A", "B"), 6), LineSetup("CYLN", center_px=(320.0, 130.0))),
        (Layout(("A", "B", "C"), 3), LineSetup("CYLN", image_width=320, center_px=(160.0, 130.0))),
        (Layout(("A",), 5), LineSetup("CYLN", center_px=(320.0, 130.0))),
        (LAYOUT, LineSetup("CYLN", image_width=1280, image_height=520, pitch_px=131.0, center_px=(640.0, 262.0))),
    ],
    ids=["2 x 6", "3 x 3", "1 x 5", "twice the size"],
)
def test_other_layouts_and_sizes_work_too(layout, setup):
    rng = np.random.default_rng(3)
    seen = [render(rng, setup, tolerated_pins(rng, setup, layout), layout) for _ in range(7)]
    images, boxes = [each.image for each in seen], [each.field_box for each in seen]
    names = [f"r{number}" for number in range(6)]
    space = build_unit_space(images[:6], names, boxes[:6], "CYLN", layout, params().dst)
    pins = tolerated_pins(rng, setup, layout)
    change_pin(pins, layout.pins - 1, DRAWINGS["missing"], rng, layout, setup)
    values = distances(space, render(rng, setup, pins, layout))
    assert values.argmax() == layout.pins - 1 and values.max() > 3
    assert distances(space, seen[6]).max() < 2


def test_given_field_boxes_are_used_and_no_grid_is_searched(monkeypatch):
    expected = unit_space().digest
    monkeypatch.setattr("pinspect.nsoartc.field.find_grid", None)
    assert built([capture("CYLN", seed) for seed in range(8)]).digest == expected
