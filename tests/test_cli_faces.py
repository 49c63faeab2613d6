"""`gs-lora convert-face`: a folder that transformers loads, or one message."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from gs_lora_peft.cli import main

sys.path.insert(0, str(Path(__file__).parent / "models"))
import face_cases as cases


@pytest.fixture
def call(capsys):
    """Calls `gs-lora convert-face` in this process; gives its exit code and what it printed."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["convert-face", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(cases.author_state(), tmp_path / "face.pth")
    return tmp_path / "face.pth"


def test_convert_face(call, checkpoint, tmp_path):
    """The folder is printed; model, processor and names are in it. --json says what was found in the file."""
    (tmp_path / "names.txt").write_text("ada\nbob\ncleo\ndan\neve\n")
    options = ["--heads", 2, "--scale", 16, "--margin", 0.1, "--pixels", "standardized"]
    code, out, _ = call(checkpoint, tmp_path / "a", *options, "--label-names", tmp_path / "names.txt")
    assert (code, out.strip()) == (0, str(tmp_path / "a"))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "a")
    assert model.config.id2label[4] == "eve"
    assert (model.config.scale, model.config.margin, model.config.image_size) == (16, 0.1, 16)
    assert AutoImageProcessor.from_pretrained(tmp_path / "a").do_standardize
    code, out, _ = call(checkpoint, tmp_path / "b", "--heads", 2, "--label-names", "a,b,c,d,e", "--json")
    document = json.loads(out)
    assert (code, document["people"], document["num_hidden_layers"], document["margin"]) == (0, 5, 2, 0.35)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "b").config.id2label[1] == "b"


@pytest.mark.parametrize(
    ("arguments", "expected", "said"),
    [
        (["CHECKPOINT", "OUT", "--heads", "3"], 1, "`num_attention_heads` is 3"),
        (["NONE", "OUT"], 1, "No such file"),
        (["CHECKPOINT", "OUT", "--heads", "2", "--label-names", "ada,"], 1, "`label_names` is '1 names'"),
        (["CHECKPOINT", "OUT", "--label-names", "poeple.txt"], 1, "`names` is 'poeple.txt'"),
        (["CHECKPOINT", "OUT", "--label-names", "CHECKPOINT"], 1, "expected UTF-8 text"),
        (["CHECKPOINT", "HERE", "--heads", "2"], 1, "`out` is"),
        (["CHECKPOINT", "OUT", "--pixels", "raw"], 2, "--pixels"),
        (["CHECKPOINT"], 2, "Missing argument 'OUT'"),
    ],
)
def test_refusals(call, checkpoint, tmp_path, arguments, expected, said):
    """1 is a refusal and 2 a wrong command line, in one message, for machines too; nothing is written."""
    places = {"CHECKPOINT": checkpoint, "NONE": tmp_path / "none.pth", "OUT": tmp_path / "out", "HERE": tmp_path}
    arguments = [places.get(argument, argument) for argument in arguments]
    code, out, err = call(*arguments)
    assert (code, out) == (expected, "")
    assert said in err
    code, out, _ = call(*arguments, "--json")
    assert code == expected
    assert said in json.loads(out)["error"]["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.pth"]


def test_help(call):
    """It says what the command does, with an example, in 80 columns."""
    code, out, _ = call("--help")
    assert code == 0
    assert "Example: gs-lora convert-face face.pth" in out
    assert max(map(len, out.splitlines())) <= 80
