"""Where ranks run: on this host, or on two that a virtual cable joins."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

KINDS: Final = ("1", "2", "forced")


class HostsError(RuntimeError):
    """Network namespaces can't be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Host:
    """`prefix` runs a command there, `environment` is added to its own."""

    address: str
    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@contextmanager
def hosts(kind: str) -> Iterator[list[Host]]:
    """This host ("1"), it with shared memory switched off in our engine ("forced"), or two network namespaces ("2").

    Raises HostsError where namespaces can't be made; those made are gone at the end.
    """
    if kind != "2":
        yield [Host("127.0.0.1", environment={"CIUIC_SHM_DISABLE": "1"} if kind == "forced" else {})]
        return
    ip = shutil.which("ip")
    if ip is None or os.geteuid() != 0:
        raise HostsError("--hosts 2 makes network namespaces: be root and install iproute2, or use --hosts forced")
    names = [f"engines-{os.getpid()}-{index}" for index in range(2)]
    with ExitStack() as stack:
        for name in names:
            _run(ip, "netns", "add", name)
            stack.callback(_run, ip, "netns", "delete", name)
        _run(ip, "-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for index, name in enumerate(names):
            _run(ip, "-n", name, "address", "add", f"10.0.0.{index + 1}/24", "dev", "cable")
            _run(ip, "-n", name, "link", "set", "lo", "up")
            _run(ip, "-n", name, "link", "set", "cable", "up")
        yield [
            Host(f"10.0.0.{index + 1}", (ip, "netns", "exec", name), {"GLOO_SOCKET_IFNAME": "cable"})
            for index, name in enumerate(names)
        ]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostsError(f"{' '.join(command)} failed: {done.stderr.strip()}; --hosts forced needs no namespaces")
