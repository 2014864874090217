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


@app.command()
def inspect(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Photographs of the line's connectors.")],
    alias: Annotated[str, typer.Option(help="Which registered model inspects.")] = "challenger",
    shape: Annotated[str, typer.Option(help="Pin shape; found by the best fit when it is not given.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Inspect photographs. Exit code 0: all passed; 1: some are defective; 2: one could not be inspected."""
    from pinspect.serving.inspect_files import exit_code, inspect_files, print_records

    records = print_records(inspect_files(Path(), images, alias, shape), as_json=as_json)
    raise typer.Exit(exit_code(records))


def main() -> None:
    """Run the command line."""
    run(app)
