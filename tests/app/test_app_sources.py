"""What the app reads of a visitor's zip, and what it refuses; and what a Space installs. No browser is needed."""

import io
import re
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from errors import refused
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sources():
    sys.path.insert(0, str(ROOT / "app"))
    import sources

    yield sources
    sys.path.remove(str(ROOT / "app"))


def picture(grey=0, size=8):
    file = io.BytesIO()
    Image.fromarray(np.full((size, size), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def zipped(tmp_path):
    """Writes a zip of a dict from names to bytes."""

    def write(files):
        with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return tmp_path / "some.zip"

    return write


def test_folders_are_classes_and_other_files_are_ignored(sources, zipped):
    files = {
        f"album/{name}/{index}.PNG": picture(255 * number) for number, name in enumerate("ab") for index in (0, 1)
    }
    hidden = {
        "__MACOSX/album/a/._0.png": b"x",
        "album/a/.hidden.png": b"x",
        "top.png": b"x",
        "album/a/notes.txt": b"x",
    }
    images, folders = sources._read_zip(zipped(files | hidden))
    assert folders == ["a", "a", "b", "b"]
    assert images.shape == (4, 1, 32, 32)
    assert images[0].min() == images[0].max() == -1
    assert images[2].min() == images[2].max() == 1


def test_paths_that_lead_out_of_the_zip_are_ignored(sources, zipped):
    assert sources._read_zip(zipped({"../../a/0.png": picture(), "b/../../c/0.png": picture()}))[1] == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "0 folders"),
        ({f"{name}/{index}.png": picture() for name in "ab" for index in range(8)}, "2 folders"),
        ({f"{name}/{index}.png": picture() for name in "abc" for index in range(7)}, "a folder with 7 pictures"),
        ({"a/0.png": b"not a picture"}, "a picture that cannot be read"),
        ({"a/0.png": picture()[:40]}, "a picture that cannot be read"),
        ({"a/0.png": b"\0" * (11 * 2**20)}, "a picture that cannot be read"),
        ({f"a/{index}.png": b"" for index in range(1501)}, "1501 pictures"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_training(sources, zipped, files, found):
    with refused("zip", found) as error:
        sources.own_pictures(zipped(files))
    assert "0.png" not in str(error.value)  # its folder would name a person


def damaged(kind, at=-20):
    """A picture whose header is whole."""
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8)).save(file, kind)
    content = bytearray(file.getvalue())
    content[at] ^= 255
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [damaged("PNG", 60), damaged("PNG", 40), damaged("PNG")[:-40], damaged("JPEG")[:-400], damaged("WEBP")[:-400]],
    ids=["zlib", "length of a chunk", "cut PNG", "cut JPEG", "cut WebP"],
)
def test_a_damaged_picture_is_named_by_its_place(sources, zipped, content):
    """Pillow raises zlib.error, SyntaxError, struct.error, OSError and others; none of them may pass."""
    with refused("zip", "a picture that cannot be read") as error:
        sources.own_pictures(zipped({"a/0.png": picture(), "notes.txt": b"x", "b/1.png": content}))
    assert "number 2 " in error.value.fix


def test_a_decompression_bomb_is_refused(sources, zipped, monkeypatch):
    """Pillow raises this before the pixels can be counted here."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with refused("zip", "a picture that cannot be read"):
        sources.own_pictures(zipped({"a/0.png": picture()}))


def test_a_huge_picture_is_refused_by_its_header(sources, zipped, monkeypatch):
    monkeypatch.setattr(sources, "MOST_PIXELS", 63)
    with refused("zip", "a picture that cannot be read"):
        sources.own_pictures(zipped({"a/0.png": picture()}))


def test_another_file_is_refused(sources, tmp_path):
    (tmp_path / "some.zip").write_bytes(b"something else")
    with refused("zip", "another file"):
        sources.own_pictures(tmp_path / "some.zip")


def test_the_space_installs_what_the_package_needs():
    lines = (ROOT / "app" / "requirements.txt").read_text("utf-8").splitlines()
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    wanted = [line for line in lines if re.match(r"\w", line) and not line.startswith("gradio")]
    assert sorted(wanted) == sorted(needed)


def test_the_header_of_the_space_fits_the_requirements():
    from huggingface_hub import RepoCard

    header = RepoCard.load(ROOT / "app" / "README.md").data.to_dict()
    (line,) = re.findall(
        r"^gradio>=(\d+)\.(\d+),<(\d+)$", (ROOT / "app" / "requirements.txt").read_text("utf-8"), re.M
    )
    least, most = (int(line[0]), int(line[1])), (int(line[2]), 0)
    assert least <= tuple(int(part) for part in header["sdk_version"].split(".")[:2]) < most
    assert header["sdk"] == "gradio"
    assert (ROOT / "app" / header["app_file"]).is_file()
    assert len(header["short_description"]) <= 60  # the Hub refuses longer ones
