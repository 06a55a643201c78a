"""Steps that move no power: the ports, and who the devices are."""

from __future__ import annotations

from controller.commission.results import FAIL, PASS, Result, identities
from controller.commission.rig import Refused, Rig
from controller.commission.talk import tell, yes

LISTEN_S = 10.0
WORST_SHARE = 1e-3  # of transactions that may go wrong: a good line has none, one in a thousand still costs no tick in a row
WORST_VIRTUAL = 0.05  # the virtual cabinet is a process that a busy machine wakes late
# (an answer that comes late was a timeout before: it counts once)
ERRORS = ("timeouts", "crc_errors", "exceptions", "wrong_unit", "short_frames", "long_frames", "echoes", "unsent")


def ports(rig: Rig) -> Result:
    """Every bus open, and its errors over ten seconds."""
    before = [dict(rig.image.bus_stats(i)) for i in range(len(rig.site.buses))]
    began_ns = rig.clock.monotonic_ns()
    rig.wait(LISTEN_S, f"listening for {LISTEN_S:.0f} s")
    seconds = max((rig.clock.monotonic_ns() - began_ns) / 1e9, 1e-3)
    result, bad = Result(PASS, ""), []
    worst = WORST_VIRTUAL if rig.instance.virtual else WORST_SHARE
    for i, bus in enumerate(rig.site.buses):
        after = dict(rig.image.bus_stats(i))
        n = after["transactions"] - before[i]["transactions"]
        wrong = {k: after[k] - before[i][k] for k in ERRORS if after.get(k, 0) != before[i].get(k, 0)}
        share = sum(wrong.values()) / n if n else 1.0
        result.numbers |= {f"{bus.name}_transactions_per_s": n / seconds, f"{bus.name}_error_share": share}
        result.numbers |= {f"{bus.name}_{k}": after[k] - before[i][k] for k in ("timeouts", "crc_errors", "late")}
        words = ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in wrong.items()) or "no error"
        result.facts.append(f"bus {bus.name} ({bus.port}, {bus.baud} Bd): {n / seconds:.0f} transactions/s, {words}")
        if not after["is_open"]:
            bad.append(f"bus {bus.name} is not open: {bus.port} is missing or in use")
        elif n == 0:
            bad.append(f"bus {bus.name} carries nothing: control does not run, or its devices are lost")
        elif share > worst:
            look = "look at termination, shield, A and B, baud, parity"
            bad.append(f"bus {bus.name}: {100 * share:.2f} % of transactions fail ({words}): {look}")
    result.verdict, result.reason = (FAIL, "; ".join(bad)) if bad else (PASS, f"at most {100 * worst:g} % of transactions fail")
    if rig.instance.virtual and not bad:
        result.facts.append(f"on real lines at most {100 * WORST_SHARE:g} % may fail; virtual ones lose more where the machine is busy")
    return result


def devices(rig: Rig) -> Result:
    """Each device as it was read, held against its nameplate by a person."""
    if len(rig.maps) != len(rig.site.devices):
        raise Refused("the devices were not read yet; `ballast status` says what control waits for")
    result, bad = Result(PASS, ""), []
    for i, row in enumerate(identities(rig)):
        stats = rig.image.device_stats(i)
        told = [row[key] for key in ("manufacturer", "model", "serial") if row.get(key)]
        named = ", ".join(told) if told else f"profile {row['profile']} (it names no serial number)"
        fact = f"{row['name']} ({row['role']}, bus {row['bus']}, address {row['unit']}): {named}"
        result.facts.append(fact)
        result.numbers[f"{row['name']}_verified"] = int(stats["verified"])
        if not stats["alive"]:
            bad.append(f"{row['name']} does not answer")
            continue
        if stats["verified"] < 0:
            bad.append(f"{row['name']} is not the device that was compiled: restart ballast, so that it is read anew")
            continue
        tell(rig.talk, fact, "  ")
        if not yes(rig.talk, f"Is that what the nameplate of {row['name']} says?", default=""):
            said = rig.talk.ask("What does the nameplate say?")
            bad.append(f"{row['name']}: the nameplate says {said[:200]!r}; correct bus, address or profile in {rig.site.file}")
    result.verdict, result.reason = (FAIL, "; ".join(bad)) if bad else (PASS, "every device answers and equals its nameplate")
    return result
