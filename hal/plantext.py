"""The plan as text: what `ballast check` prints."""

from __future__ import annotations

from hal.canplan import CanTable
from hal.gantt import draw
from hal.plantypes import FREE, HYPER_TICKS, NONE, BusTable, Plan
from hal.wiretime import SETTLE


def render(plan: Plan) -> str:
    """The tick drawn, its table, arithmetic of every transaction, after-slots, figures."""
    lines = [f"one tick of {plan.tick_ms:g} ms:", *draw(plan)]
    for table in plan.tables:
        if isinstance(table, CanTable):
            lines += table.lines()
            continue
        line, spec = table.spec.line, table.spec
        if spec.tcp:
            lines.append(f"bus {spec.name}: TCP, {spec.latency_ms:g} ms there and back, {_used(plan, table)}")
        else:
            lines.append(
                f"bus {spec.name}: {spec.baud} 8{spec.parity}{spec.stop_bits}, character {line.bits} bit = "
                f"{line.char_ms:.4f} ms, t3.5 = {line.t35_ms:.3f} ms, {_used(plan, table)}"
            )
        lines.append(f"  {'start':>8} {'sent':>8} {'answered':>8}  ms after the tick")
        for p in plan.timeline:
            if p.bus == table.spec.name:
                lines.append(f"  {p.start_ms:8.3f} {p.sent_ms:8.3f} {p.end_ms:8.3f}  {p.what}")
        for i in [*table.fast, *(i for i in (table.command, table.command23) if i >= 0)]:
            txn = table.txns[i]
            lines.append(f"    {txn.what}: {txn.wire.arithmetic(silence=False)}")
        used = sum(i >= 0 for i in table.usual)
        free = sum(i == FREE for i in table.usual)
        none = sum(i == NONE for i in table.usual)
        lines.append(
            f"    after-slots in {HYPER_TICKS} ticks: {used} planned, {free} free, {none} without; over by {table.limit_ms:.3f} ms"
        )
    lines += _figures(plan)
    lines += [f"note: {n}" for n in plan.notes]
    return "\n".join(lines)


def _used(plan: Plan, table: BusTable) -> str:
    return f"in use {100 * table.busy_ms / plan.tick_ms:.0f} %"


def _figures(plan: Plan) -> list[str]:
    a, b = plan.load_to_command_ms, plan.load_to_power_ms
    update = f" + U(0, {plan.to_command.update_ms:g})" if plan.to_command.update_ms else ""
    behind = plan.to_power.constant_ms - plan.to_command.constant_ms
    return [
        f"kernel steps at {plan.step_ms:.3f} ms, at the latest at {plan.step_deadline_ms:.3f} ms",
        f"load to command = U(0, {plan.tick_ms:g}){update} + {plan.to_command.constant_ms:.3f} "
        f"(command ends at {plan.command_end_ms:.3f}, the meter samples at {plan.sample_ms:.3f}): "
        f"p50 {a['p50']:.2f}, p99 {a['p99']:.2f}, max {a['max']:.2f} ms",
        f"load to power = that + {behind:.3f} (detection of the command, dead time, {SETTLE:g} tau to 90 %): "
        f"p50 {b['p50']:.2f}, p99 {b['p99']:.2f}, max {b['max']:.2f} ms",
    ]
