"""The laws as Python sees them, one point at a time: for tests and for the twin. Arguments and units as in laws.pxd."""

from _core cimport laws


def clamp(double x, double low, double high): return laws.clamp(x, low, high)
def slew(double x, double target, double up_per_s, double down_per_s, double dt_s): return laws.slew(x, target, up_per_s, down_per_s, dt_s)
def slew_from_zero(double x, double target, double rate_per_s, double dt_s): return laws.slew_from_zero(x, target, rate_per_s, dt_s)
def deadband(double x, double half_width): return laws.deadband(x, half_width)
def droop(double f_hz, double f_nom_hz, double db_hz, double r_pu, double p_w): return laws.droop(f_hz, f_nom_hz, db_hz, r_pu, p_w)
def volt_var(double v_pu, double db_pu, double full_pu, double q_max_var): return laws.volt_var(v_pu, db_pu, full_pu, q_max_var)
def decay(double x): return laws.decay(x)
def lag(double x, double target, double dt_s, double tau_s): return laws.lag(x, target, dt_s, tau_s)
def taper(double distance, double width): return laws.taper(distance, width)
def q_room(double s_va, double p_w): return laws.q_room(s_va, p_w)
