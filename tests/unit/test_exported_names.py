"""The package's public names, and how cheap it is to import them."""

import subprocess
import sys

import pinspect


def test_the_exported_names_are_these():
    assert sorted(pinspect.__all__) == [
        "Address",
        "Answer",
        "AnswerContract",
        "AnswerKind",
        "Layout",
        "Params",
        "PinspectError",
        "load_params",
    ]
    assert all(hasattr(pinspect, name) for name in pinspect.__all__)


def test_importing_the_package_loads_no_heavy_library():
    heavy = "torch", "mlflow", "transformers", "prefect", "pandas", "cv2"
    code = f"import sys, pinspect, pinspect.cli; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
