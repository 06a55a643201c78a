"""Names and words of the numbers in image.pxd, in the order of the numbers. Alarms have theirs in faults.py."""

SLOT_NAMES = ("operator", "schedule", "planner")
MODE_NAMES = ("FAULT", "STANDBY", "GRID", "ISLAND", "RESYNC", "TRIP", "STOP")
START_NAMES = (
    "waiting for every device to answer and to be the one that was compiled",
    "writing the reversion timer and reading it back",
    "waiting for closed battery contactors and limits above 0",
    "waiting for a moving PCS heartbeat",
    "waiting for the PCS to run",
    "started",
)
SP_NAMES = ("none", "hold", "base")

# LIM_*: name, and why power is what it is
LIMIT_WORDS = (
    ("ramp", "grid import moves toward its target no faster than the ramp limit"),
    ("import", "import limit: the battery discharges to keep grid import under it"),
    ("export", "export limit: the battery may not push more power into the grid"),
    ("billing", "more than its share of the billing window is used: import is held lower until that is given back"),
    ("feeder", "PCC breaker rating"),
    ("soc_min", "state of charge is at its lower end: no discharge"),
    ("soc_max", "state of charge is at its upper end: no charge"),
    ("temp", "battery temperature: power is reduced"),
    ("pcs", "converter rating"),
    ("bms_charge", "the BMS limits charging"),
    ("bms_discharge", "the BMS limits discharging"),
    ("batt_v", "battery voltage is near its limit: power is reduced"),
    ("slew", "command slew limit of the converter"),
    ("meter_stale", "the meter's value is too old: power goes to 0"),
    ("bms_stale", "the BMS has not answered: its limits count as 0"),
    ("hold", "a setpoint holds the battery; load is not followed"),
    ("lease", "the supervisor's lease has ended: the tighter of its last limits and the site's are in force"),
    ("filter", "load is filtered: measurement and command are not aligned well enough for full bandwidth"),
    ("droop", "frequency is outside the deadband: droop adds power, and the ramp limit does not apply to it"),
    ("mode", "not in GRID: no power is asked for"),
    ("site_p", "the charge or discharge limit of the site or the supervisor"),
    ("ramp_not_held", "battery or converter is at its end: grid import moves faster than the ramp limit"),
    ("operator", "a limit that an operator has set is tighter than the site's"),
)
