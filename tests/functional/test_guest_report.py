"""What a run tells about itself, settings out of a file, and settings that this host refuses."""

from __future__ import annotations

import pytest

from functional.guest import Boot, boot, initrd_with, script_text
from functional.rig import KERNEL, Rig

MAX_EXITS = 400  # what this machine promises for a boot with each kind of device
MAX_PSS_KIB = 35 * 1024


@pytest.fixture(scope="module")
def plain(host: Rig) -> Boot:
    """The usual machine: one CPU, console, disk, network, entropy."""
    host.run(["sh", "-c", "truncate -s 1M /tmp/p.img; /bin/ip tuntap add plain0 mode tap"])
    return boot(host, "true", "--disk", "/tmp/p.img", "--net", "tap=plain0")


def test_the_report_adds_up(plain: Boot) -> None:
    report = plain.report
    assert (report["outcome"], report["reboots"]) == ("power_off", 0)
    exits = report["exits"]
    assert exits["total"] == sum(exits["by_kind"].values())
    assert exits["total"] == sum(exits["by_register"].values())
    unknown = sum(count for name, count in exits["by_register"].items() if name.startswith("unknown "))
    assert report["unknown_accesses"] == unknown
    times = report["times"]
    assert 0 < times["first_kvm_run_ms"] / 1000 < times["total_s"] < 60
    names = [device["name"] for device in report["devices"]]
    assert len(names) == len(set(names))
    assert {"power", "ged", "pvpanic", "virtio-console0", "virtio-blk0", "virtio-net0", "virtio-rng0"} <= {
        *names
    }


def test_a_boot_takes_few_exits_and_little_memory(plain: Boot) -> None:
    assert plain.report["exits"]["total"] <= MAX_EXITS
    assert 5_000 < plain.report["memory"]["pss_kib"] <= MAX_PSS_KIB


def test_settings_come_from_a_file_and_the_command_line_wins(host: Rig) -> None:
    initrd = initrd_with(host, script_text("nproc; cat /sys/block/vda/serial; echo; head -n 1 /proc/meminfo"))
    host.run(["truncate", "-s", "1M", "/tmp/settings.img"])
    settings = f"""
        kernel = "{KERNEL}"
        initrd = "{initrd}"
        append = "{host.append} nemu.run=/t"
        memory = "128M"
        cpus = 3
        rng = false
        disk = [{{ path = "settings.img", serial = "from-a-file" }}]
    """
    host.put(settings.encode(), "/tmp/vm.toml")
    done = host.run_nemu(["run", "--config", "/tmp/vm.toml", "--cpus", "2"])
    assert done.status == 0, done.stderr
    words = done.stdout.split()
    assert words[:2] == [b"2", b"from-a-file"]
    assert 90_000 < int(words[words.index(b"MemTotal:") + 1]) < 128 * 1024


def test_a_disk_in_use_is_refused_in_one_line(host: Rig) -> None:
    host.run(["truncate", "-s", "1M", "/tmp/locked.img"])
    lock = "import fcntl, time; f = open('/tmp/locked.img', 'r+'); fcntl.flock(f, fcntl.LOCK_SH)"
    holder = host.start(["python3.11", "-c", f"{lock}; print('held', flush=True); time.sleep(1000)"])
    while b"held" not in holder.sink(1):
        host.client.turn(1)
    before = host.run(["ls", "/tmp"]).stdout
    argv = ["run", "--kernel", KERNEL, "--disk", "/tmp/locked.img", "--console", "socket=/tmp/locked.sock"]
    done = host.run_nemu(argv)
    holder.signal(9)
    assert done.status == 2
    assert done.stderr.startswith(b"nemu: --disk /tmp/locked.img: is in use")
    assert done.stderr.count(b"\n") == 1
    assert host.run(["ls", "/tmp"]).stdout == before


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--disk", "/tmp/twice.img", "--disk", "/tmp/twice.img"], "/tmp/twice.img"),
        (["--net", "tap=no such"], "no such"),
        (["--net", "fd=77"], "77"),
        (["--memory", "1T"], "1022G"),
        (["--console", "socket=/no/such/folder/socket"], "/no/such/folder"),
        (["--memory", "64M", "--initrd", "/tmp/large"], "/tmp/large"),
    ],
)
def test_a_setting_that_this_host_refuses_is_one_line_and_status_2(
    host: Rig, options: list[str], problem: str
) -> None:
    host.run(["sh", "-c", "truncate -s 1M /tmp/twice.img; truncate -s 63M /tmp/large"])
    done = host.run_nemu(["run", "--kernel", KERNEL, *options])
    text = done.stderr.decode()
    assert done.status == 2, text
    assert text.startswith("nemu: --")
    assert problem in text
    assert text.count("\n") == 1
    assert done.stdout == b""
