"""Power against analytic curves, energy balance, battery limits, meters, grid and fault schedule."""

import math

import numpy as np
import pytest

from tests.bench.rtu import (
    CHAR_NS,
    M701,
    M704,
    M715,
    M802,
    MS,
    Master,
    S,
    i16,
    plant,
    read_frame,
    setpoint_frame,
    write_frame,
)

COMMAND_CHARS = 17  # FC16 of 4 registers


def running(**kw):
    m = Master(plant(**kw))
    m.start_pcs()
    return m


def test_first_order_response_is_the_analytic_curve():
    m = running()
    t_ns = m.t_ns
    m.v.rx("b", setpoint_frame(50_000), t_ns)
    effect_ns = t_ns + COMMAND_CHARS * CHAR_NS + 1.75e6 + 1e6
    for dt_ms in (-0.5, 0.5, 1, 2, 5, 9):
        m.v.run(int(effect_ns + dt_ms * 1e6))
        want = 50e3 * (1 - math.exp(-dt_ms / 2)) if dt_ms > 0 else 0.0
        assert m.v.now()["batt_w"] == pytest.approx(want, abs=2)


def test_t90_is_2_303_tau_after_the_effect():
    m = running()
    m.ask("b", setpoint_frame(-80_000), at_ns=S)
    t = m.v.truth()
    assert t["cmd_t_end_ns"][0] == pytest.approx(S + COMMAND_CHARS * CHAR_NS, abs=20)
    assert t["cmd_t_effect_ns"][0] - t["cmd_t_end_ns"][0] == 2_750_000
    assert t["cmd_t90_ns"][0] - t["cmd_t_effect_ns"][0] == pytest.approx(2e6 * math.log(10), abs=2)
    assert t["cmd_value_w"][0] == -80_000


def test_superseded_command_has_no_t90():
    m = running(params={"pcs.tau_s": 0.02})
    m.ask("b", setpoint_frame(80_000), at_ns=S, wait_ns=10 * MS)
    m.ask("b", setpoint_frame(20_000), at_ns=S + 10 * MS, wait_ns=200 * MS)
    t = m.v.truth()
    assert t["cmd_t90_ns"][0] == -1
    assert t["cmd_t90_ns"][1] - t["cmd_t_effect_ns"][1] == pytest.approx(20e6 * math.log(10), abs=5)


def test_slew_then_lag():
    m = running(params={"pcs.slew_w_per_s": 1e6})
    m.ask("b", setpoint_frame(100_000), at_ns=S, wait_ns=1)
    effect_ns = S + COMMAND_CHARS * CHAR_NS + 2.75e6
    m.v.run(int(effect_ns + 50e6))
    assert m.v.now()["batt_w"] == pytest.approx(50e3, abs=5)
    m.v.run(int(effect_ns + 98e6))  # slope ends 2 kW (slew x tau) before the target
    assert m.v.now()["batt_w"] == pytest.approx(98e3, abs=5)
    m.v.run(int(effect_ns + 100e6))
    assert m.v.now()["batt_w"] == pytest.approx(100e3 - 2e3 * math.exp(-1), abs=5)
    assert m.v.truth()["cmd_t90_ns"][0] == pytest.approx(effect_ns + 90e6, abs=100)


def test_rating_clamps_and_shows_throttled_and_gain_error_shows():
    m = running()
    m.ask("b", setpoint_frame(400_000), wait_ns=50 * MS)
    assert m.v.now()["batt_w"] == pytest.approx(250e3, abs=1)
    assert m.regs("b", 1, M701 + 4, 1) == [4]
    m.ask("b", setpoint_frame(100_000), wait_ns=50 * MS)
    m.v.set("pcs.gain", 0.97)
    m.v.run(m.t_ns + 50 * MS)
    assert m.v.now()["batt_w"] == pytest.approx(97e3, abs=1)


