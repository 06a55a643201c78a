# The control laws: each one function on one point, inline, no libm, so that any two machines (and the Python twin) agree to the last bit.

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t
from libc.math cimport sqrt         # correctly rounded by IEEE 754: the one function that is the same everywhere


cdef inline bint finite(double x) noexcept nogil:
    return x - x == 0.0


cdef inline double clamp(double x, double low, double high) noexcept nogil:
    """x within [low, high]; where low > high the high end wins; a NaN bound does not bind."""
    if x < low:
        x = low
    if x > high:
        x = high
    return x


cdef inline int64_t minus(int64_t a, int64_t b) noexcept nogil:
    """a - b held within int64: a timestamp from nowhere makes a long time, never a wrapped one (signed overflow is undefined in C)."""
    if b > 0 and a < INT64_MIN + b:
        return INT64_MIN
    if b < 0 and a > INT64_MAX + b:
        return INT64_MAX
    return a - b


cdef inline int64_t to_ns(double t_s) noexcept nogil:
    """Seconds to nanoseconds; what int64 cannot hold (NaN too) counts as 0."""
    cdef double x = t_s * 1e9
    return <int64_t>x if -9e18 < x < 9e18 else 0


cdef inline double slew(double x, double target, double up_per_s, double down_per_s, double dt_s) noexcept nogil:
    """One step of x toward target, no faster than the rates (per second, both positive)."""
    cdef double d = target - x
    if d > up_per_s * dt_s:
        d = up_per_s * dt_s
    if d < -down_per_s * dt_s:
        d = -down_per_s * dt_s
    return x + d


cdef inline double slew_from_zero(double x, double target, double rate_per_s, double dt_s) noexcept nogil:
    """Like slew, but a reduction toward zero is immediate: what makes power smaller is never delayed."""
    if (x > 0.0 and target < x) or (x < 0.0 and target > x):
        x = target if x * target > 0.0 else 0.0
    return slew(x, target, rate_per_s, rate_per_s, dt_s)


cdef inline double deadband(double x, double half_width) noexcept nogil:
    """0 inside, the distance to the nearer edge outside."""
    if x > half_width:
        return x - half_width
    if x < -half_width:
        return x + half_width
    return 0.0


cdef inline double droop(double f_hz, double f_nom_hz, double db_hz, double r_pu, double p_rated_w) noexcept nogil:
    """P(f) of IEEE 1547-2018 clause 6.5.2.7: discharge + when the frequency is low; r_pu is per-unit frequency for per-unit power."""
    return -deadband(f_hz - f_nom_hz, db_hz) / (f_nom_hz * r_pu) * p_rated_w


cdef inline double volt_var(double v_pu, double db_pu, double full_pu, double q_max_var) noexcept nogil:
    """Q(V) of IEEE 1547-2018 clause 5.3.3: injects (+) when the voltage is low, q_max_var at full_pu from nominal."""
    return clamp(-deadband(v_pu - 1.0, db_pu) / (full_pu - db_pu), -1.0, 1.0) * q_max_var


cdef inline double decay_small(double z) noexcept nogil:
    """exp(-z), 0 <= z <= 1."""
    cdef double y = 1.0
    cdef int k
    for k in range(12, 0, -1):
        y = 1.0 + z / k * y
    return 1.0 / y


cdef inline double decay(double x) noexcept nogil:
    """exp(-x) for x >= 0, to 1e-13: Taylor at x/64, squared six times; 0 beyond 700."""
    cdef double z, y
    if not x > 0.0:
        return 1.0
    if x > 700.0:
        return 0.0
    z = x / 64.0
    if z > 1.0:
        # the series wants a small argument: split once more
        y = decay_small(z / 16.0)
        y = y * y
        y = y * y
        y = y * y
        y = y * y
    else:
        y = decay_small(z)
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    return y * y


cdef inline double lag(double x, double target, double dt_s, double tau_s) noexcept nogil:
    """First-order approach of x to target, exact over dt_s."""
    if not tau_s > 0.0:
        return target
    return target + (x - target) * decay(dt_s / tau_s)


cdef inline double taper(double distance, double width) noexcept nogil:
    """1 at width and more inside a limit, falling to 0 at it; 0 beyond."""
    if not width > 0.0:
        return 1.0 if distance > 0.0 else 0.0
    return clamp(distance / width, 0.0, 1.0)


cdef inline double shave(double net_w, double ref_w) noexcept nogil:
    """Peak shaving in one line: the battery carries what the reference of grid import does not."""
    return net_w - ref_w


cdef inline double q_room(double s_va, double p_w) noexcept nogil:
    """Reactive power that apparent power leaves beside p_w (P priority)."""
    cdef double d = s_va * s_va - p_w * p_w
    return sqrt(d) if d > 0.0 else 0.0
