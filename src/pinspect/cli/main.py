"""Defines the `pinspect` command: one function per sub-command.

Those that make projects are in `project_commands`, those that export are in `export_commands`.

Each function imports what it calls, so that `pinspect --help` does not wait for torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from pinspect.cli.export_commands import export, export_dataset, reproduce
from pinspect.cli.project_commands import new, update
from pinspect.cli.results import results
from pinspect.core import environment
from pinspect.core.errors import PinspectError, run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, register and run a vision-language inspector of wire-harness connectors.",
)

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
ApproveBy = Annotated[str, typer.Option("--approve-by", metavar="NAME", help="The person who approves; recorded.")]


app.command()(new)
app.command()(update)
app.command()(results)
app.command()(export)
app.command()(export_dataset)
app.command()(reproduce)


@app.command()
def add(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder with images, or with images/, and optionally a labels.csv.")
    ],
    shape: Annotated[str, typer.Option(help="Shape to assume for captures that labels.csv does not list.")] = "",
    captures: Annotated[Path, typer.Option(help="The folder that the captures go to.")] = Path("data/captures"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Check the images and labels of a folder, then copy them to the captures of the project."""
    from pinspect.captures.adding import add_captures
    from pinspect.core.params import load_params

    parameters = load_params(params)
    report = add_captures(folder, captures, parameters.contract(), max_pixels=parameters.raw.max_pixels, shape=shape)
    for name in report.skipped:
        print(f"{name}: already in the project, skipped")
    print(f"{len(report.added)} captures added to {captures}, {len(report.skipped)} skipped")
    if report.added:
        print("next: dvc repro")


