#!/bin/busybox sh
# PID 1 of a guest whose root is the virtiofs "bench", with Python on it, which says when it runs.
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
$bb modprobe -a virtio_pci virtio_console virtiofs
exec </dev/hvc0 >/dev/hvc0 2>&1
$bb mkdir -p /new
$bb mount -t virtiofs -o ro bench /new
$bb mount -o move /proc /new/proc
exec $bb switch_root /new /usr/bin/python3.11 -I -c '
import json, signal
print("init-at", open("/proc/uptime").read().split()[0], flush=True)
signal.pause()'
