"""Instances, processes and the command line, without any real-time run."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
from _core.image import ProcessImage

from controller import __main__ as command
from controller import build, instance
from controller import site as sites
from controller.clock import ManualClock, RealClock
from controller.instance import Instance, InstanceError
from controller.problems import SiteError
from controller.process import Backoff, Child, exit_words
from controller.virtual import LoadOptions, plant_config

SITE = sites.load(None)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_a_second_start_is_refused_with_the_pid_and_the_remedy(runtime: Path) -> None:
    directory = instance.make_directory("hall-3")
    fd = instance.lock(directory, "hall-3")
    with pytest.raises(InstanceError, match=rf"process {os.getpid()};.*kill.*--set site.name"):
        instance.lock(directory, "hall-3")
    os.close(fd)
    os.close(instance.lock(directory, "hall-3"))


def test_a_directory_of_somebody_else_is_refused(runtime: Path) -> None:
    (runtime / "ballast-x").mkdir(mode=0o777)
    (runtime / "ballast-x").chmod(0o777)
    with pytest.raises(InstanceError, match="others may write"):
        instance.make_directory("x")
    (runtime / "elsewhere").mkdir()
    (runtime / "ballast-y").symlink_to(runtime / "elsewhere")
    with pytest.raises(InstanceError, match="belongs to somebody else"):
        instance.make_directory("y")


def test_instances_are_found_while_their_parent_lives(runtime: Path) -> None:
    with pytest.raises(InstanceError, match="not running"):
        instance.find(None)
    fds = []
    for name in ("one", "two"):
        directory = instance.make_directory(name)
        fds.append(instance.lock(directory, name))
        Instance(name, os.getpid(), 1, 3, str(directory), "").write()
    with pytest.raises(InstanceError, match="several sites run here: one, two"):
        instance.find(None)
    assert instance.find("two").site == "two"
    os.close(fds[0])
    assert instance.find(None).site == "two"
    os.close(fds[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root to give a directory away")
def test_root_is_told_whose_site_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it stands in that user's own place, which root does not look into by itself."""
    for name in ("BALLAST_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(instance, "USERS_RUN", tmp_path)
    directory = tmp_path / "65534" / "ballast-hall-77"
    directory.mkdir(parents=True)
    with pytest.raises(InstanceError, match="is not running"):
        instance.find("hall-77")
    Instance("hall-77", os.getpid(), 1, 3, str(directory), "").write()
    os.chown(directory, 65534, 65534)
    owner = pwd.getpwuid(65534).pw_name
    with pytest.raises(InstanceError, match=f"site hall-77 was started by another user: .*`sudo -u {owner} ballast"):
        instance.find("hall-77")


def test_the_image_is_opened_through_the_parent(runtime: Path) -> None:
    image = ProcessImage.create()
    here = Instance("s", os.getpid(), 1, image.fd, str(runtime), "")
    assert instance.open_image(here, writable=False).head == 0
    gone = Instance("s", 0, 1, image.fd, str(runtime), "")
    with pytest.raises(InstanceError):
        instance.open_image(gone, writable=False)


def test_backoff_is_none_at_first_and_bounded() -> None:
    backoff = Backoff()
    waits = [backoff.next_s(0.1) for _ in range(8)]
    assert waits[0] == 0.0 and waits[1] == 0.1 and max(waits) == 1.5 and waits == sorted(waits)
    assert backoff.next_s(60.0) == 0.0


def test_a_child_is_reaped_and_restarted(tmp_path: Path) -> None:
    clock = ManualClock()
    child = Child("x", ["this_module_does_not_exist"], clock, stderr=open(os.devnull, "wb"))  # noqa: SIM115
    child.start()
    assert child.pid > 0
    assert child.wait(20) == 1 and child.pid == 0
    assert child.plan_restart() == 0.0 and child.again_ns == 0
    assert exit_words(-9) == "was killed by SIGKILL" and exit_words(3) == "ended with code 3"


def test_kernel_site_has_every_field_and_the_image_takes_it() -> None:
    image = ProcessImage.create()
    fields = build.kernel_site(SITE)
    image.set_site(fields)
    assert all(v == v for v in image.site().values()), "no NaN"
    assert fields["has_pcs_ctl"] and fields["has_bms_temp"] and not fields["has_others"]
    assert fields["pcs_dead_s"] == pytest.approx(0.00275), "1.75 ms of silence and 1 ms of dead time"
    image.write_limits(lease_until_ns=1, **build.limits(SITE))


def test_the_plan_of_the_builtin_site_is_the_one_of_the_design() -> None:
    plan = build.plan(SITE)
    assert plan.load_to_power_ms["p50"] == pytest.approx(13.5, abs=0.1)
    assert plan.load_to_power_ms["p99"] == pytest.approx(18.4, abs=0.1)


def test_a_bus_that_cannot_hold_its_plan_is_refused_with_the_arithmetic() -> None:
    site = build.load_site(None, ["bus.a.baud=9600"])
    with pytest.raises(SiteError, match=r"bus.a.*ms"):
        build.plan(site)


def test_profiles_are_checked_with_the_rest(tmp_path: Path) -> None:
    text = sites.BUILTIN.read_text().replace("ballast_virtual_meter", "ballast_virtual_metre").replace("unit = 10", "unit = 0")
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SiteError) as e:
        build.load_site(tmp_path / "s.toml")
    assert "ballast_virtual_metre" in str(e.value) and "unit = 0" in str(e.value)
    with pytest.raises(SiteError, match="is the profile of a meter"):
        build.load_site(None, ["device.bms.profile=ballast_virtual_meter"])


