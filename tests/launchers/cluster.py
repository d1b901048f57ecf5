"""A Slurm cluster of two nodes on this host: its real daemons, in a folder of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.dist.train_jobs import PATIENCE, free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ['PATH']}:/usr/sbin"
# Requeued jobs wait until their credential has expired, by default two minutes.
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second}
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    return "slurmd has to be root" if os.geteuid() else None


class Cluster:
    """Runs while entered."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Self:
        folder = self._folder
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        ports = dict(zip(("port", "first", "second"), (free_port() for _ in range(3)), strict=True))
        settings = SETTINGS.format(host=socket.gethostname().partition(".")[0], folder=folder, **ports)
        (folder / "slurm.conf").write_text(settings, encoding="utf-8")
        own = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        with self._open:
            self._start("munged", "--foreground", "--force", *(f"--{o}={folder}/munge.{end}" for o, end in own.items()))
            self.wait_until((folder / "munge.socket").exists, "munged")
            self._start("slurmctld", "-D", "-i")
            for node in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", node)
            self.wait_until(lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D", check=False) == "2", "two nodes")
            self._open.callback(self._end_jobs)
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def run(self, *command: str, check: bool = True, variables: Mapping[str, str] | None = None) -> str:
        """What a command of Slurm's prints."""
        environment = self._environment | dict(variables or {})
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert not check or ended.returncode == 0, ended
        return ended.stdout.strip()

    def state(self, job: str) -> str:
        """Such as RUNNING."""
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Fails with what the daemons said."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                said = "\n".join(file.read_text(errors="replace")[-2000:] for file in self._folder.glob("*.said"))
                raise AssertionError(f"waited {PATIENCE} s for {what}\n{said}")
            time.sleep(0.05)

    def _end_jobs(self) -> None:
        """While there are daemons: what a job runs outlives them."""
        self.run("scancel", "--user=root")
        self.wait_until(lambda: not self.run("squeue", "-h"), "the end of all jobs")

    def _start(self, program: str, *options: str) -> None:
        with (self._folder / f"{program}{options[-1]}.said".replace("/", "-")).open("wb") as log:
            path = shutil.which(program, path=PATH)
            assert path is not None
            daemon = subprocess.Popen([path, *options], env=self._environment, stdout=log, stderr=log)
        self._open.callback(_end, daemon)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