@app.command()
def labels(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with images, or with images/.")],
    shape: Annotated[str, typer.Option(help="Shape to assume for captures whose names reveal none.")] = "",
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Write a labels.csv with a row for each image and the localizer's guess, for a person to fill in."""
    from pinspect.cli.labels import write_labels
    from pinspect.core.params import load_params

    write_labels(folder, Path(), load_params(params), shape)


@app.command()
def grid(
    shape: Annotated[str, typer.Option(help="Pin shape of the line, e.g. CYLN; by default all lines.")] = "",
    eye: Annotated[str, typer.Option(help="Eye of the line, 0 or left, 2 or right; by default both.")] = "",
    corners: Annotated[
        tuple[str, str, str, str] | None,
        typer.Option(
            metavar="X,Y X,Y X,Y X,Y",
            help="Px of the tops of the top left, top right, bottom right and bottom left pin; stored with the line.",
        ),
    ] = None,
    reference: Annotated[
        str, typer.Option(metavar="FILE", help="Reference to draw on, and that the corners are marked in.")
    ] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the stored corners of the line.")] = False,
) -> None:
    """Draw the pins' grid over a reference of each line for a person to confirm; store or remove a correction."""
    from pinspect.cli.grid import Choice, correct_grid, print_grids
    from pinspect.core.params import load_params

    choice = Choice(shape, eye, reference)
    if corners or remove:
        correct_grid(Path(), load_params(), choice, corners)
    print_grids(Path(), load_params(), choice)


@app.command()
def curve(
    sizes: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of defective training captures.")
    ] = "5,10,20,40,80",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of each training; by default a view's share of all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train on few, then on more defective captures, and draw the scores: do more labels help this line?"""
    from pinspect.cli.curve import learning_curve, print_curve
    from pinspect.core.errors import ParamsError
    from pinspect.core.params import load_params
    from pinspect.registry.settings import load_registry_settings

    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", sizes):
        raise ParamsError(f"--sizes: expected numbers such as 5,10,20, found {sizes!r}")
    report = load_registry_settings(Path()).report
    table = learning_curve(Path(), load_params(), report, [int(size) for size in sizes.split(",")], steps)
    if as_json:
        print(table.to_json(orient="records", lines=True), end="")
    else:
        print_curve(table, Path())


@app.command()
def summary(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder.")] = Path()) -> None:
    """Show the scores, the registered version and the report of the last `dvc repro`."""
    from pinspect.cli.summary import print_summary

    print_summary(folder)


@app.command()
def inspect(
    images: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Photographs, folders of photographs, or quoted globs.")
    ],
    alias: Annotated[
        str, typer.Option(help="Alias of the version that inspects; by default the champion, else the challenger.")
    ] = "",
    shape: Annotated[str, typer.Option(help="Pin shape; by default the shape that fits best.")] = "",
    annotate: Annotated[
        str, typer.Option(metavar="DIR", help="Write pictures with a box around the defective pin to this folder.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Inspect photographs. Exit code 0: all passed; 1: at least one is defective; 2: at least one could not be read."""
    from pinspect.cli.inspect import print_records, shows_progress
    from pinspect.inspection.files import find_images

    files = find_images(images)
    total = sum(1 for _ in find_images(images)) if shows_progress() else None

    from pinspect.inspection.annotate import AnnotatedPictures
    from pinspect.inspection.stream import exit_code, inspect_files
    from pinspect.registry.loading import load_inspector

    annotated = AnnotatedPictures(Path(annotate)) if annotate else None
    records = inspect_files(load_inspector(alias), files, shape, annotated)
    raise typer.Exit(exit_code(print_records(records, as_json=as_json, total=total)))


@app.command()
def watch(
    inbox: Annotated[Path, typer.Argument(metavar="INBOX", help="The folder that the camera writes to.")],
    results: Annotated[
        str, typer.Option(metavar="URL", help="SQLAlchemy URL of the results table; by default station.results.")
    ] = "",
    settle: Annotated[
        float, typer.Option(min=1, help="Read a file after it has not changed for this many seconds.")
    ] = 1,
    patience: Annotated[float, typer.Option(min=0, help="Report a file as unreadable after this many seconds.")] = 30,
    shape: Annotated[str, typer.Option(help="Pin shape; by default the shape that fits best.")] = "",
    once: Annotated[
        bool, typer.Option("--once", help="Inspect the present files, then end with the exit codes of `inspect`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Inspect each new photograph in a folder once and store the results. Ctrl-C ends it."""
    from pinspect.station.watch import watch_inbox

    raise typer.Exit(
        watch_inbox(
            Path(),
            inbox,
            results=results,
            settle=settle,
            patience=patience,
            shape=shape,
            once=once,
            as_json=as_json,
        )
    )


@app.command()
def station(
    host: Annotated[str, typer.Option(help="Address to listen on; by default station.host.")] = "",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; by default station.port; 0 chooses a free one.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Most captures in one forward pass; by default station.batch_size."),
    ] = None,
    token: Annotated[
        str,
        typer.Option(envvar="PINSPECT_STATION_TOKEN", show_envvar=True, help="Token that clients must send."),
    ] = "",
) -> None:
    """Serve the champion on a page, an API and a metrics endpoint. Ctrl-C ends it."""
    from pinspect.core.params import load_params
    from pinspect.station.server import run_station
    from pinspect.station.settings import load_station_settings

    options = {"host": host or None, "port": port, "batch_size": batch_size}
    settings = load_station_settings(Path())
    settings = settings.model_copy(update={name: value for name, value in options.items() if value is not None})
    run_station(Path(), load_params(), settings, token=token)


@app.command()
def start() -> None:
    """Fetch the adapter of the version that train.start names; the next training starts from it."""
    from pinspect.core.params import load_params
    from pinspect.registry.settings import load_register_settings
    from pinspect.registry.start import fetch_start

    name = fetch_start(Path(), load_register_settings(Path()), load_params().train.start)
    print(f"the next training starts from {name or 'the base'}")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the registered versions with their aliases and scores, newest first."""
    from pinspect.registry.leaderboard import leaderboard, print_leaderboard
    from pinspect.registry.settings import load_register_settings

    rows = leaderboard(Path(), load_register_settings(Path()))
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        print_leaderboard(rows)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Number or alias of a version.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Number or alias of another version.")],
    as_json: AsJson = False,
) -> None:
    """Compare two versions on the same test captures, by McNemar's test and paired bootstrap intervals."""
    from pinspect.core.params import load_params
    from pinspect.registry.leaderboard import compare as compare_versions
    from pinspect.registry.leaderboard import print_comparison
    from pinspect.registry.settings import load_registry_settings

    comparison = compare_versions(Path(), load_params(), load_registry_settings(Path()), first, second)
    if as_json:
        print(json.dumps(comparison))
    else:
        print_comparison(comparison)


@app.command()
def score(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder with images, or with images/, and optionally a labels.csv.")
    ],
    alias: Annotated[
        str, typer.Option(help="Alias of the version that answers; by default the champion, else the challenger.")
    ] = "",
    version: Annotated[str, typer.Option(help="Number of the version.")] = "",
    shape: Annotated[
        str, typer.Option(help="Pin shape of captures without one in their label; the version gets it, too.")
    ] = "",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder for the page.")] = Path("reports/score"),
    as_json: AsJson = False,
) -> None:
    """Score a registered version on labeled captures, and write a page with its misses. Nothing else changes."""
    from pinspect.captures.labeled_folder import read_labeled_folder
    from pinspect.cli.score import print_score
    from pinspect.core.files import write_file
    from pinspect.core.params import load_params
    from pinspect.evaluation.score_page import render_score
    from pinspect.registry.scoring import score_folder
    from pinspect.registry.settings import load_registry_settings

    params, settings = load_params(), load_registry_settings(Path())
    captures = read_labeled_folder(folder, params.contract(), shape=shape)
    result = score_folder(Path(), params, settings, captures, version or alias, shape)
    page = out / f"{folder.resolve().name}.html"
    write_file(page, render_score(result))
    if as_json:
        print(json.dumps(result.to_dict() | {"page": str(page)}, ensure_ascii=False))
    else:
        print_score(result, page)


@app.command()
def promote(
    approve_by: ApproveBy = "",
    on: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labeled captures on which the rules must hold, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the challenger champion if every rule of promotion holds. Exit code 3: refused."""
    from pinspect.core.params import load_params
    from pinspect.registry import promotion
    from pinspect.registry.settings import load_registry_settings

    decision = promotion.promote(Path(), load_params(), load_registry_settings(Path()), approve_by=approve_by, on=on)
    if as_json:
        print(json.dumps(decision.to_dict()))
    else:
        promotion.print_decision(decision)
    decision.require()


@app.command()
def rollback(
    why: Annotated[str, typer.Option(help="What went wrong; recorded with the version.")],
    by: Annotated[str, typer.Option(metavar="NAME", help="The person who decided; recorded.")] = "",
    to: Annotated[str, typer.Option(metavar="VERSION", help="Go back to this version, not to the previous one.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make the previous champion, or another version, champion again."""
    from pinspect.registry import promotion
    from pinspect.registry.settings import load_register_settings

    done = promotion.rollback(Path(), load_register_settings(Path()), why, by, to)
    if as_json:
        print(json.dumps(done.to_dict()))
    else:
        before = f", version {done.rolled_back} is not" if done.rolled_back else ""
        print(f"version {done.version} of {done.name} is champion again{before}: {done.why}")


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete old versions, what only they need in DVC's cache, and old results (prune in settings.yaml)."""
    from dataclasses import asdict

    from pinspect.registry.pruning import prune as prune_project
    from pinspect.registry.settings import load_prune_settings, load_register_settings
    from pinspect.station.pruning import prune_station

    keep = load_prune_settings(Path())
    pruned = prune_project(Path(), load_register_settings(Path()), keep, dry_run=dry_run)
    station = prune_station(Path(), keep.results_days, dry_run=dry_run)
    if as_json:
        print(json.dumps(asdict(pruned) | station))
    else:
        done = "would be deleted" if dry_run else "deleted"
        print(f"versions {done}: {', '.join(pruned.versions) or 'none'}", pruned.cache, sep="\n")
        print(f"results of the station {done}: {station['results']}; pictures deleted: {station['pictures']}")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show what `dvc repro` would do, which captures are new and which version is champion."""
    from pinspect.cli.status import print_status, project_status
    from pinspect.registry.settings import load_register_settings

    state = project_status(Path(), load_register_settings(Path()))
    if as_json:
        print(json.dumps(state))
    else:
        print_status(state)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can run. Exit code 0: the configured model runs here; 2: it does not."""
    from pinspect.cli.doctor import NOT_READY, READY, print_report
    from pinspect.core.params import load_params
    from pinspect.model.machine import machine_report

    report = machine_report(Path(), load_params() if Path("params.yaml").exists() else None)
    if as_json:
        print(json.dumps(report))
    else:
        print_report(report)
    raise typer.Exit(NOT_READY if report["obstacles"] else READY)


class MissingPackageError(PinspectError):
    """A command needs a package of an extra that is not installed."""


def main() -> None:
    """Run the command line."""
    environment.apply()
    environment.keep_freed_memory()
    run(_run_command)


def _run_command() -> None:
    try:
        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "pinspect":
            raise
        raise MissingPackageError(
            f"{package} is not installed; run pip install 'pinspect[station]' to inspect, or 'pinspect[pipeline]' for "
            "all commands"
        ) from None
