"""The package's public names, and how cheap it is to import them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import pinspect
from pinspect.core import errors
from pinspect.nsoartc.distance import nsoartc

HEAVY = ("torch", "mlflow", "transformers", "prefect", "dvc", "great_expectations", "pandas", "cv2", "numpy")


def test_the_exported_names_are_these():
    assert pinspect.__all__ == [
        "Address",
        "AlignmentError",
        "Answer",
        "AnswerContract",
        "AnswerFormatError",
        "AnswerKind",
        "CaptureError",
        "ImageError",
        "Inspection",
        "Layout",
        "ModelError",
        "Params",
        "ParamsError",
        "PhotographInspector",
        "PinspectError",
        "RegistryError",
        "RegistryUnreachableError",
        "StageInputError",
        "UnitSpaceError",
        "load_inspector",
        "load_params",
        "nsoartc",
    ]
    assert all(callable(getattr(pinspect, name)) for name in pinspect.__all__)
    assert set(dir(pinspect)) >= set(pinspect.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'load_inspectors'"):
        _ = pinspect.load_inspectors


def test_every_exported_error_is_a_pinspect_error():
    exported = [getattr(pinspect, name) for name in pinspect.__all__ if name.endswith("Error")]
    assert all(issubclass(error, pinspect.PinspectError) for error in exported)
    assert all(getattr(errors, error.__name__) is error for error in exported)


def test_nsoartc_is_called_by_its_name():
    capture, reference = np.random.default_rng(1).random((20, 30, 3)), np.full((20, 30), 0.5)
    assert np.array_equal(pinspect.nsoartc(capture, reference), nsoartc(capture, reference))


def test_importing_the_package_loads_no_heavy_library_and_changes_no_environment_variable():
    code = f"""if True:
        import json, os, sys
        before = dict(os.environ)
        import pinspect, pinspect.cli, pinspect.core.environment
        print(json.dumps([[name for name in {HEAVY} if name in sys.modules], dict(os.environ) == before]))
    """
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "HOME")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [[], True]
