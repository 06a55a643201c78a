"""Traces, their errors, and the generators."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from bench.plant import config, load

SHARED = Path(__file__).parents[3] / "shared" / "traces"
if not SHARED.exists():
    SHARED = Path(__file__).parents[4] / "shared" / "traces"


def trace_file(tmp_path, text, name="x.csv"):
    p = tmp_path / name
    p.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(p)


def test_only_numeric_column_is_found_and_phases_lie_within_a_tick(tmp_path):
    ld = load.trace(trace_file(tmp_path, "t_s,phase,p_w\n0,a,100\n2,b,200\n4,b,150\n", "x.csv.gz"), seed=4)
    assert list(ld.p_w) == [100, 200, 150]
    late = ld.t_ns - np.array([0, 2, 4]) * 10**9
    assert ((late >= 0) & (late < 10**7)).all() and len(set(late)) == 3
    assert (ld.edge_ns == 20_000_000).all()
    assert ld.duration_s == pytest.approx(6.01)


def test_edges_and_scale(tmp_path):
    f = trace_file(tmp_path, "t_s,p_w\n0,1\n2,3\n4,5\n")
    assert (load.trace(f, edge="step").edge_ns == 0).all()
    assert (load.trace(f, edge="5").edge_ns == 5_000_000).all()
    linear = load.trace(f, edge="linear", scale=10)
    assert list(linear.edge_ns[:-1]) == list(np.diff(linear.t_ns))
    assert list(linear.p_w) == [10, 30, 50]


def test_runs_are_joined_one_period_apart(tmp_path):
    ld = load.trace(trace_file(tmp_path, "run,t_s,p_w\na,0,1\na,2,2\nb,0,3\nb,2,4\n"))
    assert list(np.round(ld.t_ns * 1e-9, 1)) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("t_s,a,b\n0,1,2\n1,1,2\n", ["2 numeric columns", "a, b", ":COLUMN"]),
        ("t,a\n0,1\n1,1\n", ["no column t_s"]),
        ("t_s,a\n0,1\n2,1\n1,1\n3,1\n", ["line 4", "t_s", "1 after 2", "goes back", "run or segment"]),
        ("t_s,a\n0,1\n1,1\n2,1\n9,1\n", ["line 5", "9 after 2", "gap of 7 s", "3 periods"]),
        ("t_s,a\n0,1\n1,\n2,x\n3,nan\n", ["line 3", "empty", "line 4", "'x'", "line 5", "'nan'"]),
        ("t_s,a\n0,1\n1\n2,1\n", ["line 3", "column a", "empty"]),
        ("t_s,a\n0,1\n", ["at least two rows"]),
    ],
)
def test_errors_name_file_line_column_value_reason_remedy(tmp_path, text, words):
    with pytest.raises(load.TraceError) as e:
        load.trace(trace_file(tmp_path, text))
    for word in [*words, "x.csv"]:
        assert word in str(e.value)


def test_all_problems_at_once_up_to_twenty(tmp_path):
    with pytest.raises(load.TraceError) as e:
        load.trace(trace_file(tmp_path, "t_s,a\n0,1\n1,1\n" + "".join(f"{k},?\n" for k in range(2, 60))) + ":a")
    assert len(e.value.problems) == 21 and "more" in e.value.problems[-1]


def test_wrong_column_and_missing_file_are_errors(tmp_path):
    with pytest.raises(load.TraceError, match="choose one of a"):
        load.trace(trace_file(tmp_path, "t_s,a\n0,1\n1,1\n") + ":b")
    with pytest.raises(load.TraceError, match="no such file"):
        load.trace(str(tmp_path / "none.csv"))
    (tmp_path / "bad.csv.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(load.TraceError, match="cannot be read"):
        load.trace(str(tmp_path / "bad.csv.gz"))


def test_steps_are_ideal_even_in_phase_and_repeat_without_a_seam():
    for walk_w in (0, 100e3):
        ld = load.steps(seed=3, walk_w=walk_w)
        assert (ld.edge_ns == 0).all()
        gap_s = np.diff(ld.t_ns[1:]) * 1e-9
        assert gap_s.min() >= 0.08 and gap_s.max() <= 0.16
        assert set(np.abs(np.diff(ld.p_w[1:]))) == {25e3}
        assert np.abs(ld.p_w - 300e3).max() <= max(walk_w, 12.5e3)
        assert abs(ld.p_w[0] - ld.p_w[-1]) <= 25e3
        hist = np.histogram(ld.t_ns % 10**7, 10)[0]
        assert hist.min() > 0.9 * len(ld.t_ns) / 10


def test_generators_repeat_for_a_seed():
    for make in (load.steps, load.cluster):
        a, b, c = make(seed=7), make(seed=7), make(seed=8)
        assert (a.t_ns.tobytes(), a.p_w.tobytes()) == (b.t_ns.tobytes(), b.p_w.tobytes())
        assert a.t_ns.tobytes() != c.t_ns.tobytes()


@pytest.mark.parametrize("seed", range(1, 6))
def test_cluster_looks_like_the_measured_run(seed):
    ld = load.cluster(seed=seed)
    assert ld.duration_s >= 3600 and ld.repeat_ns == round(ld.duration_s * 1e9)
    gap_s = np.diff(ld.t_ns) * 1e-9
    assert gap_s.min() > 0.05 and gap_s.max() < 8
    t = np.arange(0, 900, 2.0)
    p_w = ld.p_w[np.searchsorted(ld.t_ns, t * 1e9, side="right").clip(1) - 1]
    assert 300e3 < p_w.min() < 390e3 and 440e3 < p_w.max() < 470e3
    spectrum = np.abs(np.fft.rfft(p_w - p_w.mean()))
    f_hz = np.fft.rfftfreq(len(t), 2.0)
    fast = f_hz > 1 / 30  # below stand checkpoints
    period_s = 1 / f_hz[fast][np.argmax(spectrum[fast])]
    assert 9 < period_s < 13 or 4.5 < period_s < 6.5
    assert ld.p_w.min() < 200e3  # jobs end


def test_config_reports_everything_at_once():
    c = config.builtin()
    c |= {"seed": -1, "parms": {}, "params": {"pcs.tua_s": 1, "battery.soc": 7}, "ports": {"a": {"parity": "X"}}}
    c["devices"].append({"kind": "meter", "port": "a", "unit": 1})
    c["faults"] = [{"at_s": 1, "key": "meter.ded", "value": 1}]
    c["load"] = {"trace": "nowhere.csv", "edge": "soon"}
    with pytest.raises(config.ConfigError) as e:
        config.parse(c)
    text = str(e.value)
    for word in (
        "seed",
        "did you mean params",
        "pcs.tau_s",
        "battery.soc",
        "parity",
        "taken",
        "meter.dead",
        "nowhere.csv",
        "soon",
    ):
        assert word in text
    assert len(e.value.problems) >= 9


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here")
def test_measured_traces_load_fast():
    import time

    t = time.perf_counter()
    ld = load.trace(f"{SHARED}/p1_train_h100x512_gpt3_run1_2s.csv.gz:p_sum_ac_w")
    assert time.perf_counter() - t < 0.3
    assert len(ld.t_ns) == 1704 and ld.p_w.max() == 458516
    runs = load.trace(f"{SHARED}/p1_train_h100x512_llama2lora_runsA_2s.csv.gz:p_sum_ac_w")
    assert (np.diff(runs.t_ns) > 1.9e9).all()
