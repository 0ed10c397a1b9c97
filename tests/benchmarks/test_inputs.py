"""The files to measure, and what of them is written down."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.inputs import InputsError, beginning, collect
from benchmarks.records import without_paths


def test_files_and_folders_get_relative_names(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "x").write_bytes(b"12345")
    (folder / "a").write_bytes(b"")
    (tmp_path / "alone").write_bytes(b"1")
    files = collect([tmp_path / "alone", folder, folder / "a"])
    assert [(file.name, file.content_bytes) for file in files] == [
        ("alone", 1), ("texts/a", 0), ("texts/b/x", 5),
    ]  # fmt: skip
    assert files[2].sha256 == hashlib.sha256(b"12345").hexdigest()


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_bytes(b"1")
    with pytest.raises(InputsError, match="two files are called x"):
        collect([tmp_path / "a" / "x", tmp_path / "b" / "x"])


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputsError, match="no files"):
        collect([tmp_path])


def test_beginning(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    (file,) = collect([tmp_path / "x"])
    assert beginning(file, None, tmp_path) is file
    assert beginning(file, 5, tmp_path) is file
    short = beginning(file, 2, tmp_path)
    assert (short.name, short.content_bytes) == ("x[:2]", 2)
    assert short.path.read_bytes() == b"12"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open '/home/somebody/texts/a.txt'", "cannot open 'a.txt'"),
        ("/usr/lib/python3/x.py: no", "x.py: no"),
        (r"C:\Users\somebody\a.txt is gone", "a.txt is gone"),
        ("12 kB/s and texts/a.txt stay", "12 kB/s and texts/a.txt stay"),
    ],
)
def test_messages_name_no_folders(text: str, expected: str) -> None:
    assert without_paths(text) == expected


def test_the_process_that_starts_jobs_loads_nothing_heavy() -> None:
    code = (
        "import sys, benchmarks.__main__, benchmarks.compare, benchmarks.theory,"
        " benchmarks.stepwise, benchmarks.chart;"
        "assert not {'torch', 'numba', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