def test_power_only_when_running():
    m = Master(plant())
    m.ask("b", setpoint_frame(50_000), wait_ns=100 * MS)
    assert m.v.now()["batt_w"] == 0
    m.start_pcs()
    m.v.run(3 * S)
    assert m.v.now()["batt_w"] == pytest.approx(50e3, abs=1)  # at the own ramp after the start
    m.t_ns = 3 * S
    m.write("b", 1, M715 + 8, [2], wait_ns=50 * MS)
    assert m.v.now()["batt_w"] == pytest.approx(0, abs=5)
    assert m.regs("b", 1, M701 + 4, 1) == [7]


def test_reversion_timer():
    m = running(params={"pcs.own_ramp_w_per_s": 1e5})
    m.write("b", 1, M704 + 26, [0, 0])
    m.write("b", 1, M704 + 30, [1, 0, 5])
    t = m.t_ns
    m.ask("b", setpoint_frame(100_000))
    detect_ns = t + COMMAND_CHARS * CHAR_NS + 1.75e6
    assert m.regs("b", 1, M704 + 33, 2) == [0, 5]
    m.ask("b", setpoint_frame(90_000), at_ns=t + 3 * S)  # a setpoint does not renew it (default)
    m.v.run(int(detect_ns + 5e9 - 1e6))
    assert m.v.now()["batt_w"] == pytest.approx(90e3, abs=1)
    m.v.run(int(detect_ns + 5e9 + 0.5e9))
    assert m.v.now()["batt_w"] == pytest.approx(40e3, abs=300)  # 100 kW/s for 0.5 s
    m.v.run(int(detect_ns + 7e9))
    assert m.v.now()["batt_w"] == pytest.approx(0, abs=1)
    m.t_ns = int(detect_ns + 8e9)
    assert m.regs("b", 1, M704 + 22, 1) == [0]
    m.ask("b", setpoint_frame(30_000))  # commanded again: enabled, and the timer runs again
    assert m.v.now()["batt_w"] == pytest.approx(30e3, abs=10)
    assert m.regs("b", 1, M704 + 33, 2) == [0, 5]


def test_reversion_renewed_by_the_timer_register_and_by_setpoints_where_the_device_does():
    for params, renew in (({}, True), ({"pcs.setpoint_renews": 1}, False)):
        m = running(params=params)
        m.write("b", 1, M704 + 30, [1, 0, 2])
        for k in range(30):
            m.ask("b", setpoint_frame(50_000), at_ns=(2 + k) * S)
            if renew:
                m.write("b", 1, M704 + 31, [0, 2])
        assert m.v.now()["batt_w"] == pytest.approx(50e3, abs=1)
        m.v.run(40 * S)
        assert m.v.now()["batt_w"] == pytest.approx(0, abs=1)


def test_adoption_state():
    m = Master(plant(params={"pcs.initial_state": 3, "pcs.initial_wset_w": -40_000, "pcs.initial_rvrt_s": 7}))
    assert m.v.now()["batt_w"] == -40_000
    assert m.regs("b", 1, M704 + 22, 4) == [1, 1, 0xFFFF, 0x10000 - 40_000]
    assert m.regs("b", 1, M704 + 33, 2) == [0, 7]
    assert i16(m.regs("b", 1, M701 + 10, 1)[0]) == -4000


@pytest.mark.parametrize("watts", [100_000, -100_000])
def test_energy_balance(watts):
    m = running(params={"bms.charge_limit_w": 1e6, "bms.discharge_limit_w": 1e6})
    m.ask("b", setpoint_frame(watts))
    m.v.run(60 * S)
    n, t = m.v.now(), m.v.truth()
    ac_j = float(t["batt_w"].astype(float).sum()) * 0.01
    assert n["dc_out_j"] == pytest.approx(ac_j + n["conv_loss_j"], rel=1e-6)
    assert n["conv_loss_j"] > 0 and n["heat_j"] > 0
    # charge out of the pack at open-circuit voltage = DC + heat (OCV nearly level around 50 %)
    charge_as = (0.5 - n["soc"]) * n["capacity_as"]
    ocv_v = n["v_v"] + n["heat_j"] / 60 / n["i_a"]
    assert charge_as * ocv_v == pytest.approx(n["dc_out_j"] + n["heat_j"], rel=0.01)
    assert np.allclose(t["grid_w"], t["load_w"] - t["batt_w"], atol=0.1)


