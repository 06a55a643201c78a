"""The real-time process behind its PTYs, read by independent clients."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench.plant import config
from tests.bench.rtu import M704, M715, read_frame, setpoint_frame, write_frame

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.realtime


class Process:
    """A running plant."""

    def __init__(self, tmp_path, **changes):
        path = tmp_path / "plant.json"
        path.write_text(
            json.dumps(config.builtin() | {"out": str(tmp_path / "out"), "load": {"trace": "steps"}} | changes)
        )
        self.out = tmp_path / "out" / "truth.npz"
        self.p = subprocess.Popen(
            [sys.executable, "-m", "bench.plant", "--config", str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = json.loads(self.p.stdout.readline())

    def tell(self, message):
        self.p.stdin.write(json.dumps(message) + "\n")
        self.p.stdin.flush()
        return json.loads(self.p.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.p.poll() is None:
            self.p.kill()
        self.p.wait()
        self.p.stdin.close()
        self.p.stdout.close()


def ask(fd, frame, n, timeout_s=1.0):
    os.write(fd, frame)
    got, end = b"", time.monotonic() + timeout_s
    while len(got) < n and time.monotonic() < end:
        if select.select([fd], [], [], 0.05)[0]:
            got += os.read(fd, 512)
    return got


def test_answers_in_time_and_writes_truth_at_sigterm(tmp_path):
    with Process(tmp_path) as plant:
        fd = os.open(plant.ready["ports"]["a"], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        took_ms = []
        for _ in range(50):
            t = time.monotonic()
            assert len(ask(fd, read_frame(1, 0, 12), 29)) == 29
            took_ms.append((time.monotonic() - t) * 1e3)
            time.sleep(0.003)
        assert min(took_ms) > 2.63  # never faster than the wire
        assert np.median(took_ms) < 5
        assert plant.tell({"set": {"meter.dead": 1}}) == {"set": {"meter.dead": 1}}
        time.sleep(0.01)
        assert ask(fd, read_frame(1, 0, 12), 29, 0.1) == b""
        assert "meter.dead" in plant.tell({"set": {"meter.ded": 1}})["error"]
        assert "error" in plant.tell("nonsense")
        os.close(fd)
        plant.p.send_signal(signal.SIGTERM)
        assert plant.p.wait(5) == 0
        with np.load(plant.out) as z:
            assert len(z["load_w"]) > 10 and int(z["t0_ns"]) == plant.ready["t0_ns"]
            assert int(z["counters"][0][list(z["counter_names"]).index("requests")]) == 50


def test_ends_at_eof_at_stop_and_at_its_duration(tmp_path):
    for how in ("eof", "stop", "duration"):
        with Process(tmp_path, duration_s=0.3 if how == "duration" else None) as plant:
            if how == "eof":
                plant.p.stdin.close()
            elif how == "stop":
                plant.p.stdin.write('{"stop": true}\n')
                plant.p.stdin.flush()
            assert plant.p.wait(5) == 0
            assert plant.out.exists()
            plant.out.unlink()


def test_truth_on_demand(tmp_path):
    with Process(tmp_path) as plant:
        time.sleep(0.3)
        path = str(tmp_path / "now.npz")
        assert plant.tell({"truth": path}) == {"truth": path}
        with np.load(path) as z:
            assert len(z["grid_w"]) >= 20


def test_bad_config_lists_errors_and_exits_2(tmp_path):
    with Process(tmp_path, seed=-3, load={"trace": "no.csv"}) as plant:
        assert len(plant.ready["errors"]) == 2
        assert plant.p.wait(5) == 2


def test_pysunspec2_reads_pcs_and_bms(tmp_path):
    client = pytest.importorskip("sunspec2.modbus.client")
    with Process(tmp_path) as plant:
        fd = os.open(plant.ready["ports"]["b"], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        assert len(ask(fd, write_frame(1, M715 + 8, [1]), 8)) == 8
        time.sleep(0.6)
        assert len(ask(fd, setpoint_frame(-50_000), 8)) == 8
        time.sleep(0.05)
        os.close(fd)
        pcs = client.SunSpecModbusClientDeviceRTU(
            slave_id=1, name=plant.ready["ports"]["b"], baudrate=460800, timeout=1
        )
        pcs.scan()
        assert {1, 701, 702, 704, 715} <= set(pcs.models)
        m = pcs.models[701][0]
        assert (m.W.cvalue, m.InvSt.value, m.LNV.cvalue) == (-50_000, 3, 230)
        assert m.Hz.cvalue == pytest.approx(50, abs=0.02)
        assert m.TmpAmb.value is None and m.TotVarhInj.value is None
        assert pcs.models[702][0].VAMaxRtg.cvalue == 250_000
        assert pcs.models[704][0].WSet.cvalue == -50_000 and pcs.models[704][0].WSetMod.value == 1
        assert pcs.models[715][0].DERHb.value >= 0
        pcs.close()
        bms = client.SunSpecModbusClientDeviceRTU(
            slave_id=10, name=plant.ready["ports"]["a"], baudrate=460800, timeout=1
        )
        bms.scan()
        assert {1, 802, 803} <= set(bms.models)
        b = bms.models[802][0]
        assert b.SoC.cvalue == pytest.approx(50, abs=0.1) and b.WHRtg.cvalue == 250_000 and b.State.value == 3
        assert b.W.cvalue < -40_000 and b.A.cvalue < -50  # charging: out of the battery counts +
        assert bms.models[803][0].string[0].StrSoC.cvalue == b.SoC.cvalue
        bms.close()


def test_pymodbus_reads_the_meter(tmp_path):
    pymodbus = pytest.importorskip("pymodbus.client")
    with Process(tmp_path, load={"trace": 123e3}) as plant:
        c = pymodbus.ModbusSerialClient(plant.ready["ports"]["a"], baudrate=460800, parity="N", timeout=1)
        assert c.connect()
        answer = c.read_input_registers(0, count=12, device_id=1)
        values = c.convert_from_registers(answer.registers, c.DATATYPE.FLOAT32)
        assert values[:5] == [123e3, 0, 230, 230, 230] and values[5] == pytest.approx(50, abs=0.02)
        assert c.read_holding_registers(12, count=1, device_id=1).exception_code == 2
        c.close()


def test_reversion_acts_when_the_controller_dies(tmp_path):
    with Process(tmp_path, load={"trace": 300e3}, params={"pcs.initial_state": 3}) as plant:
        fd = os.open(plant.ready["ports"]["b"], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        assert len(ask(fd, write_frame(1, M704 + 30, [1, 0, 1]), 8)) == 8
        time.sleep(0.005)
        assert len(ask(fd, setpoint_frame(40_000), 8)) == 8
        os.close(fd)
        time.sleep(1.8)
        plant.p.stdin.close()
        assert plant.p.wait(5) == 0
        with np.load(plant.out) as z:
            assert z["batt_w"].max() == pytest.approx(40e3, rel=0.01) and z["batt_w"][-1] == 0
            names = [z["event_names"][k] for k in z["event_code"]]
        assert "reversion" in names
