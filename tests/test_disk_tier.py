"""The disk tier outlives its process, keeps to its bound and never lets a bad disk reach a student."""

from __future__ import annotations

import logging
import random
import resource
import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import pytest
import torch

from services.teacher.disk_tier import DiskTier

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]
# Another replica: writes its own values between two lines of its input, then reads the others' value.
REPLICA = """
import sys, torch
from pathlib import Path
from services.teacher.disk_tier import DiskTier
tier = DiskTier(Path(sys.argv[1]), 1 << 20)
print("open", flush=True)
sys.stdin.readline()
for number in range(20):
    tier.put(b"theirs%d" % number, (torch.full((100,), float(number)),))
print(tier.get(b"ours")[0].tolist(), flush=True)
tier.close()
"""


def reopened(tier: DiskTier, folder: Path, max_bytes: int = MIB) -> DiskTier:
    """Waits until everything is on disk."""
    tier.close()
    return DiskTier(folder, max_bytes)


def numbers(tier: DiskTier, key: bytes) -> list[float] | None:
    value = tier.get(key)
    return None if value is None else value[0].tolist()


def test_every_type_and_shape_comes_back_before_and_after_it_is_written(tmp_path: Path) -> None:
    value = (
        torch.randn(3, 2).bfloat16(),
        torch.tensor([True, False]),
        torch.tensor(4),
        torch.zeros(0, 5),
        *(torch.tensor([float(place)]) for place in range(9)),
    )
    tier = DiskTier(tmp_path / "a" / "b", MIB)
    tier.put(b"a", value)
    waiting = tier.get(b"a")
    tier = reopened(tier, tmp_path / "a" / "b")
    for found in (waiting, tier.get(b"a")):
        assert found is not None
        assert all(torch.equal(got, put) for got, put in zip(found, value, strict=True))
        assert [got.dtype for got in found] == [put.dtype for put in value]
    assert tier.get(b"b") is None
    tier.close()


@pytest.mark.parametrize("key", [b"", b"k" * 511, b"k" * 512, b"k" * 5000])
def test_keys_of_any_length_are_taken(tmp_path: Path, key: bytes) -> None:
    tier = DiskTier(tmp_path, MIB)
    tier.put(key, (torch.ones(1),))
    tier.put(key + b"x", (torch.zeros(1),))
    tier = reopened(tier, tmp_path)
    assert (numbers(tier, key), numbers(tier, key + b"x")) == ([1.0], [0.0])
    tier.close()


def test_the_oldest_written_go_first_and_the_file_stays_in_its_bound(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, MIB)
    for number in range(400):
        tier.put(b"%d" % number, (torch.full((900,), float(number)),))
    tier = reopened(tier, tmp_path)
    kept = [number for number in range(400) if tier.get(b"%d" % number) is not None]
    assert kept == list(range(kept[0], 400))
    assert MIB // 2 < len(kept) * 3600 < MIB
    assert (tmp_path / "data.mdb").stat().st_size <= MIB
    tier.close()


def test_values_of_mixed_sizes_leave_the_tier_usable(tmp_path: Path) -> None:
    rng, tier = random.Random(0), DiskTier(tmp_path, MIB)
    for round_ in range(8):
        for number in range(60):
            tier.put(b"%d-%d" % (round_, number), (torch.zeros(rng.randint(1, 12_000)),))
        tier = reopened(tier, tmp_path)
        kept = sum(tier.get(b"%d-%d" % (round_, number)) is not None for number in range(60))
        assert kept > 10
    assert (tmp_path / "data.mdb").stat().st_size <= MIB
    tier.close()