def test_soc_scale_is_energy():
    m = running()
    m.ask("b", setpoint_frame(200_000))
    m.v.run(400 * S)
    n = m.v.now()
    drawn_wh = (n["dc_out_j"] + n["heat_j"]) / 3600
    assert 0.5 - n["soc"] == pytest.approx(drawn_wh / 250e3, rel=0.05)


def test_bms_shows_and_tapers_limits():
    m = Master(plant(params={"battery.soc": 0.975}))
    m.v.run(S)
    m.t_ns = S
    regs = m.regs("a", 10, M802, 64)
    assert regs[4] * 10 == pytest.approx(125e3, abs=20) and regs[5] * 10 == 250e3
    assert regs[11] == 9750 and regs[22] == 3 and regs[18] == 1


def test_protection_opens_contactors_after_a_second_over_the_limit():
    m = running(params={"bms.discharge_limit_w": 50e3})
    m.ask("b", setpoint_frame(60_000))
    m.v.run(4 * S)
    m.t_ns = 4 * S
    t = m.v.truth()
    assert m.v.now()["batt_w"] == 0 and not m.v.now()["closed"]
    assert t["over_s"][-1] == pytest.approx(1.0, abs=0.03)
    names = [t["event_names"][c] for c in t["event_code"]]
    assert "contactor_open" in names
    regs = m.regs("a", 10, M802, 64)
    assert regs[22] == 99 and regs[27] & 1 << 7
    m.write("a", 10, M802 + 20, [1])
    m.write("a", 10, M802 + 50, [1])
    assert m.v.now()["closed"]


def test_meter_values_and_modes():
    m = running(load=300e3)
    m.ask("b", setpoint_frame(50_000), wait_ns=100 * MS)
    m.v.set("grid.f_sine_hz", 0)
    assert m.meter() == (250e3, 0, 230, 230, 230, 50)
    m.v.set("meter.gain", -1)
    assert m.meter()[0] == -250e3
    m.v.set("meter.gain", 1)
    m.v.set("meter.mode", 1)
    assert all(math.isnan(x) for x in m.meter())
    m.v.set("meter.mode", 2)
    assert m.ask("a", read_frame(1, 0, 12))[0][3:27] == b"\xff" * 24
    m.v.set("meter.mode", 3)
    m.v.set("load.extra_w", 10e3)
    assert m.meter()[0] == 250e3
    m.v.set("meter.mode", 0)
    assert m.meter()[0] == 260e3


def test_meter_window_is_the_mean_before_the_detection():
    m = Master(plant(params={"meter.window_s": 0.02}))
    detect_ns = S + 8 * CHAR_NS + 1.75e6
    m.v.set("load.extra_w", 40e3, t_ns=int(detect_ns - 5e6))
    assert m.meter(at_ns=S)[0] == pytest.approx(310e3, abs=1)
    assert m.meter(at_ns=2 * S)[0] == 340e3


def test_meter_update_latches():
    m = Master(plant(params={"meter.update_s": 0.1}))
    m.v.set("load.extra_w", 5e3, t_ns=150 * MS)
    assert m.meter(at_ns=160 * MS)[0] == 300e3
    assert m.meter(at_ns=205 * MS)[0] == 305e3


def test_outage_stops_the_pcs_and_the_grid():
    m = running()
    m.ask("b", setpoint_frame(50_000))
    m.v.set("grid.connected", 0, t_ns=2 * S)
    assert m.v.now()["batt_w"] == 0 and m.v.now()["grid_w"] == 0
    assert m.meter(at_ns=3 * S)[:3] == (0, 0, 0)
    regs = m.regs("b", 1, M701, 10)
    assert regs[4] == 7 and regs[5] == 0 and regs[7] & 1 << 4
    m.v.set("grid.connected", 1)
    m.start_pcs()


