"""A real Slurm of several nodes on one machine: every host is a set of Linux namespaces with its own address.

    python -m tests.slurm.bed up [--nodes 4]      # as root; installs Debian's packages where they are missing
    python -m tests.slurm.bed run COMMAND...      # on the login host
    python -m tests.slurm.bed crash|boot|unplug|plug NODE
    python -m tests.slurm.bed down

The controller's host also holds the bridge, so that the machine's own network is never touched, and all is gone when
the hosts' first processes are. `SHARED` is the file system that all hosts see under the same path; /tmp, /run
and /dev/shm are each host's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("PHA_SLURM_SHARED", "/tmp/pha-slurm"))
STATE = SHARED / "bed"
NET, DATA = "10.99.7", "10.99.8"
"""The networks: on each host's eth0 what manages the cluster, on a node's eth1 what ranks can be told to meet on."""
CABLES = {"eth0": ("v", "br0"), "eth1": ("w", "br1")}
"""A node's device → the letter of the cable's other end, and the bridge that it is plugged into."""
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
LOGIN = "ctl"
MARK = "pha-slurm-host"


def missing() -> str:
    """Why no cluster can be brought up here, or nothing."""
    if os.geteuid() != 0:
        return "a Slurm of several nodes needs root, for namespaces"
    try:
        subprocess.run(
            ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "true"],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "this machine does not allow namespaces"
    return install()


def install() -> str:
    """Installs what is missing with apt, without starting any daemon; returns what went wrong."""
    if all(shutil.which(name) for name in ("slurmctld", "slurmd", "sbatch", "munged", "ip")):
        return ""
    if not shutil.which("apt-get"):
        return "Slurm is not installed, and there is no apt-get to install it with"
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(["apt-get", *command], env=env, capture_output=True, text=True, timeout=300)
            if done.returncode:
                return f"apt-get {command[0]} failed ({' '.join(done.stderr.split())[-200:]})"
    except subprocess.TimeoutExpired:
        return "apt-get did not end within 300 s"
    finally:
        if made:
            policy.unlink()
    return ""


def address(host: str) -> str:
    """A host's own."""
    return f"{NET}.1" if host == LOGIN else f"{NET}.{10 + int(host[1:])}"


