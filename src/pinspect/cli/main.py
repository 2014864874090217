"""The `pinspect` command. Each sub-command is one function that calls the library, and imports it when it is called:
`pinspect --help` must not wait for torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pinspect.core import environment
from pinspect.core.errors import run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From photographs of wire-harness connectors to a vision-language inspector, and inspection with it.",
)

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameters' file.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines, one object a line.")]
ApproveBy = Annotated[str, typer.Option("--approve-by", metavar="NAME", help="Who approves; recorded.")]


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Images, or images/, with or without a labels.csv.")],
    shape: Annotated[str, typer.Option(help="Pin shape of the captures whose shape no row says.")] = "",
    captures: Annotated[Path, typer.Option(help="Where captures are kept.")] = Path("data/captures"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Copy new captures in, each image and label checked before; `dvc repro` then redoes only what changed."""
    from pinspect.captures.labels import add_captures
    from pinspect.core.params import load_params

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
    from pinspect.cli.summary import print_summary

    print_summary(folder)


@app.command()
def inspect(
    images: Annotated[list[str], typer.Argument(metavar="PATH...", help="Photographs, folders of them, quoted globs.")],
    alias: Annotated[str, typer.Option(help="Which version inspects; the champion, if there is one.")] = "",
    shape: Annotated[str, typer.Option(help="Pin shape; found by the best fit when it is not given.")] = "",
    annotate: Annotated[str, typer.Option(metavar="DIR", help="Writes pictures with the defective pin boxed.")] = "",
    as_json: AsJson = False,
) -> None:
    """Inspect photographs. Exit code 0: all passed; 1: some are defective; 2: one could not be inspected."""
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
    inbox: Annotated[Path, typer.Argument(metavar="INBOX", help="The folder that a camera writes to.")],
    results: Annotated[str, typer.Option(metavar="URL", help="SQLAlchemy URL; else station.results.")] = "",
    settle: Annotated[float, typer.Option(min=1, help="Seconds that a file must be unchanged to count as whole.")] = 1,
    patience: Annotated[float, typer.Option(min=0, help="Seconds until one that stays damaged is told.")] = 30,
    shape: Annotated[str, typer.Option(help="Pin shape; found by the best fit when it is not given.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Inspects what is there and ends as `inspect` does.")] = False,
    as_json: AsJson = False,
) -> None:
    """Inspect photographs as they come into a folder, each once, into the results table. Ctrl-C ends it."""
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
    host: Annotated[str, typer.Option(help="Where to listen; else station.host.")] = "",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Else station.port; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=32, help="Web workers; else station.workers.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=256, help="Captures a forward pass; else station.batch_size.")
    ] = None,
    token: Annotated[
        str,
        typer.Option(envvar="PINSPECT_STATION_TOKEN", show_envvar=True, help="What clients have to send."),
    ] = "",
) -> None:
    """Serve the champion: a page, an API and metrics. Ctrl-C ends it."""
    from pinspect.core.params import load_params
    from pinspect.station.server import run_station
    from pinspect.station.settings import load_station_settings

    chosen = {"host": host or None, "port": port, "workers": workers, "batch_size": batch_size}
    settings = load_station_settings(Path())
    settings = settings.model_copy(update={name: value for name, value in chosen.items() if value is not None})
    run_station(Path(), load_params(), settings, token=token)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the registered versions with their aliases and scores, the newest first."""
    from pinspect.registry.leaderboard import leaderboard, print_leaderboard
    from pinspect.registry.settings import load_register_settings

    lines = leaderboard(Path(), load_register_settings(Path()))
    if as_json:
        for line in lines:
            print(json.dumps(line))
    else:
        print_leaderboard(lines)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A version's number or alias.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Compare two versions on the same test captures: McNemar's test, paired bootstrap intervals."""
    from pinspect.core.params import load_params
    from pinspect.registry.leaderboard import compare as compare_versions
    from pinspect.registry.leaderboard import print_comparison
    from pinspect.registry.settings import load_registry_settings

    found = compare_versions(Path(), load_params(), load_registry_settings(Path()), first, second)
    if as_json:
        print(json.dumps(found))
    else:
        print_comparison(found)


@app.command()
def promote(approve_by: ApproveBy = "", as_json: AsJson = False) -> None:
    """Make the challenger champion if it proves to be good enough. Exit code 3: refused."""
    from pinspect.core.params import load_params
    from pinspect.registry import promotion
    from pinspect.registry.settings import load_registry_settings

    decision = promotion.promote(Path(), load_params(), load_registry_settings(Path()), approve_by=approve_by)
    if as_json:
        print(json.dumps(decision.to_dict()))
    else:
        promotion.print_decision(decision)
    decision.require()


@app.command()
def rollback(
    why: Annotated[str, typer.Option(help="What went wrong; recorded with the version.")],
    by: Annotated[str, typer.Option(metavar="NAME", help="Who decided; recorded.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make the previous champion champion again."""
    from pinspect.registry import promotion
    from pinspect.registry.settings import load_register_settings

    done = promotion.rollback(Path(), load_register_settings(Path()), why, by)
    if as_json:
        print(json.dumps(done.to_dict()))
    else:
        print(f"version {done.version} of {done.name} is champion again, version {done.rolled_back} is not: {done.why}")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Tell what `dvc repro` would do, which captures are new and which version is champion."""
    from pinspect.cli.status import print_status, project_status
    from pinspect.registry.settings import load_register_settings

    told = project_status(Path(), load_register_settings(Path()))
    if as_json:
        print(json.dumps(told))
    else:
        print_status(told)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.")],
    version: Annotated[str, typer.Option(help="Which registered version; else --alias.")] = "",
    alias: Annotated[str, typer.Option(help="Or the alias of one.")] = "champion",
) -> None:
    """Merge a registered adapter into its base: a whole checkpoint for vLLM and others."""
    from pinspect.cli.export import export_version
    from pinspect.registry.settings import load_register_settings

    number = export_version(Path(), load_register_settings(Path()), version or alias, out)
    print(f"version {number} merged into {out}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Tell what this machine can run. Exit code 0: the chosen model; 2: something stands in its way."""
    from pinspect.core.params import load_params
    from pinspect.model.machine import NOT_READY, READY, examine, print_examination

    told = examine(Path(), load_params() if Path("params.yaml").exists() else None)
    if as_json:
        print(json.dumps(told))
    else:
        print_examination(told)
    raise typer.Exit(NOT_READY if told["obstacles"] else READY)


def main() -> None:
    """Run the command line."""
    environment.apply()
    run(app)
