"""The `pinspect` command. Each sub-command is one function that calls the library, and imports it when it is called:
`pinspect --help` must not wait for torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pinspect import quiet  # noqa: F401  before the libraries that read its settings
from pinspect.errors import run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From photographs of wire-harness connectors to a vision-language inspector, and inspection with it.",
)

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameters' file.")]


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Images, or images/, with or without a labels.csv.")],
    shape: Annotated[str, typer.Option(help="Pin shape of the captures whose shape no row says.")] = "",
    captures: Annotated[Path, typer.Option(help="Where captures are kept.")] = Path("data/captures"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Copy new captures in, each image and label checked before; `dvc repro` then redoes only what changed."""
    from pinspect.data.captures import add_captures
    from pinspect.params import load_params

    found = load_params(params)
    report = add_captures(folder, captures, found.contract(), max_pixels=found.raw.max_pixels, shape=shape)
    for name in report.skipped:
        print(f"{name}: there already, skipped")
    print(f"{len(report.added)} captures added to {captures}, {len(report.skipped)} skipped")
    if report.added:
        print("next: dvc repro")


@app.command()
def summary(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder.")] = Path()) -> None:
    """Tell what the last `dvc repro` came to: scores, registered version, report."""
    from pinspect.evaluation.summary import print_summary

    print_summary(folder)


def main() -> None:
    """Run the command line."""
    run(app)
