"""Machines from YAML: the shipped ones, and what is wrong with one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciuic_dist.config import ConfigError
from ciuic_dist.estimate.machines import about, load, names, parse, text_of
from ciuic_dist.planning.machine import Machine

ONE = """\
nodes: 1
devices: 1
memory: 2 GiB
bf16: 100 TFLOP/s
fp32: 500 GFLOP/s
bandwidth: 1.5 TB/s
launch: 4 us
"""


def test_a_machine_is_read_with_its_units() -> None:
    text = ONE + "host: 3 GB\nup: 50 GB/s\ndown: 200 MB/s\nlatency: 2e-3 s\nduplex: false\nupdate: 3e8 /s\n"
    made = parse(text + "nvme: 4096\nread: 5.5e9\nwrite: 7\n", "mine")
    assert made == Machine(
        name="mine",
        nodes=1,
        devices=1,
        memory=2 << 30,
        bf16=1e14,
        fp32=5e11,
        bandwidth=1.5e12,
        launch=4 * 1e-6,
        latency=2e-3,
        update=3e8,
        host=3 * 10**9,
        up=5e10,
        down=2e8,
        duplex=False,
        nvme=4096,
        read=5.5e9,
        write=7.0,
    )


@pytest.mark.parametrize("name", names())
def test_every_shipped_machine_loads(name: str) -> None:
    made = load(name)
    assert made.name == name
    assert made.memory > 1 << 30
    assert made.bf16 > made.fp32 > made.bandwidth
    assert len(about(name)) > 10
    assert not about(name).startswith("#")
    assert parse(text_of(made), name) == made


def test_the_names_are_those_of_the_files() -> None:
    assert names() == sorted(names())
    assert {"h100", "8xh100", "64xh100", "8xa100", "rtx4090", "gb200-nvl72"} <= set(names())
    assert load("64xh100").world == 64
    assert "InfiniBand" in about("64xh100")


def test_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "desk.yaml"
    path.write_text(ONE)
    assert load(str(path)) == parse(ONE, "desk")
    with pytest.raises(ConfigError, match=r"machine=.*other\.yml can't be read: No such file"):
        load(str(tmp_path / "other.yml"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ONE + "network_speed: 5\n", r"machine mine has no field network_speed: there are nodes, devices, .*shared"),
        (ONE + "name: other\n", r"machine mine has no field name"),
        (ONE.replace("memory: 2 GiB\n", ""), r"machine mine lacks memory"),
        (ONE.replace("devices: 1", "devices: 2"), r"machine mine lacks peers"),
        (ONE.replace("nodes: 1", "nodes: 2"), r"machine mine lacks network"),
        (ONE + "host: 1 GiB\ndown: 1 GB/s\n", r"machine mine lacks up"),
        (ONE + "host: 1 GiB\nup: 1 GB/s\n", r"machine mine lacks down"),
        (ONE + "nvme: 1 GiB\nwrite: 1 GB/s\n", r"machine mine lacks read"),
        (ONE + "nvme: 1 GiB\nread: 1 GB/s\n", r"machine mine lacks write"),
        (ONE.replace("2 GiB", "2 gigs"), r"mine: memory='2 gigs' is no size"),
        (
            ONE.replace("TFLOP/s", "TFLOPs"),
            r"machine mine: bf16: '100 TFLOPs' is neither a number nor one with its unit, such as 4 TFLOP/s",
        ),
        (ONE.replace("100 TFLOP/s", "fast"), r"machine mine: bf16: 'fast'"),
        (ONE.replace("100 TFLOP/s", "true"), r"machine mine: bf16: True"),
        (ONE.replace("nodes: 1", "nodes: true"), r"machine mine: nodes: True"),
        (ONE.replace("nodes: 1", "nodes: 1.5"), r"machine mine: nodes: 1\.5 .*80 GiB"),
        (ONE.replace("100 TFLOP/s", "100 GB/s"), r"machine mine: bf16: '100 GB/s' .* such as 4 TFLOP/s"),
        (ONE.replace("1.5 TB/s", "2 TFLOP/s"), r"machine mine: bandwidth: '2 TFLOP/s' .* such as 4 GB/s"),
        (ONE.replace("1.5 TB/s", "2 ms"), r"machine mine: bandwidth: '2 ms'"),
        (ONE.replace("4 us", "4 GB/s"), r"machine mine: launch: '4 GB/s' .* such as 4 us"),
        (ONE.replace("4 us", "4 /s"), r"machine mine: launch: '4 /s'"),
        (ONE + "latency: 3 MB/s\n", r"machine mine: latency: '3 MB/s'"),
        (ONE + "update: 3 GB/s\n", r"machine mine: update: '3 GB/s' .* such as 4 /s"),
        (ONE + "update: 3 s\n", r"machine mine: update: '3 s'"),
        (ONE + "peers: 3 /s\n", r"machine mine: peers: '3 /s'"),
        (ONE + "host: 1 GiB\n", r"machine mine lacks up"),
        (ONE + "nvme: 1 GiB\n", r"machine mine lacks read"),
        (ONE + "duplex: 1\n", r"machine mine: duplex: 1"),
        (ONE.replace("nodes: 1", "nodes: 0"), r"machine mine: nodes must be above zero"),
        (ONE.replace("1.5 TB/s", "0"), r"machine mine: bandwidth must be above zero"),
        (ONE.replace("100 TFLOP/s", "-5"), r"machine mine: bf16 must be above zero"),
        ("- 1\n", r"machine mine must be fields and values"),
        ("", r"machine mine must be fields and values"),
        ("a: [", r"machine mine is no YAML"),
    ],
)
def test_what_is_wrong_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        parse(text, "mine")
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_machine_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no machine 8xh10: did you mean 8xh100\? There are .*rtx4090"):
        load("8xh10")
    with pytest.raises(ConfigError, match=r"no machine zzzz: there are 64xh100, "):
        load("zzzz")
