"""Replay, explanation and refusal: a record alone is enough, and one bit more or less is found."""

from __future__ import annotations

from pathlib import Path

import msgpack
import numpy as np
import pytest

from _core import image as core
from bench.sim import Simulation
from controller import build, explain, records, replay
from controller.__main__ import main
from controller.freeze import Freezer, kept
from controller.recording import Recording, nested
from controller.records import RecordWriter, Segment, read
from controller.virtual import LoadOptions


def segments(path: Path) -> list[Segment]:
    return [s for s in read(path) if isinstance(s, Segment)]


def rewrite(source: Path, path: Path, keep: list[Segment], layout: int = core.LAYOUT) -> Path:
    """A record of these segments, each with its own State."""
    writer = RecordWriter(path, layout=layout, settings=keep[0].settings, record_size=keep[0].size)
    for s in keep:
        writer.site = s.site
        writer.begin(s.state, fresh=s.fresh)
        writer.next = None
        writer.add(s.records, s.first, s.next, s.wall_s)
        writer.flush(None, s.wall_s)
    writer.close()
    return path


def test_a_record_alone_replays_to_the_last_bit(sim_record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone.blst"
    alone.write_bytes(sim_record.read_bytes())
    assert main(["replay", str(alone)]) == 0
    assert "2499 ticks" in capsys.readouterr().out
    assert main(["replay", str(alone.parent), "--from", "3", "--to", "5"]) == 0
    assert capsys.readouterr().out.startswith("201 ticks")


def test_every_single_bit_of_every_output_counts(sim_record: Path, tmp_path: Path) -> None:
    whole = segments(sim_record)
    dtype = core.record_dtype()
    rng = np.random.default_rng(4)
    for name in [n for n in dtype["out"].names or () if n != "pad"]:
        at, k = int(rng.integers(1, len(whole))), 0
        rows = np.frombuffer(whole[at].records, dtype).copy()
        k = int(rng.integers(len(rows)))
        raw = rows["out"][name][k : k + 1].copy()
        raw.view(np.uint8)[0] ^= 1
        rows["out"][name][k] = raw[0]
        bad = [*whole[:at], Segment(**(whole[at].__dict__ | {"records": rows.tobytes()})), *whole[at + 1 :]]
        path = rewrite(sim_record, tmp_path / f"{name}.blst", bad)
        result = replay.Replay(Recording(path)).run()
        assert result.differing == 1 and result.first is not None, name
        assert result.first.tick == int(rows["tick"][k]) and [f[0] for f in result.first.fields] == [name]
        path.unlink()


def test_the_first_difference_is_shown_with_its_inputs(sim_record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = segments(sim_record)
    rows = np.frombuffer(whole[15].records, core.record_dtype()).copy()
    rows["inp"]["meter"]["grid_p_w"][40] += 1000.0
    bad = [*whole[:15], Segment(**(whole[15].__dict__ | {"records": rows.tobytes()})), *whole[16:]]
    path = rewrite(sim_record, tmp_path / "r.blst", bad)
    assert main(["replay", str(path)]) == 1
    told = capsys.readouterr().out
    assert f"the first at tick {rows['tick'][40]}" in told and "p_cmd_w: recorded" in told and "inp.meter.grid_p_w" in told
    assert main(["replay", str(path), "--to", "1"]) == 0


def test_a_gap_takes_the_next_state_and_says_so(sim_record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = segments(sim_record)
    path = rewrite(sim_record, tmp_path / "r.blst", [*whole[:8], *whole[10:]])
    assert main(["replay", str(path)]) == 0
    missing = whole[9].next - whole[8].first
    assert f"gap: {missing} ticks are missing" in capsys.readouterr().out


def test_what_no_state_leads_to_is_not_replayed(sim_record: Path, tmp_path: Path) -> None:
    whole = segments(sim_record)
    headless = Segment(**(whole[10].__dict__ | {"state": None}))
    result = replay.Replay(Recording(rewrite(sim_record, tmp_path / "r.blst", [*whole[:8], headless, *whole[11:]]))).run()
    assert result.equal and result.skipped == headless.n and "not replayed" in " ".join(result.notes)


def test_a_restart_of_control_within_a_segment_begins_anew(sim_record: Path, tmp_path: Path) -> None:
    whole = segments(sim_record)
    first = Segment(**(whole[0].__dict__ | {"records": whole[0].records * 2, "n": 2 * whole[0].n, "next": 2 * whole[0].next}))
    result = replay.Replay(Recording(rewrite(sim_record, tmp_path / "r.blst", [first]))).run()
    assert result.equal and result.ticks == 2 * whole[0].n


def test_damage_is_said_and_the_rest_replays(sim_record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(sim_record.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "record.blst").write_bytes(data)
    assert main(["replay", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "damage" in told and "CRC" in told and "gap" in told


def test_other_builds_are_refused(sim_record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rewrite(sim_record, tmp_path / "r.blst", segments(sim_record)[:2], layout=99)
    assert main(["replay", str(path)]) == 2
    assert "another build (layout 0x63" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "absent")]) == 2
    (tmp_path / "d").mkdir()
    assert main(["replay", str(tmp_path / "d")]) == 2
    assert "holds no record" in capsys.readouterr().err


def test_a_record_without_settings_needs_them_beside_it(
    sim_record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    whole = [Segment(**(s.__dict__ | {"site": None})) for s in segments(sim_record)[:3]]
    path = rewrite(sim_record, tmp_path / "record.blst", whole)
    assert main(["replay", str(path)]) == 2
    assert "settings are not in it" in capsys.readouterr().err
    site = build.load_site(None, [], lambda: [])
    (tmp_path / "site.json").write_text(json.dumps(site.to_dict()))
    assert main(["replay", str(path)]) == 0
    (tmp_path / "site.json").write_text(json.dumps(build.load_site(None, ["grid.import_limit_w=400000"], lambda: []).to_dict()))
    assert main(["replay", str(path)]) == 2
    assert "other settings" in capsys.readouterr().err


def test_one_tick_taken_apart(sim_record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(sim_record), "--tick", "1500"]) == 0
    told = capsys.readouterr().out
    for words in ("tick 1500", "mode GRID", "meter (meter): good", "import_limit_w", "p_cmd_w", "limits in force", "every bit"):
        assert words in told
    assert main(["replay", str(sim_record), "--tick", "999999"]) == 2


def test_explain_says_why_in_sentences(sim_record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "0.5", str(sim_record)]) == 0
    told = capsys.readouterr().out
    assert "mode STANDBY" in told and "No power is asked for" in told.replace("no power", "No power")
    assert main(["explain", "tomorrow", str(sim_record)]) == 2
    wall = Recording(sim_record).wall0_s + 20
    from controller.clock import utc

    assert main(["explain", utc(wall).isoformat(), str(sim_record)]) == 0
    assert "20.0" in capsys.readouterr().out


def test_every_limit_has_a_sentence_with_numbers(sim_record: Path) -> None:
    row = nested(Recording(sim_record).rows()[1500])
    row["out"]["slot"] = 0
    assert set(explain.SENTENCES) == set(core.LIMIT_TEXT)
    for bit in core.LIMIT_TEXT:
        row["out"]["limits_active"] = bit
        ((name, words),) = explain.limits(row)
        assert name and words.endswith(".") and "nan" not in words


def test_the_header_is_readable_without_us(sim_record: Path) -> None:
    data = sim_record.read_bytes()
    head = len(records.MAGIC)
    length = int.from_bytes(data[head : head + 4], "little")
    m = msgpack.unpackb(data[head + 4 : head + 4 + length])
    assert m["fresh"] is True and m["state"] is None and m["site"]["import_limit_w"] == 445e3 and "kernel" in m["build"]


def changed_twice(path: Path, freezer: object = None) -> Simulation:
    """20 s in virtual time with two changes of Site, the second one looser than the settings the supervisor was started with."""
    site = build.load_site(None, [], lambda: [])
    hashed = {"layout": core.LAYOUT, "settings": site.settings_hash(), "record_size": core.RECORD_SIZE}
    sim = Simulation(site, LoadOptions(trace="steps", repeat=False), for_s=25.0, writer=lambda: RecordWriter(path, **hashed))
    sim.supervisor.freezer = freezer  # type: ignore[assignment]
    sim.run_s(9.504)
    sim.image.update_site({"import_limit_w": 300e3, "ramp_up_w_per_s": 500.0})
    sim.run_s(2.013)
    sim.image.update_site({"import_limit_w": 480e3, "ramp_up_w_per_s": 4000.0})
    sim.run_s(9.0)
    return sim


def test_a_record_replays_to_the_last_bit_over_changes_of_the_settings(tmp_path: Path) -> None:
    sim = changed_twice(tmp_path / "r.blst")
    limits = sim.image.latest()["lim"]
    assert (limits["import_limit_w"], limits["ramp_up_w_per_s"]) == (480e3, 4000.0)
    sim.close()
    told = [e.text for e in sim.supervisor.events if e.kind == "settings"]
    assert told[0].startswith("revision 2 is in force: import_limit_w 445000 -> 300000") and len(told) == 2
    begins = {}
    for s in segments(tmp_path / "r.blst"):
        revs = np.frombuffer(s.records, core.record_dtype())["inp"]["site_rev"]
        assert len(set(revs.tolist())) == 1 and s.site is not None, "a segment stands under one Site"
        begins.setdefault(int(revs[0]), (s.first, s.site["import_limit_w"]))
    assert [begins[k][1] for k in (1, 2, 3)] == [445e3, 300e3, 480e3]
    result = replay.Replay(Recording(tmp_path / "r.blst")).run()
    assert result.equal and result.skipped == 0 and result.ticks == sim.image.head and not result.notes


def test_two_changes_between_two_looks_of_the_supervisor_stand_each_under_their_own_site(tmp_path: Path) -> None:
    site = build.load_site(None, [], lambda: [])
    hashed = {"layout": core.LAYOUT, "settings": site.settings_hash(), "record_size": core.RECORD_SIZE}
    sim = Simulation(site, LoadOptions(trace="steps", repeat=False), for_s=25.0, writer=lambda: RecordWriter(tmp_path / "r.blst", **hashed))
    sim.run_s(9)
    for limit_w in (300e3, 350e3, 320e3):  # nobody looks for 3.3 s
        sim.image.update_site({"import_limit_w": limit_w})
        sim.cosim.run_until(sim.cosim.now_ns + 1_100_000_000)
    sim.run_s(3)
    sim.close()
    seen = dict.fromkeys(s.site["import_limit_w"] for s in segments(tmp_path / "r.blst") if s.site)
    assert list(seen) == [445e3, 300e3, 350e3, 320e3]
    assert replay.Replay(Recording(tmp_path / "r.blst")).run().equal


def test_what_is_frozen_over_a_change_of_the_settings_replays(tmp_path: Path) -> None:
    freezer = Freezer(tmp_path / "f", layout=core.LAYOUT, settings="s", record_size=core.RECORD_SIZE)
    sim = changed_twice(tmp_path / "r.blst", freezer)
    sim.supervisor.freeze("test", sim.cosim.now_ns)
    sim.run_s(0.5)
    sim.image.update_site({"import_limit_w": 310e3})
    sim.run_s(3)
    sim.close()
    (path,) = kept(tmp_path / "f")
    assert {s.site["import_limit_w"] for s in segments(path) if s.site} == {445e3, 300e3, 480e3, 310e3}
    result = replay.Replay(Recording(path)).run()
    assert result.equal and result.skipped == 0 and result.ticks == sim.image.head


def test_a_parked_tick_says_who_wants_it(sim_record: Path) -> None:
    row = nested(Recording(sim_record).rows()[1500])
    row["out"]["mode"] = core.MODE_STOP
    for stop, park, words in ((0, 1, "An operator has parked the site"), (1, 1, "asked to stop"), (1, 0, "asked to stop")):
        row["inp"].update(stop=stop, park=park)
        assert words in " ".join(explain.sentences(row, None, None))
