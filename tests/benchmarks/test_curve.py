"""The curve of a run, from its log."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main

LOG = [
    {"step": 0, "held_out_bpb": 2.0, "by_kind": {"prose": 1.0, "code": 3.0}, "by_source": {}},
    {"step": 1, "tokens": 4096, "loss_bits": 4.0},
    {"step": 2, "tokens": 4096, "loss_bits": 3.9},
    {"step": 2, "held_out_bpb": 1.5, "by_kind": {"prose": 0.9, "code": 2.1}, "by_source": {}},
]


def test_table_and_chart(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "log.json").write_text(json.dumps(LOG))
    chart = tmp_path / "charts" / "curve.png"
    result = CliRunner().invoke(main, ["curve", str(tmp_path / "log.json"), "--chart", str(chart)])
    assert result.output.splitlines() == [
        "| step | tokens | mean | prose | code |",
        "| ---: | ---: | ---: | ---: | ---: |",
        "| 0 | 0 | 2.0000 | 1.0000 | 3.0000 |",
        "| 2 | 8,192 | 1.5000 | 0.9000 | 2.1000 |",
    ]
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_a_log_without_measurements(tmp_path):
    (tmp_path / "log.json").write_text(json.dumps(LOG[1:3]))
    result = CliRunner().invoke(main, ["curve", str(tmp_path / "log.json")])
    assert result.exit_code == 2
    assert "nothing was measured yet" in result.output