def test_fault_schedule_is_exact_and_restores():
    v = plant(
        faults=[
            {"at_s": 1, "for_s": 0.5, "key": "load.extra_w", "value": 7e3},
            {"at_s": 1.2, "key": "grid.f_hz", "value": 49},
        ]
    )
    v.run(3 * S)
    load_w = v.truth()["load_w"]
    assert load_w[99] == 300e3 and load_w[100] == 307e3 and load_w[149] == 307e3 and load_w[150] == 300e3
    assert v.get("grid.f_hz") == 49
    t = v.truth()
    assert list(t["event_t_ns"][:3]) == [S, 1_200_000_000, 1_500_000_000]
    assert list(t["step_delta_w"]) == [7e3, -7e3]


def test_dead_devices_and_stuck_heartbeats():
    m = Master(plant(params={"pcs.dead": 1}))
    assert m.ask("b", read_frame(1, 40000, 2))[0] is None
    m.v.set("pcs.dead", 0)
    m.v.set("pcs.hb_stuck", 1)
    before = m.regs("b", 1, M715 + 3, 2, at_ns=2 * S)
    assert m.regs("b", 1, M715 + 3, 2, at_ns=5 * S) == before
    m.v.set("pcs.hb_stuck", 0)
    assert m.regs("b", 1, M715 + 3, 2, at_ns=9 * S) == [0, 9]


def test_ignored_commands_are_acknowledged():
    m = running(params={"pcs.ignore_commands": 1})
    assert m.ask("b", setpoint_frame(50_000), wait_ns=100 * MS)[0][1] == 16
    assert m.v.now()["batt_w"] == 0
    assert m.v.truth()["cmd_t_effect_ns"][0] == -1


def test_two_runs_of_a_seed_are_bit_equal():
    def run():
        m = running(load={"trace": "steps"}, params={"meter.noise_w": 500, "a.jitter_s": 0.001})
        m.v.set("b.bit_error_p", 0.2)
        seen = []
        for k in range(300):
            seen.append(m.ask("a", read_frame(1, 0, 12)))
            seen.append(m.ask("b", setpoint_frame(1000 * (k % 50))))
        return seen, m.v.truth()["grid_w"].tobytes()

    assert run() == run()


def test_load_energy_per_bin_is_exact():
    from bench.plant import load

    v = plant(load={"trace": "cluster"})
    v.run(200 * S)
    ld = load.cluster(seed=1)
    t_s = np.arange(0, 200, 0.001) + 0.0005
    k = np.searchsorted(ld.t_ns, t_s * 1e9, side="right") - 1
    before = np.where(k > 0, ld.p_w[np.maximum(k - 1, 0)], ld.p_w[0])
    now = np.where(k >= 0, ld.p_w[np.maximum(k, 0)], ld.p_w[0])
    frac = np.clip((t_s * 1e9 - ld.t_ns[np.maximum(k, 0)]) / np.maximum(ld.edge_ns[np.maximum(k, 0)], 1), 0, 1)
    p_w = before + (now - before) * frac
    assert np.abs(p_w.reshape(-1, 10).mean(1) - v.truth()["load_w"]).max() < 0.01 * np.ptp(ld.p_w)
    assert p_w.mean() == pytest.approx(v.truth()["load_w"].mean(), rel=1e-6)


def test_unknown_setting_names_near_matches():
    v = plant()
    with pytest.raises(ValueError, match=r"pcs\.tau_s"):
        v.set("pcs.tau", 1)
    with pytest.raises(ValueError, match="outside"):
        v.set("pcs.tau_s", -1)
    with pytest.raises(ValueError, match="start only"):
        v.set("battery.energy_wh", 1e5)


def test_write_frames_are_seen_by_one_device_only():
    m = Master(plant())
    m.write("b", 1, M715 + 5, [1, 2])
    assert m.regs("b", 1, M715 + 5, 2) == [1, 2]
    assert m.ask("a", write_frame(10, M802 + 4, [1]))[0][1:3] == b"\x90\x02"