def test_a_value_too_large_for_the_bound_is_not_kept(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, MIB)
    tier.put(b"small", (torch.ones(1),))
    tier.put(b"large", (torch.zeros(MIB // 4),))
    tier = reopened(tier, tmp_path)
    assert (numbers(tier, b"small"), tier.get(b"large")) == ([1.0], None)
    tier.close()


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", REPLICA, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        tier = DiskTier(tmp_path, MIB)
        tier.put(b"ours", (torch.ones(2),))
        tier = reopened(tier, tmp_path)
        other.stdin.write("go\n")
        other.stdin.flush()
        for number in range(20):
            tier.put(b"ours%d" % number, (torch.full((100,), float(number)),))
        assert other.stdout.readline() == "[1.0, 1.0]\n"
        assert other.wait(60) == 0
    tier = reopened(tier, tmp_path)
    assert all(numbers(tier, b"theirs%d" % number) == [float(number)] * 100 for number in range(20))
    assert all(numbers(tier, b"ours%d" % number) == [float(number)] * 100 for number in range(20))
    tier.close()


def test_threads_may_share_it(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, MIB)

    def work() -> None:
        for number in range(100):
            if tier.get(b"%d" % number) is None:
                tier.put(b"%d" % number, (torch.full((10,), float(number)),))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tier = reopened(tier, tmp_path)
    assert all(numbers(tier, b"%d" % number) == [float(number)] * 10 for number in range(100))
    tier.close()


def stored_keys(folder: Path) -> list[tuple[bytes, ...]]:
    """Returns the keys of the values and those in the order of writing."""
    with lmdb.open(str(folder), max_dbs=2) as env:
        values, order = env.open_db(b"values"), env.open_db(b"order")
        with env.begin() as transaction:
            return [
                tuple(key for key, _ in transaction.cursor(values)),
                tuple(key for _, key in transaction.cursor(order)),
            ]


def damage(folder: Path, key: bytes, position: int) -> None:
    """Flips the bits of one byte of a record, or cuts off its last byte."""
    with lmdb.open(str(folder), max_dbs=2) as env:
        values = env.open_db(b"values")
        with env.begin(values, write=True) as transaction:
            record = bytearray(transaction.get(key) or b"")
            record[position] ^= 0xFF
            transaction.put(key, bytes(record[:-1] if position == -1 else record))


@pytest.mark.parametrize("position", [8, 30, 60, -4, -1])
def test_a_damaged_value_is_missing_and_dropped_and_can_be_put_again(tmp_path: Path, position: int) -> None:
    tier = DiskTier(tmp_path, MIB)
    tier.put(b"a", (torch.ones(5),))
    tier.put(b"b", (torch.zeros(5),))
    tier.close()
    damage(tmp_path, b"a", position)
    tier = DiskTier(tmp_path, MIB)
    assert (tier.get(b"a"), numbers(tier, b"b")) == (None, [0.0] * 5)
    tier.close()
    assert stored_keys(tmp_path) == [(b"b",), (b"b",)]
    tier = DiskTier(tmp_path, MIB)
    tier.put(b"a", (torch.ones(5),))
    tier = reopened(tier, tmp_path)
    assert numbers(tier, b"a") == [1.0] * 5
    tier.close()


def test_a_value_is_written_once(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, MIB)
    for _ in range(3):
        tier.put(b"a", (torch.ones(5),))
        tier = reopened(tier, tmp_path)
    tier.close()
    assert stored_keys(tmp_path) == [(b"a",), (b"a",)]


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"^cache\.folder: got .*file/x, expected a folder .*Not a directory"):
        DiskTier(tmp_path / "file" / "x", MIB)
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(OSError, match=r"^cache\.folder: got .*, expected a folder .*not an LMDB file"):
        DiskTier(tmp_path, MIB)


def test_a_full_disk_turns_the_tier_off_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(tmp_path, 8 * MIB)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))  # no file may grow over it
    try:
        with caplog.at_level(logging.WARNING):
            for number in range(1000):
                tier.put(b"%d" % number, (torch.zeros(1000),))
            tier.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"cache.folder: going on without {tmp_path}: ")
    assert tier.get(b"0") is None


def test_a_closed_tier_keeps_nothing_and_fails_nobody(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, MIB)
    tier.close()
    tier.put(b"a", (torch.ones(1),))
    assert tier.get(b"a") is None
    tier.close()