def configure(nodes: int, node_timeout_s: int, kill_wait_s: int) -> None:
    """Writes what all hosts read."""
    for name in ("state", "log", "pid", "spool", "host"):
        (STATE / name).mkdir(parents=True)
    key = STATE / "munge.key"
    key.write_bytes(os.urandom(1024))
    shutil.chown(key, "munge", "munge")
    key.chmod(0o400)
    hosts = [LOGIN, *(f"n{i}" for i in range(1, nodes + 1))]
    (STATE / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{address(h)} {h}\n" for h in hosts))
    groups = Path("/sys/fs/cgroup")
    v1 = all((groups / name / "cgroup.procs").exists() for name in ("freezer", "memory"))
    if v1:  # a process that leaves its parent cannot escape its job, as on real clusters
        (STATE / "cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={groups}\nConstrainRAMSpace=yes\n"
        )
    settings = {
        "ClusterName": "bed",
        "SlurmctldHost": f"{LOGIN}({NET}.1)",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "StateSaveLocation": STATE / "state",
        "SlurmdSpoolDir": STATE / "spool" / "%n",
        "SlurmctldPidFile": "/run/slurmctld.pid",
        "SlurmdPidFile": "/run/slurmd.pid",
        "SlurmctldLogFile": STATE / "log" / "slurmctld.log",
        "SlurmdLogFile": STATE / "log" / "slurmd-%n.log",
        "ProctrackType": "proctrack/cgroup" if v1 else "proctrack/linuxproc",
        "TaskPlugin": "task/cgroup" if v1 else "task/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "DefMemPerNode": 3000,
        "SlurmdParameters": "config_overrides",
        "SlurmdTimeout": node_timeout_s,
        "KillWait": kill_wait_s,
        "MessageTimeout": 10,
        "TCPTimeout": 2,
        "ReturnToService": 2,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=3,sched_min_interval=0,bf_interval=5,batch_sched_delay=0",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        # Jobs of two beds on one machine share the names of their cgroups, but for the job's number.
        "FirstJobId": 1 + zlib.crc32(str(SHARED).encode()) % 60_000 * 1000,
        "MinJobAge": 86400,
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [
        f"NodeName=n[1-{nodes}] CPUs=4 RealMemory=8192 State=UNKNOWN",
        "PartitionName=main Nodes=ALL Default=YES PriorityTier=1 State=UP MaxTime=INFINITE GraceTime=10",
        "PartitionName=urgent Nodes=ALL PriorityTier=10 State=UP PreemptMode=OFF",
    ]
    (STATE / "slurm.conf").write_text("\n".join(lines) + "\n")


def first_process(host: str) -> int | None:
    """The host's first process, as the machine numbers it; None where the host is off."""
    try:
        pid = int((STATE / "pid" / host).read_text())
        return pid if MARK in Path(f"/proc/{pid}/cmdline").read_text() else None
    except (OSError, ValueError):
        return None


def boot(host: str) -> None:
    """Makes the host's namespaces, starts its daemons and plugs its cable in. Raises RuntimeError."""
    if first_process(host) is not None:
        return
    (STATE / "pid" / host).unlink(missing_ok=True)
    with (STATE / "log" / f"host-{host}.log").open("a") as log:
        apart = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--propagation", "private"]
        command = [*apart, sys.executable, "-m", "tests.slurm.host", MARK, host, address(host)]
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    wait_until(lambda: first_process(host) is not None, 10, f"{host} has no first process")
    if host == LOGIN:
        return
    pid, login = first_process(host), first_process(LOGIN)

    def plugged_in() -> bool:
        # The cable of an earlier life goes away a moment after its namespace, and the bridge may not be there yet.
        steps = " && ".join(
            f"{{ ip link del {end}-{host} 2>/dev/null; ip link add {end}-{host} type veth peer name p-{host}; }} && "
            f"ip link set {end}-{host} master {bridge} up && ip link set p-{host} netns {pid} name {device}"
            for device, (end, bridge) in reversed(CABLES.items())  # the daemons wait for the last one
        )
        return (
            subprocess.run(["nsenter", "-t", str(login), "-n", "sh", "-c", steps], capture_output=True).returncode == 0
        )

    wait_until(plugged_in, 10, f"{host} has no cable")


def enter(host: str, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a command inside the host."""
    pid = first_process(host)
    if pid is None:
        raise RuntimeError(f"{host} is off")
    apart = ["nsenter", "-t", str(pid), "-m", "-u", "-i", "-n", "-p", f"--wd={ROOT}", "--"]
    env = {**os.environ, "SLURM_CONF": str(STATE / "slurm.conf")}
    return subprocess.run([*apart, *command], env=env, text=True, **options)  # type: ignore[call-overload,no-any-return]


def told(*command: str) -> str:
    """What a command on the login host prints. Raises RuntimeError with its complaint."""
    done = enter(LOGIN, *command, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def cable(host: str, state: str, devices: Sequence[str] = tuple(CABLES)) -> None:
    """`up` or `down`, for both cables of a node or those of these devices."""
    for device in devices:
        link = ["ip", "link", "set", f"{CABLES[device][0]}-{host}", state]
        subprocess.run(["nsenter", "-t", str(first_process(LOGIN)), "-n", *link], check=True)


def crash(host: str) -> None:
    """As a power cut: the cable first, so that the others see silence and no farewell."""
    pid = first_process(host)
    if host != LOGIN:
        cable(host, "down")
    if pid is not None:
        os.kill(pid, 9)
        wait_until(lambda: first_process(host) is None, 5, f"{host} does not die")


def up(nodes: int = 4, node_timeout_s: int = 15, kill_wait_s: int = 10) -> None:
    """Brings the cluster up and waits until every node is idle. Raises RuntimeError."""
    down()
    configure(nodes, node_timeout_s, kill_wait_s)
    for host in (LOGIN, *(f"n{i}" for i in range(1, nodes + 1))):
        boot(host)
    wait_until(lambda: len(idle()) == nodes, 40, "not every node is idle")


def idle() -> list[str]:
    """The nodes that wait for work."""
    found = enter(LOGIN, "sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N", capture_output=True)
    return sorted(found.stdout.split()) if found.returncode == 0 else []


def down() -> None:
    """Ends all hosts and removes the bed's files; what else lies in SHARED stays."""
    for path in (STATE / "pid").glob("*") if STATE.exists() else ():
        pid = first_process(path.name)
        if pid is not None:
            os.kill(pid, 9)
    wait_until(lambda: not any(first_process(p.name) for p in (STATE / "pid").glob("*")), 5, "a host does not die")
    for group in Path("/sys/fs/cgroup").glob("*/slurm_n[0-9]*"):
        with contextlib.suppress(OSError):  # of another bed, which is still up
            for folder in sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True):
                folder.rmdir()
            group.rmdir()
    shutil.rmtree(STATE, ignore_errors=True)


def wait_until(condition, seconds: float, words: str) -> None:
    """Polls. Raises RuntimeError with the words."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{words} after {seconds:g} s; logs are in {STATE / 'log'}")
        time.sleep(0.03)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "down", "run", "crash", "boot", "unplug", "plug"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.action == "up":
        if reason := missing():
            sys.exit(f"error: {reason}.")
        began = time.monotonic()
        up(int(options.arguments[1]) if options.arguments[:1] == ["--nodes"] else 4)
        print(f"{told('sinfo')}up in {time.monotonic() - began:.1f} s; all hosts see {SHARED}")
    elif options.action == "down":
        down()
    elif options.action == "run":
        sys.exit(enter(LOGIN, *options.arguments).returncode)
    else:
        act = {"crash": crash, "boot": boot, "unplug": lambda h: cable(h, "down"), "plug": lambda h: cable(h, "up")}
        act[options.action](options.arguments[0])


if __name__ == "__main__":
    main()
