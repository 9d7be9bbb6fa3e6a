"""The error record store: records reach the host, hostile ones cost nothing."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fakes.iasl import iasl
from fakes.pages import FakePages
from nemu.devices import erst
from nemu.devices.erst import MAX_REPORTS, ErrorRecordStore
from nemu.devices.pstore import MAX_TEXT, panic_log

COMMAND, OFFSET, STATUS, RECORD_ID, ZERO, BUFFER, SIZE = 0x00, 0x04, 0x08, 0x10, 0x18, 0x20, 0x28
LOG = "Panic#1 Part1\n<6>[ 1.0] starting\n<0>[ 2.0] Kernel panic - not syncing: \x1b[31mno root\n"


def record(data: bytes) -> bytes:
    """A common platform error record with one section, as Linux makes it."""
    header = struct.pack("<4sHIHIII", b"CPER", 0x100, 0xFFFFFFFF, 1, 1, 0, 200 + len(data))
    return header.ljust(200, b"\0") + data


def deflated(text: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-11)
    return packer.compress(text) + packer.flush()


class Store:
    def __init__(self) -> None:
        self.pages, self.buffer = FakePages(), FakePages(8192)
        self.records: list[bytes] = []
        self.device = ErrorRecordStore(
            self.pages, self.buffer, buffer_gpa=0xFEA0_8000, report=self.records.append
        )

    def register(self, offset: int) -> int:
        return int.from_bytes(self.pages.view[offset : offset + 8], "little")

    def write_record(self, data: bytes, offset: int = 0) -> None:
        self.buffer.view[offset : offset + len(data)] = data
        self.device.write(COMMAND, 4, erst.BEGIN_WRITE)
        self.device.write(OFFSET, 4, offset)
        self.device.write(COMMAND, 4, erst.EXECUTE)
        self.device.write(COMMAND, 4, erst.END)


def test_a_fresh_store_is_empty_idle_and_tells_its_buffer() -> None:
    store = Store()
    assert store.register(RECORD_ID) == (1 << 64) - 1
    assert store.register(ZERO) == 0
    assert (store.register(BUFFER), store.register(SIZE)) == (0xFEA0_8000, 8192)


def test_a_written_record_is_reported_whole_and_succeeds() -> None:
    store = Store()
    store.write_record(record(b"words"), offset=64)
    assert store.records == [record(b"words")]
    assert store.register(STATUS) == 0


def test_reading_and_clearing_find_nothing() -> None:
    store = Store()
    store.write_record(record(b"words"))
    store.device.write(COMMAND, 4, erst.BEGIN_OTHER)
    store.device.write(COMMAND, 4, erst.EXECUTE)
    assert store.register(STATUS) == 4
    assert len(store.records) == 1


def test_a_flood_of_records_is_cut() -> None:
    store = Store()
    for _ in range(MAX_REPORTS * 3):
        store.write_record(record(b"x"))
    assert len(store.records) == MAX_REPORTS


@given(
    st.lists(st.tuples(st.integers(0, 4088), st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=30),
    st.binary(max_size=300),
)
def test_any_writes_leave_the_read_only_registers(script: list[tuple[int, int, int]], data: bytes) -> None:
    store = Store()
    store.buffer.view[: len(data)] = data
    for offset, width, value in script:
        store.device.write(offset, width, value)
        store.device.read(offset, width)
    assert (store.register(BUFFER), store.register(SIZE)) == (0xFEA0_8000, 8192)
    assert all(len(one) <= 8192 for one in store.records)


def test_iasl_reads_the_table_and_makes_the_same_again(tmp_path: Path) -> None:
    made = erst.table(0xFEA0_3000)
    (tmp_path / "erst.dat").write_bytes(made)
    iasl("-d", "erst.dat", cwd=tmp_path)
    text = (tmp_path / "erst.dsl").read_text()
    assert "Begin Write Operation" in text
    assert "Get Error Attributes" in text
    iasl("erst.dsl", cwd=tmp_path)
    again = (tmp_path / "erst.aml").read_bytes()
    # The compiler writes its own id and the checksum with it.
    assert (again[:9], again[36:]) == (made[:9], made[36:])


def test_the_log_of_a_panic_is_its_lines_without_levels_or_escapes() -> None:
    lines = ["[ 1.0] starting", "[ 2.0] Kernel panic - not syncing: ?[31mno root"]
    assert panic_log(record(deflated(LOG.encode()))) == lines
    assert panic_log(record(LOG.encode())) == lines


def test_an_oops_is_not_a_panic() -> None:
    assert panic_log(record(deflated(b"Oops#1 Part1\nBUG"))) is None


def test_a_bomb_is_cut() -> None:
    lines = panic_log(record(deflated(b"Panic#1\n" + b"a" * (100 << 20))))
    assert lines is not None
    assert sum(map(len, lines)) <= MAX_TEXT


@given(st.binary(max_size=500))
def test_any_record_gives_lines_or_nothing(data: bytes) -> None:
    for one in (data, record(data), record(b"Panic#1\n" + data)):
        lines = panic_log(one)
        assert lines is None or all(line.isprintable() for line in lines)
