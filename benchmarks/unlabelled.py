"""Measures what a line catches that nobody labelled: two defects, a foreign pin, a wrong color, a foreign object.

    python benchmarks/unlabelled.py [PROJECT] [--captures 100]

PROJECT is a folder in which the pipeline has run (`make demo`). Renders captures of each kind in the look of its
virtual line, as the stage raw does, and inspects them as production does: with its adapter, its threshold, and unit
space and reference of its virtual line. The thresholds of localizer and baseline are those for virtual captures,
chosen on validation (and training) captures. Writes benchmarks/results/unlabelled.md.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from pinspect.captures.references import DST_COLUMNS, RAW_COLUMNS, rank_references, raw_captures
from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.core.images import read_image
from pinspect.core.lines import Line
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.core.operating_point import read_operating_point
from pinspect.core.params import Params, load_params
from pinspect.core.product_files import read_product
from pinspect.examination.baseline import Baseline, fit_baseline
from pinspect.examination.localizer import fit_localizer
from pinspect.inspection.inspector import CaptureInspector
from pinspect.inspection.records import Inspection, Photograph
from pinspect.model.families import checkpoint_of
from pinspect.model.loading import load_inspector
from pinspect.nsoartc.dst_view import dst_view, localize_pin
from pinspect.virtual_line import KINDS, LineSetup, default_setup, render_unlabelled, setup_like

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/unlabelled.md"
SEED = 15
SHOWN_REFERENCES = 7  # as in the stage raw
COLUMNS = ("set aside", "model", "localizer", "DST picture alone", "per-pin baseline", "any", "right pins first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, nargs="?", default=ROOT, help="folder with the outputs of the pipeline")
    parser.add_argument("--captures", type=int, default=100, help="captures of each kind")
    arguments = parser.parse_args()
    project, params = arguments.project, load_params(arguments.project / "params.yaml")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(project, params, Path(folder))
        rows = {kind: bench.shares(kind, arguments.captures) for kind in KINDS}
    RESULT.write_text(as_markdown(rows, arguments.captures), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


class Bench:
    """The inspector, the baseline and the looks of a project's virtual line."""

    def __init__(self, project: Path, params: Params, line: Path):
        data, self.params, self.contract = project / "data", params, params.contract()
        self.raw = read_manifest(data / "raw" / MANIFEST, RAW_COLUMNS)
        ranked = rank_references(raw_captures(self.raw), read_manifest(data / "dst" / MANIFEST, DST_COLUMNS))
        for shape in self.contract.shapes:  # as `registry.package.pack_line` does it for the camera's line
            virtual = Line("virtual", shape)
            shutil.copyfile(data / "dst" / virtual.unit_space, line / f"{shape}.npz")
            (line / f"{shape}-reference.jpg").write_bytes(read_product(data / "raw" / ranked[virtual][0].file))
        self.baseline: Baseline = fit_baseline(data / "dst", data / "raw", self.contract)
        self.threshold = fit_localizer(data / "dst", data / "raw", self.contract).thresholds["virtual"]
        point = read_operating_point(project / "models/operating_point.json", project / "models/adapter")
        model = load_inspector(checkpoint_of(params.model, project), project / "models/adapter")
        self.inspector = CaptureInspector(model, line, params, point.threshold, localizer_threshold=self.threshold)
        self.setups = {shape: self._setup(data / "raw", shape) for shape in self.contract.shapes}

    def shares(self, kind: str, captures: int) -> dict[str, float]:
        """Return the share of captures of a kind for each of `COLUMNS`; after the first, of those not set aside."""
        outcomes = []
        for number, shape in enumerate(self.contract.shapes):
            photographs, pins = [], []
            for index in range(number, captures, len(self.contract.shapes)):
                rng = np.random.default_rng([SEED, KINDS.index(kind), index])
                jpeg, changed = render_unlabelled(
                    kind, rng, self.setups[shape], self.contract.layout, self.contract.drawings
                )
                photographs.append(Photograph(f"{index}.jpg", jpeg))
                pins.append(changed)
            inspections = self.inspector(photographs, shape=shape)
            judged = [each for each in zip(photographs, inspections, pins, strict=True) if not each[1].error]
            outcomes += [self._outcome(kind, *each) for each in judged]
        return dict(zip(COLUMNS, [1 - len(outcomes) / captures, *np.mean(outcomes, axis=0)], strict=True))

    def _outcome(self, kind: str, photograph: Photograph, inspection: Inspection, pins: tuple[int, ...]) -> list[bool]:
        shape = inspection.image_type.split("_")[0]
        seen = self.inspector.see(photograph, shape)
        space = seen.capture.unit_space
        finding = self.baseline.inspect_image(seen.image, space, self.params.dst.maximum_shift, "virtual")
        calls = [
            inspection.judgement == DEFECTIVE,
            inspection.localizer_position != PASSED,
            localize_pin(dst_view(seen.capture), space).score >= self.threshold,
            finding.answer.judgement == DEFECTIVE,
        ]
        highest = np.argsort(inspection.pin_map)[::-1][: 2 if kind == "two defects" else 1]
        return [*calls, any(calls), set(highest.tolist()) <= set(pins)]

    def _setup(self, raw: Path, shape: str) -> LineSetup:
        table = self.raw
        rows = table[(table["source"] == "camera") & (table["role"] == "reference") & (table["shape"] == shape)]
        files = rows.sort_values(["sha256", "capture"])["file"].head(SHOWN_REFERENCES)
        pictures = [np.asarray(read_image(raw / file)) for file in files]
        return setup_like(pictures, default_setup(shape, self.contract.layout), self.contract.layout)


def as_markdown(rows: dict[str, dict[str, float]], captures: int) -> str:
    del rows["passed"][COLUMNS[-1]]  # no pin is the right one
    lines = [f"| {kind} | {' | '.join(f'{share:.2f}' for share in shares.values())} |" for kind, shares in rows.items()]
    lines[list(rows).index("passed")] += " |"
    return "\n".join(
        [
            "# What is caught that nobody labelled",
            "",
            f"Made by `python benchmarks/unlabelled.py`: {captures} virtual captures of each kind, half of them with",
            "square pins, in the look of the sample line. Shares judged defective: by the model; by the localizer",
            "(white in the DST picture, color and shape of the tops); by the DST picture alone; by the per-pin",
            "baseline; by any of them. In the row *passed* these shares are overkill. *Right pins first*: the highest",
            "pin of the pin map is the right one (two defects: the two highest are the right ones; a foreign object: a",
            "pin whose cell the object covers). Half of the foreign objects lie on the pins, half on the floor between",
            "them, where pins may hide them.",
            "",
            f"| kind | {' | '.join(COLUMNS)} |",
            f"| --- |{' --- |' * len(COLUMNS)}",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
