"""The MLflow registry: one registered model, one version per adapter hash, its scores as tags.

A version is made in one step, with all its tags, after everything that it points to is stored: a run that is killed on
the way leaves at most an unfinished MLflow run behind, never half a version.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import mlflow
import pandas as pd
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.filesystem_dataset_source import FileSystemDatasetSource  # noqa: F401
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

import pinspect
from pinspect.errors import RegistryError, StageInputError
from pinspect.evaluation import provenance
from pinspect.params import Params
