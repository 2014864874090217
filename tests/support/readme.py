"""The examples of the README, as code."""

import re

from tests.support.sample import ROOT

_EXAMPLE = re.compile(r"<!-- example: (\w+) -->\n```python\n(.*?)```", re.DOTALL)


def readme_example(name: str) -> str:
    """Return the code of the example that the README marks with `<!-- example: NAME -->`."""
    return dict(_EXAMPLE.findall((ROOT / "README.md").read_text(encoding="utf-8")))[name]
