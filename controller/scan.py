"""The short-lived child that compiles the devices: asks SunSpec devices for their models, loads profiles, and hands
the maps to control.

It inherits the open, locked ports, so nobody can slip in between; pysunspec2's model files are loaded here and end
with this process. stdout: the list of DeviceMap, pickled. Exit code 1: a device does not answer (try again); 2: a
device or profile that cannot be used.
"""

from __future__ import annotations

import argparse
import os
import pickle
import select
import sys
from pathlib import Path

from controller import build
from controller.clock import Clock, RealClock
from controller.problems import SiteError
from controller.process import EXIT_FAILED, EXIT_INPUT, EXIT_OK
from controller.site import Bus

TRIES = 3
ANSWER_S = 0.25  # a slow device's turnaround; a good one answers in a few ms
QUIET_S = 0.01  # silence kept before a request, and until a stray answer is over


class NoAnswer(OSError):
    """A device that does not answer, or not with a whole frame."""


class Asker:
    """Reads registers over an open port, one request at a time; only for scanning, never beside the engine."""

    def __init__(self, fd: int, bus: Bus, clock: Clock) -> None:
        self.fd, self.bus, self.clock = fd, bus, clock

    def __call__(self, unit: int, function: int, address: int, count: int) -> list[int]:
        """Registers of one read (FC03/04). Raises NoAnswer after three tries, ValueError for an exception answer."""
        body = bytes([unit, function, address >> 8, address & 255, count >> 8, count & 255])
        request = body + crc(body)
        why = ""
        for _ in range(TRIES):
            self._flush()
            os.write(self.fd, request)
            answer = self._take(unit, function, 5 + 2 * count)
            if len(answer) >= 5 and answer[1] == function | 0x80:
                raise ValueError(f"unit {unit}: exception {answer[2]} for function {function}, register {address}")
            if len(answer) == 5 + 2 * count:
                return [answer[3 + 2 * i] << 8 | answer[4 + 2 * i] for i in range(count)]
            why = f"{len(answer)} bytes, {5 + 2 * count} expected" if answer else "no answer"
        raise NoAnswer(
            f"bus {self.bus.name}, unit {unit}: {why} for function {function}, register {address}, in {TRIES} tries"
        )

    def _flush(self) -> None:
        while select.select([self.fd], [], [], QUIET_S)[0]:
            if not os.read(self.fd, 4096):
                raise NoAnswer(f"bus {self.bus.name}: the port is gone")

    def _take(self, unit: int, function: int, length: int) -> bytes:
        """A whole frame of ours with a good CRC, or what came instead. An echo of the request is skipped by looking
        for the frame.
        """
        wire_s = (length + 8) * 12 / self.bus.baud
        end_ns = self.clock.monotonic_ns() + int((ANSWER_S + wire_s) * 1e9)
        data = b""
        while (left_s := (end_ns - self.clock.monotonic_ns()) / 1e9) > 0 and len(data) < 1024:
            if not select.select([self.fd], [], [], left_s)[0]:
                break
            more = os.read(self.fd, 1024)
            if not more:
                raise NoAnswer(f"bus {self.bus.name}: the port is gone")
            data += more
            for head, size in ((bytes([unit, function, length - 5]), length), (bytes([unit, function | 0x80]), 5)):
                at = data.find(head)
                while at >= 0:
                    frame = data[at : at + size]
                    if len(frame) == size and frame[-2:] == crc(frame[:-2]):
                        return frame
                    at = data.find(head, at + 1)
        return data if len(data) != length else data[:-1]


def crc(data: bytes) -> bytes:
    """CRC-16 of Modbus (Modbus over serial line V1.02, 2.5.1.2), low byte first."""
    c = 0xFFFF
    for byte in data:
        c ^= byte
        for _ in range(8):
            c = (c >> 1) ^ 0xA001 if c & 1 else c >> 1
    return bytes([c & 255, c >> 8])


def main(argv: list[str] | None = None) -> int:
    """Entry point of the child."""
    parser = argparse.ArgumentParser(prog="ballast-scan")
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--fds", required=True)
    args = parser.parse_args(argv)
    site = build.site_from(args.directory / "site.json")
    clock = RealClock()
    asks = {bus.name: Asker(int(fd), bus, clock) for bus, fd in zip(site.buses, args.fds.split(","), strict=True)}
    from hal.sunspec import SunSpecError

    try:
        maps = build.device_maps(site, lambda bus: asks[bus.name])
    except (SiteError, SunSpecError) as e:
        # A dead device and a wrong one both end in SunSpecError where the search for "SunS" swallowed the silence.
        print(e, file=sys.stderr)
        return EXIT_FAILED if "no answer" in str(e) else EXIT_INPUT
    except (OSError, ValueError) as e:
        print(e, file=sys.stderr)
        return EXIT_FAILED
    sys.stdout.buffer.write(pickle.dumps(maps))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
