"""The stages of the DVC pipeline, one script each. Importing this package prepares the environment of a stage."""

from pinspect.core import environment

environment.apply()
