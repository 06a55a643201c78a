"""The judge on a synthetic follower, and the figures against their shared definition."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from bench import judge, metrics
from tests.bench.rtu import MS, Master, S, plant, setpoint_frame

SHARED = next((p for p in (Path(__file__).parents[n] / "shared" for n in (3, 4)) if (p / "metrics.py").exists()), None)


def synthetic(latency_ms=12.0, n=200, late=()):
    """Steps of +-25 kW every 120 ms from 10 s on; a command every 10 ms that answers after latency_ms;
    90 % stands 7.4 ms after each command."""
    steps_ns = np.array([10 * S + k * 120 * MS + (k * 7 % 10) * MS // 10 for k in range(n)])
    delta = np.where(np.arange(n) % 2 == 0, 25e3, -25e3)
    t_end, value = [], []
    for t, up in zip(steps_ns, delta, strict=True):
        for extra in range(-3, 9):
            t_end.append(t + int((latency_ms + 10 * extra) * MS))
            value.append((25e3 if up > 0 else 0) if extra >= 0 else (0 if up > 0 else 25e3))
    order = np.argsort(t_end, kind="stable")
    t_end, value = np.array(t_end)[order], np.array(value, float)[order]
    bins = np.full(4000, 300e3, np.float32)
    return {
        "step_t_ns": steps_ns,
        "step_delta_w": delta,
        "cmd_t_end_ns": t_end,
        "cmd_value_w": value,
        "cmd_t_effect_ns": t_end + 2_750_000,
        "cmd_t90_ns": t_end + 7_400_000,
        "late_t_ns": np.array([a for a, _ in late], np.int64),
        "late_ns": np.array([b for _, b in late], np.int64),
        "now_ns": np.int64(40 * S),
        "t0_ns": np.int64(0),
        "bin_ns": np.int64(10 * MS),
        "load_w": bins,
        "grid_w": bins,
        "batt_w": np.zeros(4000, np.float32),
        "soc": np.full(40, 0.5, np.float32),
        "over_s": np.zeros(40, np.float32),
        "soc_start": np.float64(0.5),
        "truncated": np.int64(0),
    }


def test_latency_of_a_synthetic_follower():
    m = judge.judge(synthetic(), grid_since_ns=0)["measured"]
    assert m["load_to_command_ms"] == {"p50": 12.0, "p99": 12.0, "max": 12.0, "events": 200, "excluded": 0}
    assert m["load_to_power_ms"]["p99"] == pytest.approx(19.4)


def test_steps_before_the_judged_span_do_not_count():
    m = judge.judge(synthetic(), grid_since_ns=10 * S)["measured"]
    assert m["load_to_command_ms"]["events"] == 200 - 42


def test_late_wakes_of_the_plant_leave_events_out():
    m = judge.judge(synthetic(late=[(10 * S + 5 * MS, MS)]), grid_since_ns=0)["measured"]
    assert m["load_to_command_ms"]["excluded"] == 1 and m["load_to_command_ms"]["events"] == 199


def test_a_late_answer_counts_with_its_time_and_none_with_a_second():
    truth = synthetic(latency_ms=75)
    assert judge.judge(truth, grid_since_ns=0)["measured"]["load_to_command_ms"]["p50"] == pytest.approx(75.0)
    truth["cmd_value_w"] = np.zeros_like(truth["cmd_value_w"])
    assert judge.judge(truth, grid_since_ns=0)["measured"]["load_to_command_ms"]["p50"] == 1000.0


def test_short_runs_give_null_figures():
    out = judge.judge(synthetic(), grid_since_ns=0)
    assert out["suppression"] is None and out["spikes_smoothed"] is None and out["band_db"] is None
    assert out["grid"]["peak_w"] == 300e3 and out["grid"]["ramp_max_w_per_s"] == 0
    json.dumps(out)


def test_figures_of_a_long_run_and_cli(tmp_path, capsys):
    v = plant(load={"trace": "cluster"})
    v.run(300 * S)
    v.write_truth(tmp_path / "truth.npz")
    assert judge.main([str(tmp_path), "--since-ns", "0"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["suppression"] == pytest.approx(0, abs=1e-6)
    assert out["spikes"] > 5 and out["spikes_smoothed"] == 0
    assert out["band_db"]["0.1-2"] == pytest.approx(0, abs=1e-6)
    assert out["grid"]["peak_w"] > 445e3 and out["grid"]["over_limit_s"] > 10
    assert out["battery"] == {"soc_start": 0.5, "soc_end": 0.5, "throughput_wh": 0.0, "over_limit_s": 0.0}


def test_a_real_loop_in_virtual_time_is_measured():
    """A follower that knows the load, each tick: U(0, 10 ms) + frame to the command, 2.75 ms + 2.303 tau to power."""
    m = Master(plant(load={"trace": "steps"}))
    m.start_pcs()
    for k in range(100, 2000):
        t = k * 10 * MS
        m.v.run(t)
        m.v.rx("b", setpoint_frame(int(m.v.now()["load_w"] - 300e3)), t)
    m.v.run(20 * S + 900 * MS)
    out = judge.judge(m.v.truth(), grid_since_ns=0)["measured"]
    assert out["load_to_command_ms"]["events"] > 100
    assert 4.5 < out["load_to_command_ms"]["p50"] < 6.5 and out["load_to_command_ms"]["max"] < 10.5
    both = out["load_to_power_ms"]["p50"] - out["load_to_command_ms"]["p50"]
    assert both == pytest.approx(2.75 + 2 * np.log(10), abs=0.01)


@pytest.mark.skipif(SHARED is None, reason="../shared is not here: the definition of the figures cannot be compared")
def test_metrics_equal_the_shared_definition():
    spec = importlib.util.spec_from_file_location("shared_metrics", SHARED / "metrics.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    rng = np.random.default_rng(1)
    t_s = np.arange(0, 420, 2.0)
    p_w = 400e3 + 50e3 * rng.normal(size=len(t_s))
    ours_1ms, theirs_1ms = metrics.replay(t_s, p_w, 400), theirs.replay(t_s, p_w, 400)
    assert np.array_equal(ours_1ms, theirs_1ms)
    for latency_ms in (5, 15):
        grid, mean = metrics.follower(ours_1ms, latency_ms)
        want = theirs.follower(theirs_1ms, latency_ms)
        assert np.array_equal(grid, want[0]) and np.array_equal(mean, want[1])
        assert metrics.figures(mean, grid) == theirs.figures(mean, grid)
