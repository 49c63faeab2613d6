"""The command that compares methods."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from .terminal import Json, License, Private, Token, own_names, print_result, working

# Names of options of scripts, as a configuration calls them.
_KEYS = {
    "--model_name_or_path": "model",
    "--dataset_name": "dataset",
    "--dataset_config_name": "data.config_name",
    "--train_split": "data.train_split",
    "--test_split": "data.test_split",
    "--image_column": "data.image_column",
}


@dataclass(kw_only=True)
class _Data:
    """The options of `load_data`, from a configuration."""

    dataset_name: str
    dataset_config_name: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    image_column: str | None = None


def benchmark(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file: see docs/benchmarks.md.")],
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Further methods, split by commas: names, or module:Class of your own."),
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Run those of --methods alone.")] = False,
    seeds: Annotated[str | None, typer.Option(metavar="SEEDS", help="Other seeds than the file's, as 0,1,2.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Folder or Hub id of the model, in place of the file's.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATA", help="Folder, file or Hub id of the data, in place of the file's.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Another folder for results; a stopped benchmark goes on in it."),
    ] = None,
    processes: Annotated[int | None, typer.Option(metavar="N", min=1, help="Runs at a time.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Carry out runs and trials again that ended with an error.")
    ] = False,
    push_to: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Publish the results as a data set on the Hub.")
    ] = None,
    private: Private = True,
    license: License = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Compare methods: train, score and attack each in every setting with every seed, and print the tables.

    Results, tables and figures are written to the folder of the file's 'output'. The same command continues a stopped
    benchmark, and carries out only what is new after a change; other methods and seeds add to the results. The exit
    code is 1 if a run ended with an error.
    """
    # A method of one's own stands in the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with working(f"Benchmark {config}"), own_names(_KEYS):
        from ..benchmark import BenchmarkConfig, push_results, run_benchmark

        changes = {"model": model, "dataset": dataset, "output": output, "processes": processes}
        read = BenchmarkConfig.read(config, **{name: value for name, value in changes.items() if value is not None})
        part, whole = _part_and_whole(read, methods, only, seeds)
        loaded, data, processor = load_model_and_data(read, token)
        results = run_benchmark(
            part,
            loaded,
            data,
            whole=whole,
            processing_class=processor,
            retry_failed=retry_failed,
        )
        url = push_results(read.output, push_to, private=private, token=token, license=license) if push_to else None
    tables = [results.table(name).to_text() for name in results.settings]
    text = "\n\n".join([*tables, f"Results: {Path(read.output)}", *([f"Hub: {url}"] if url else [])])
    print_result(as_json, {"folder": os.fspath(read.output), "url": url, "rows": results.rows}, text)
    if failed := results.failed:
        where = f"Why: {Path(read.output) / 'errors'}. --retry-failed carries them out again."
        print(f"Runs and trials that ended with an error: {len(failed)}. {where}", file=sys.stderr)
        raise typer.Exit(1)


def load_model_and_data(config: Any, token: str | None = None) -> tuple[Any, Any, Any]:
    """Loads what a configuration names: the model, the data with its class ids, and the processor.

    Raises:
        InvalidInputError: If one of them is not named, or is not what it should be.
    """
    import torch

    from ..hub import find_source
    from .loading import load_data, load_processor, model_class, with_ids_of

    for key in ("model", "dataset"):
        if getattr(config, key) is None:
            raise InvalidInputError(key, None, "a folder or an id on the Hub", "Add it to the file.")
    found = find_source(config.model, "model", "the folder of a model", filename="config.json", token=token)
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": found.place,
        "local_files_only": found.is_away,
        "token": token,
    }
    model: Any = model_class(source).from_pretrained(**source, **config.model_config)
    options = dict(config.data)
    column = options.pop("label_column", "label")
    options = {("dataset_config_name" if name == "config_name" else name): value for name, value in options.items()}
    dataset, _ = with_ids_of(model, load_data(_Data(dataset_name=config.dataset, **options)), column)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device), dataset, load_processor(source)


def _part_and_whole(read: Any, methods: str | None, only: bool, seeds: str | None) -> tuple[Any, Any]:
    """What is carried out, and the benchmark of the file with what the command adds."""
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    if only and names is None:
        raise InvalidInputError("--only", "no --methods", "methods to run alone", "Name them with --methods.")
    whole = read if names is None else read.with_methods(names)
    part = read.with_methods(names, only=True) if only else whole
    if seeds is not None:
        chosen = _numbers(seeds)
        part = replace(part, seeds=chosen)
        whole = replace(whole, seeds=list(dict.fromkeys([*whole.seeds, *chosen])))
    return part, whole


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers):
        raise InvalidInputError("--seeds", text, "different whole numbers split by commas, as 0,1,2")
    return numbers