def test_the_virtual_cabinet_is_built_from_the_nameplate() -> None:
    site = build.load_site(None, ["pcs.tau_s=0.004", "plant.pcs.dead_time_s=0.002", "battery.soc=0.55", "bus.a.baud=115200"])
    config = plant_config(site, LoadOptions("steps", "step", 0.5))
    assert config["params"]["pcs.tau_s"] == 0.004, "the site's nameplate"
    assert config["params"]["pcs.dead_time_s"] == 0.002, "the cabinet differs from what the site believes"
    assert config["params"]["battery.soc"] == 0.55
    assert config["ports"]["a"]["baud"] == 115200
    assert config["devices"][1] == {"kind": "bms", "port": "a", "unit": 10}
    json.dumps(config)


def test_the_plant_accepts_that_configuration() -> None:
    code = "import json,sys; from bench.plant.config import parse; parse(json.load(sys.stdin))"
    text = json.dumps(plant_config(SITE, LoadOptions()))
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_check_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check"]) == 0
    assert "load to power" in capsys.readouterr().out


def test_check_says_everything_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.toml").write_text("[site]\nnam = 'x'\n[grid]\nimport_limit_kw = 3\n")
    assert command.main(["check", str(tmp_path / "s.toml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 4 and all(line.startswith(str(tmp_path)) for line in lines)


@pytest.mark.parametrize("argv", [["run", "--edge", "soon"], ["run", "--for", "-1"], ["sim", "--scale", "-2"], ["run", "absent.toml"]])
def test_bad_options_end_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(argv) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("argv", [["status"], ["top"], ["hold", "-20kW"], ["release"]])
def test_without_an_instance_the_code_is_3(runtime: Path, argv: list[str]) -> None:
    assert command.main(argv) == 3


def test_status_json_without_an_instance(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["running"] is False


def test_control_loads_nothing_heavy() -> None:
    code = "import sys, controller.control; print(sorted(set(sys.modules) & {'numpy', 'rich', 'sunspec2', 'msgspec', 'bench'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_only_clock_reads_a_clock() -> None:
    """controller/ is handed its time, so that a simulation owns it."""
    found = []
    for path in Path(command.__file__).parent.glob("*.py"):
        if path.name != "clock.py" and re.search(
            r"^\s*(import time|from time|from datetime)|time\.time\(|datetime\.now", path.read_text(), re.M
        ):
            found.append(path.name)
    assert not found
    assert RealClock().monotonic_ns() > 0


def test_controller_never_imports_bench() -> None:
    for path in Path(command.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(import bench|from bench)", path.read_text(), re.M), path.name
