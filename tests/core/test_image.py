"""The process image: what control publishes and what others may write, including writers that die in mid-write."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable

import pytest
from _core.engine import Engine
from _core.image import ImageError, ProcessImage

from _core import image as im
from bench.rig import SITE, TICK_NS

SLOTS_END = 1 << 14  # all slots and Sites stand in the first 16 kB, before the statistics


@pytest.fixture
def image() -> ProcessImage:
    return ProcessImage.create()


def test_setpoint_round_trip_through_a_second_mapping(image: ProcessImage) -> None:
    other = ProcessImage.open(f"/proc/self/fd/{image.fd}")
    other.write_setpoint(im.SLOT_OPERATOR, im.SP_HOLD, -5e3, 123, 77)
    assert image.setpoint(0) == dict(kind=1, value_w=-5e3, lease_until_ns=123, id=77, pad=0)


def test_a_writer_killed_at_any_byte_leaves_the_last_good_setpoint(image: ProcessImage) -> None:
    image.write_setpoint(1, im.SP_BASE, 1e3, 10, 1)
    raw_before = bytes(os.pread(image.fd, image.SIZE, 0))
    image.write_setpoint(1, im.SP_BASE, 2e3, 20, 2)
    raw_after = bytes(os.pread(image.fd, image.SIZE, 0))
    differs = [k for k in range(image.SIZE) if raw_before[k] != raw_after[k]]
    first, last = differs[0], differs[-1]
    counter = first  # the counter stands before the copies, and is written last
    for cut in range(counter + 4, last + 2):
        os.pwrite(image.fd, raw_before[first : last + 1], first)
        os.pwrite(image.fd, raw_after[counter + 4 : cut], counter + 4)
        assert image.setpoint(1)["value_w"] == 1e3
    os.pwrite(image.fd, raw_after[first : last + 1], first)
    assert image.setpoint(1)["value_w"] == 2e3


def _limits_op(image: ProcessImage, k: int) -> None:
    image.write_operator_limits(lease_until_ns=k, import_limit_w=k * 1e3, soc_max=k / 10)


def _site(image: ProcessImage, k: int) -> None:
    image.update_site({"import_limit_w": k * 1e3, "ramp_up_w_per_s": k + 0.1, "align_full_s": k / 100})


@pytest.mark.parametrize("write", [_limits_op, _site])
def test_a_writer_killed_at_any_byte_leaves_the_last_good_limits_and_site(image: ProcessImage, write: Callable) -> None:
    def seen() -> object:
        """What the next control takes from this image."""
        if write is _limits_op:
            return image.operator_limits()
        e = Engine(image, [], priority=0)
        e.start(TICK_NS)
        e.on_tick(TICK_NS)
        return image.site()

    image.set_site(SITE)
    write(image, 1)
    before = bytes(os.pread(image.fd, SLOTS_END, 0))
    old = seen()
    os.pwrite(image.fd, before, 0)
    write(image, 2)
    after = bytes(os.pread(image.fd, SLOTS_END, 0))
    differs = [k for k in range(SLOTS_END) if before[k] != after[k]]
    first, last = differs[0], differs[-1]  # the counter stands before the copies, and is written last
    for cut in range(first + 4, last + 2):
        os.pwrite(image.fd, before, 0)
        os.pwrite(image.fd, after[first + 4 : cut], first + 4)
        assert seen() == old, cut
    os.pwrite(image.fd, after, 0)
    assert seen() != old


def test_a_damaged_live_copy_is_seen(image: ProcessImage) -> None:
    before = bytes(os.pread(image.fd, image.SIZE, 0))
    image.write_setpoint(2, im.SP_HOLD, 3e3, 10, 1)
    after = bytes(os.pread(image.fd, image.SIZE, 0))
    where = [k for k in range(image.SIZE) if before[k] != after[k]]
    os.pwrite(image.fd, bytes([after[where[-1]] ^ 0x40]), where[-1])
    assert image.setpoint(2) is None


@pytest.mark.parametrize("slot,kind,value", [(3, 1, 0.0), (-1, 1, 0.0), (0, 9, 0.0), (0, 1, float("nan")), (0, 1, float("inf"))])
def test_nonsense_setpoints_are_refused_at_the_writer(image: ProcessImage, slot: int, kind: int, value: float) -> None:
    with pytest.raises(ValueError):
        image.write_setpoint(slot, kind, value, 1, 1)
    assert image.setpoint(0)["kind"] == 0


def test_limits_refuse_what_is_not_finite(image: ProcessImage) -> None:
    assert image.limits() is None
    good = dict(lease_until_ns=5, import_limit_w=1.0, export_limit_w=0.0, ramp_up_w_per_s=1.0, ramp_down_w_per_s=1.0, p_charge_max_w=1.0,
                p_discharge_max_w=1.0, soc_min=0.0, soc_max=1.0, soc_target=0.5)  # fmt: skip
    image.write_limits(**good)
    assert image.limits() == good
    with pytest.raises(ValueError, match="soc_max"):
        image.write_limits(**(good | {"soc_max": float("nan")}))
    assert image.limits() == good


def test_site_names_missing_and_unknown_fields(image: ProcessImage) -> None:
    image.set_site(SITE)
    assert image.site() == SITE
    with pytest.raises(ValueError, match=r"missing: \['feeder_w'\], unknown: \['feeder_kw'\]"):
        image.set_site({("feeder_kw" if k == "feeder_w" else k): v for k, v in SITE.items()})


def test_reading_only_cannot_write_and_foreign_files_are_refused(image: ProcessImage, tmp_path) -> None:  # type: ignore[no-untyped-def]
    r = ProcessImage.open(f"/proc/self/fd/{image.fd}", writable=False)
    with pytest.raises(ImageError, match="reading only"):
        r.request_stop(1)
    (tmp_path / "x").write_bytes(b"\0" * 100)
    with pytest.raises(ImageError, match="another build"):
        ProcessImage.open(str(tmp_path / "x"))
    (tmp_path / "y").write_bytes(b"\0" * image.SIZE)
    with pytest.raises(ImageError, match="not an image of this build"):
        ProcessImage.open(str(tmp_path / "y"))
    with pytest.raises(ImageError, match="is ballast running"):
        ProcessImage.open(str(tmp_path / "absent"))


def test_stop_is_never_lowered(image: ProcessImage) -> None:
    image.request_stop(2)
    image.request_stop(1)
    assert image.stop == 2


def test_image_is_private_and_sealed(image: ProcessImage) -> None:
    assert os.fstat(image.fd).st_mode & 0o777 == 0o600
    with pytest.raises(OSError):
        os.ftruncate(image.fd, 10)


def test_dtype_agrees_with_the_compiled_structs() -> None:
    for name in ("Record", "State", "Inputs", "Outputs"):
        assert im.record_dtype(name).itemsize > 0
    d = im.record_dtype()
    for signal, (off, group) in im.SIGNALS.items():
        for g in ("meter", "pcs", "pcs_ctl", "pcs_life", "bms", "bms_lim", "bms_temp", "others"):
            sub, at = d["inp"].fields[g]
            if signal in sub.names:
                assert (at + sub.fields[signal][1], at) == (off, group)
    for name, off in im.OUTPUTS.items():
        assert d["out"].fields[name][1] == off
    assert d.itemsize == im.RECORD_SIZE


def test_every_limit_and_alarm_has_words() -> None:
    import re
    from pathlib import Path

    text = Path(im.__file__).with_name("image.pxd").read_text()
    assert len(im.LIMIT_TEXT) == len(re.findall(r"^    LIM_\w+ = 1 << ", text, re.M))
    assert len(im.ALARM_TEXT) == len(re.findall(r"^    ALM_\w+ = 1 << ", text, re.M))
    assert len({n for n, _ in im.LIMIT_TEXT.values()}) == len(im.LIMIT_TEXT)


def test_crc_is_the_one_of_zlib() -> None:
    assert im._crc32(b"123456789") == zlib.crc32(b"123456789") == 0xCBF43926
