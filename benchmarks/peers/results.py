"""The figures in what the tools in the guest print."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from nemu.errors import HostError

Values = dict[str, list[float]]  # figure -> one value a round
# fio's terse output, version 3: places of the job's name, its error, and where reads and writes begin
_JOB, _ERROR, _READ, _WRITE = 2, 4, 5, 46
_KIB, _IOPS = 1, 2  # KiB and operations a second, behind either
_LATENCY = re.compile(r"Summary: Latency is ([\d.]+) usec")  # sockperf, of one way


def parse(device: str, text: str) -> Values:
    """What the guest measured of ``device``.  Raises HostError, with what it said, where there is nothing."""
    try:
        found = fio(text) or network(text)
    except (ValueError, LookupError, TypeError) as error:
        raise HostError(f"{device}: {error}: {text[-800:]!r}") from error
    if not found:
        raise HostError(f"{device}: its guest measured nothing: {text[-800:]!r}")
    return found


def fio(text: str) -> Values:
    """Operations a second of 4 KiB, MiB a second of larger ones, by job."""
    found: Values = {}
    for line in text.splitlines():
        fields = line.split(";")
        if len(fields) <= _WRITE + _IOPS:
            continue
        job = fields[_JOB]
        if fields[_ERROR] != "0":
            raise ValueError(f"{job} failed with error {fields[_ERROR]}")
        at = _WRITE if "write" in job else _READ
        rate = float(fields[at + _IOPS]) if "_4k_" in job else float(fields[at + _KIB]) / 1024
        found.setdefault(job, []).append(rate)
    return found


def network(text: str) -> Values:
    """Mbit a second out of the guest ("send") and into it ("receive"), and round trips a second."""
    rates = [result["end"]["sum_received"]["bits_per_second"] / 1e6 for result in _objects(text)]
    trips = [1e6 / (2 * float(one)) for one in _LATENCY.findall(text)]
    if not len(rates) == 2 * len(trips) > 0:
        return {}
    return {"send": rates[::2], "receive": rates[1::2], "round_trips": trips}


def _objects(text: str) -> Iterator[dict[str, dict[str, dict[str, float]]]]:
    """The JSON objects in ``text``."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        found, at = decoder.raw_decode(text, at)
        yield found
        at = text.find("{", at)
