"""The README agrees with the files."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np

from tests.support.readme import readme_example

ROOT = Path(__file__).parents[2]


def test_the_readmes_figures_are_those_of_the_committed_evaluation():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "tools/figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    text = (ROOT / "README.md").read_text()
    metrics = json.loads((ROOT / "reports/eval/metrics.json").read_text())
    assert figures.BLOCK.search(text)
    assert figures.readme(text, metrics) == text, "run `make figures`"


def test_every_link_of_the_docs_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "models/base").glob("*.md")]:
        for target in re.findall(r"\]\((?!https:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_example_of_nsoartc_runs():
    names = {}
    exec(readme_example("nsoartc"), names)
    distance = names["distance"]
    assert distance.dtype == np.float32
    assert distance.shape[-1] == 3
    assert distance.min() > 0
