"""Every command line and settings file of the documentation is accepted by the program that it names."""

import argparse
import re
import runpy
import shlex
import sys
import tomllib
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import takewhile

import pytest
import yaml
from docs_blocks import PAGES, ROOT, blocks, commands
from transformers import HfArgumentParser
from typer.main import get_command

import gs_lora_peft.cli
from gs_lora_peft.benchmark import BenchmarkConfig
from gs_lora_peft.cli import SettingsParser
from gs_lora_peft.cli.program import app

PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *PAGES]
NOT_CHECKED = {"text", "diff", "mermaid", "python", ""}  # Python blocks are run elsewhere
OTHERS = ("pip", "git", "cd", "uvx", "pre-commit", "mkdir", "cp", "hf")  # programs of other people
# Scripts without a parser, and how many words they take.
WITHOUT_PARSER = {
    "app/app.py": 0,
    "docs/card/render.py": 2,
    "examples/benchmarks/plot_sweep.py": 2,
    "examples/benchmarks/speed.py": 0,
}
OWN_PARSER = ("forget", "redo")  # their options are those of a `SettingsParser`
SETTINGS = {"docs/reference/settings.md": "settings.yaml", "docs/benchmarks.md": "my_benchmark.yaml"}


class Accepted(BaseException):
    """The parser of a script has accepted its command line; the script must not go on."""


def of_kind(*kinds):
    found = [block for page in PAGES for block in blocks(page) if block.kind in kinds and not block.reason]
    return [pytest.param(block, id=f"{block.page}:{block.line}") for block in found]


@pytest.fixture
def at_root(tmp_path, monkeypatch):
    """A folder from which the repository's scripts can be named, with the settings files of the pages."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for page, name in SETTINGS.items():
        (block,) = (block for block in blocks(ROOT / page) if block.kind == "yaml")
        (tmp_path / name).write_text(block.code, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def stopped_by_the_parser(monkeypatch):
    """Ends a program as soon as its own parser has accepted the arguments; fails if it has not."""

    def and_stop(method):
        def stopped(*args, **kwargs):
            method(*args, **kwargs)
            raise Accepted

        return stopped

    parse = HfArgumentParser.parse_args_into_dataclasses
    with monkeypatch.context() as patch:
        patch.setattr(HfArgumentParser, "parse_args_into_dataclasses", and_stop(parse))
        patch.setattr(argparse.ArgumentParser, "parse_args", and_stop(argparse.ArgumentParser.parse_args))
        with pytest.raises(Accepted):
            yield patch


def check_gs_lora(words, monkeypatch):
    if words[0] in OWN_PARSER:
        options = words[1:] if words[0] == "forget" else [word for word in words[1:] if word not in placed(words)]
        with stopped_by_the_parser(monkeypatch):
            SettingsParser().parse_options(options)
    elif words != ["--help"]:
        command = get_command(app).get_command(None, words[0])
        assert command is not None, words
        command.make_context(words[0], words[1:])


def placed(words):
    """Folder and task of `gs-lora redo`, which come before its options."""
    return list(takewhile(lambda word: not word.startswith("-"), words[1:]))


def check_script(path, arguments, monkeypatch):
    """Runs a script until a parser has its arguments: its own, or that of `gs-lora`."""

    def check_and_stop(words):
        check_gs_lora(words, monkeypatch)
        raise Accepted

    assert (ROOT / path).exists(), path
    if path in WITHOUT_PARSER:
        assert len(arguments) == WITHOUT_PARSER[path]
    elif path == "examples/benchmark.py":  # trains a model before it calls gs-lora
        file = [] if arguments and not arguments[0].startswith("-") else ["examples/benchmarks/digits.yaml"]
        check_gs_lora(["benchmark", *file, *arguments], monkeypatch)
    else:
        with stopped_by_the_parser(monkeypatch) as patch:
            patch.setattr(gs_lora_peft.cli, "main", check_and_stop, raising=False)
            patch.setattr(sys, "argv", [path, *arguments])
            patch.syspath_prepend(str((ROOT / path).parent))
            runpy.run_path(str(ROOT / path), run_name="__main__")


def check_launcher(words):
    """The options of a launcher itself."""
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launch_command_parser().parse_args(words[2:])
    elif words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args([word for word in words[1:] if word != "--"])


def check(line, monkeypatch):
    words = shlex.split(line)
    words[0] = words[0].removeprefix(".venv/bin/")
    scripts = [number for number, word in enumerate(words) if word.endswith(".py")]
    if words[0] == "gs-lora":
        check_gs_lora(words[1:], monkeypatch)
    elif "-m" in words and "gs_lora_peft" in words:
        check_launcher(words)
        check_gs_lora(words[words.index("gs_lora_peft") + 1 :], monkeypatch)
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]) or words[2] == "build", words
    elif scripts:
        check_launcher(words)
        check_script(words[scripts[0]], words[scripts[0] + 1 :], monkeypatch)
    elif words[:2] == ["python", "-c"]:
        compile(words[2], "command", "exec")
    else:
        assert words[0] in OTHERS, f"say in this test how to check {line!r}"


@pytest.mark.parametrize("block", of_kind("bash"))
def test_commands_are_accepted(block, at_root, monkeypatch):
    for line in commands(block):
        for part in re.split(r"\s+&&\s+|\s+>\s+\S+$", line):
            if part:
                check(part, monkeypatch)


@pytest.mark.parametrize("block", of_kind("yaml"))
def test_settings_files_are_accepted(block, at_root, monkeypatch):
    """Those of a script by its parser, those of a benchmark by its configuration."""
    name = SETTINGS[block.page]
    assert isinstance(yaml.safe_load(block.code), dict)
    if name == "my_benchmark.yaml":
        BenchmarkConfig.read(name)
    else:
        check_gs_lora(["forget", "--config", name], monkeypatch)


@pytest.mark.parametrize("block", of_kind("toml"))
def test_toml_can_be_read(block):
    assert tomllib.loads(block.code)


def test_every_block_has_a_known_kind():
    """A block of another language would be printed and never looked at."""
    kinds = {block.kind for page in PAGES for block in blocks(page)}
    assert kinds <= NOT_CHECKED | {"bash", "yaml", "toml"}
