"""The event loop of the virtual cabinet, and its Python face.

Events: ends of 10 ms bins, scheduled faults, meter latches, the converter's own instants (effect of a command, start,
reversion), and per port the detection of a frame and the end of an answer. They are handled one at a time in order of
time; at one instant in the order just given, so that a run repeats bit for bit. plant_next scans some twenty
candidates: cheaper than keeping a heap for so few.
"""

from libc.math cimport fmax
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free

from bench.plant.can cimport can_init, can_next, can_run, can_rx
from bench.plant.devices cimport bms_refresh, meter_latch
from bench.plant.pcs cimport pcs_init, pcs_next, pcs_refresh, pcs_run
from bench.plant.physics cimport (
    BIN_NS,
    advance,
    batt_w,
    battery_init,
    close_bin,
    grid_w,
    load_w,
    log_event,
    log_step,
)
from bench.plant.state cimport (
    EV_FAULT_CLEAR,
    EV_FAULT_SET,
    EV_GRID_BACK,
    EV_GRID_LOST,
    EV_PARAM_SET,
    KIND_BMS,
    KIND_PCS,
    MAX_DEVICES,
    MAX_FAULT_ACTS,
    MAX_PORTS,
    N_LATE,
    N_LOSS,
    N_OCV,
    N_PARS,
    N_RSOC,
    N_RTEMP,
    N_PORT_PARS,
    P_FIXED_COUNT,
    P_battery_soc,
    P_battery_temp_c,
    P_bms_contactor_open,
    P_grid_connected,
    P_grid_f_hz,
    P_grid_f_sine_period_s,
    P_load_extra_w,
    P_load_q_var,
    P_load_scale,
    P_meter_update_s,
    P_pcs_corrupt_p,
    P_pcs_s_rated_va,
    PP_cut,
    Device,
    FaultAct,
    Plant,
    Port,
    Truth,
)
from bench.plant.tcp cimport tcp_init, tcp_next, tcp_run, tcp_rx
from bench.plant.wire cimport port_init, port_next, port_run, port_rx

import numpy as np

from bench.plant import config as _config
from bench.plant import maps as _maps
from bench.plant import params as _params
from bench.plant import tables as _tables

TRUTH_CAP_S = 6 * 3600      # bins and commands of a plant that runs for ever stop being logged here; truth says so


# -- the C face

cdef void plant_rx(Plant* p, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil:
    """Bytes a master begins to send: first bit at t_ns. Run the plant to t_ns before."""
    if not p.started or not 0 <= port < MAX_PORTS:
        return
    if p.port[port].used == 2:
        can_rx(p, port, buf, n, t_ns)
    elif p.port[port].tcp:
        tcp_rx(p, port, buf, n, t_ns)
    else:
        port_rx(p, port, buf, n, t_ns)


cdef inline int64_t _port_next(Plant* p, int port) noexcept nogil:
    if p.port[port].used == 2:
        return can_next(p, port)
    return tcp_next(p, port) if p.port[port].tcp else port_next(p, port)


cdef int64_t plant_next(Plant* p) noexcept nogil:
    """Time of the next event; INT64_MAX before start."""
    cdef int64_t t, u
    cdef int i
    if not p.started:
        return INT64_MAX
    t = p.bin_end_ns
    if p.next_act < p.n_acts and p.t0_ns + p.act[p.next_act].t_ns < t:
        t = p.t0_ns + p.act[p.next_act].t_ns
    if p.latch_ns < t:
        t = p.latch_ns
    u = pcs_next(p)
    if u < t:
        t = u
    for i in range(MAX_PORTS):
        if p.port[i].used:
            u = _port_next(p, i)
            if u < t:
                t = u
    return t


cdef void plant_run(Plant* p, int64_t t_ns) noexcept nogil:
    """Handle every event due up to t_ns, in order, each at its nominal instant however late the call comes."""
    cdef int64_t t
    if not p.started:
        return
    while True:
        t = plant_next(p)
        if t > t_ns:
            break
        if t > p.now_ns:
            p.now_ns = t
        _one_event(p, t)
    if t_ns > p.now_ns:
        p.now_ns = t_ns


cdef void _one_event(Plant* p, int64_t t) noexcept nogil:
    cdef int i, closed
    if p.bin_end_ns <= t:
        closed = p.bat.closed
        close_bin(p)
        if closed and not p.bat.closed:
            pcs_refresh(p, t)
        return
    if p.next_act < p.n_acts and p.t0_ns + p.act[p.next_act].t_ns <= t:
        _fault(p, t)
        return
    if p.latch_ns <= t:
        meter_latch(p, t)
        p.latch_ns += <int64_t>(fmax(p.par[P_meter_update_s], 1e-4) * 1e9)      # bounded: 10 kHz
        return
    if pcs_next(p) <= t:
        pcs_run(p, t)
        return
    for i in range(MAX_PORTS):
        if p.port[i].used and _port_next(p, i) <= t:
            if p.port[i].used == 2:
                can_run(p, i, t)
            elif p.port[i].tcp:
                tcp_run(p, i, t)
            else:
                port_run(p, i, t)
            return


cdef void _fault(Plant* p, int64_t t) noexcept nogil:
    cdef FaultAct* a = &p.act[p.next_act]
    if a.restore:
        log_event(p, t, EV_FAULT_CLEAR, a.par)
        _apply(p, a.par, p.act_saved[a.partner], t)
    else:
        p.act_saved[p.next_act] = p.par[a.par]
        log_event(p, t, EV_FAULT_SET, a.par)
        _apply(p, a.par, a.value, t)
    p.next_act += 1


cdef void plant_set(Plant* p, int index, double value, int64_t t_ns) noexcept nogil:
    """A parameter changes at t_ns (>= everything handled so far)."""
    if p.started:
        log_event(p, t_ns, EV_PARAM_SET, index)
        _apply(p, index, value, t_ns)
    else:
        p.par[index] = value


cdef void _apply(Plant* p, int index, double value, int64_t t) noexcept nogil:
    cdef double before_w = load_w(p, t), was = p.par[index]
    p.par[index] = value
    if index == P_battery_soc:
        p.bat.soc = value
    elif index == P_battery_temp_c:
        p.bat.temp_c = value
    elif index == P_bms_contactor_open:
        bms_refresh(p, t)
    elif index == P_meter_update_s:
        p.latch_ns = t if value > 0.0 else INT64_MAX
    elif index == P_load_scale or index == P_load_extra_w:
        pcs_refresh(p, t)
        log_step(p, t, load_w(p, t) - before_w)
    elif index == P_grid_connected:
        if was != value:
            log_event(p, t, EV_GRID_BACK if value != 0.0 else EV_GRID_LOST, 0)
        pcs_refresh(p, t)
    elif P_pcs_s_rated_va <= index <= P_pcs_corrupt_p:
        pcs_refresh(p, t)
    elif index >= P_FIXED_COUNT and (index - P_FIXED_COUNT) % N_PORT_PARS == PP_cut and value != 0.0:
        p.port[(index - P_FIXED_COUNT) // N_PORT_PARS].hang_ns = t


cdef void plant_late(Plant* p, int64_t t_ns, int64_t late_ns) noexcept nogil:
    """Enter a late wake of the plant's own timer into the truth (real time only)."""
    cdef Truth* tr = &p.truth
    tr.late_total += 1
    if tr.late_n < N_LATE:
        tr.late_at_ns[tr.late_n] = t_ns
        tr.late_by_ns[tr.late_n] = late_ns
        tr.late_n += 1


cdef void _collect(void* ctx, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil:
    """Default emit: into the Python list that VirtualPlant.run returns."""
    with gil:
        (<list>ctx).append((port, (<const char*>buf)[:n], t_ns))


# -- the Python face

cdef class VirtualPlant:
    """The cabinet, built from a config (dict as in bench.plant.config, or a checked Config).

    >>> v = VirtualPlant(bench.plant.config.builtin()); v.start(0); v.rx("a", request, 0); answers = v.run(10_000_000)

    Raises bench.plant.config.ConfigError with every problem at once, bench.plant.load.TraceError for a bad trace.
    """

    def __cinit__(self, config=None):
        self.p = <Plant*>calloc(1, sizeof(Plant))
        if self.p == NULL:
            raise MemoryError("plant")
        self._keep = []
        self._out = []
        self._arrays = {}
        self.ports = {}

    def __dealloc__(self):
        free(self.p)

    def __init__(self, config=None):
        cfg = config
        if not isinstance(cfg, _config.Config):
            cfg = _config.parse(_config.builtin() if config is None else config)
        self.config = cfg
        cdef int i
        cdef double x
        for i, x in enumerate(cfg.par):
            self.p.par[i] = x
        for i, (name, port) in enumerate(cfg.ports.items()):
            self.ports[name] = _params.PORT_NAMES.index(name)
        self._load(cfg.load)
        self._load_tables()
        self._allocate_truth(cfg.duration_s)
        self._faults(cfg.faults)
        self.p.emit = _collect
        self.p.emit_ctx = <void*>self._out

    def _load(self, load):
        """Hand the load's arrays to the plant (kept alive here)."""
        cdef int64_t[::1] t = np.ascontiguousarray(load.t_ns, np.int64)
        cdef int64_t[::1] e = np.ascontiguousarray(load.edge_ns, np.int64)
        cdef double[::1] w = np.ascontiguousarray(load.p_w, np.float64)
        self._keep += [t, e, w]
        self.p.load.n = t.shape[0]
        self.p.load.t_ns = &t[0]
        self.p.load.edge_ns = &e[0]
        self.p.load.p_w = &w[0]
        self.p.load.repeat_ns = load.repeat_ns

    def _load_tables(self):
        ocv, loss = _tables.cell_ocv(), _tables.converter_loss(N_LOSS)
        temps, r = _tables.cell_resistance()
        cdef int i, j, k
        for i in range(N_OCV):
            self.p.ocv_v[i] = ocv[i]
        for j in range(N_RTEMP):
            self.p.r_temp_c[j] = temps[j]
        for i in range(2):
            for j in range(N_RTEMP):
                for k in range(N_RSOC):
                    self.p.r_ohm[i][j][k] = r[i, j, k]
            for k in range(N_LOSS):
                self.p.loss_pu[i][k] = loss[i, k]

    cdef void* _zeros(self, str name, int64_t n, object dtype):
        """A truth array; the kernel gives its pages when they are first touched."""
        a = np.zeros(max(n, 1), dtype)
        self._arrays[name] = a
        cdef size_t address = a.ctypes.data
        return <void*>address

    def _allocate_truth(self, duration_s):
        cdef Truth* tr = &self.p.truth
        cdef int64_t s = <int64_t>min(duration_s or TRUTH_CAP_S, TRUTH_CAP_S) + 2
        tr.bin_cap, tr.sec_cap, tr.cmd_cap, tr.step_cap = s * 100, s, s * 120 + 1000, s * 50 + 1000
        tr.load_w = <float*>self._zeros("load_w", tr.bin_cap, np.float32)
        tr.grid_w = <float*>self._zeros("grid_w", tr.bin_cap, np.float32)
        tr.batt_w = <float*>self._zeros("batt_w", tr.bin_cap, np.float32)
        tr.soc = <float*>self._zeros("soc", s, np.float32)
        tr.temp_c = <float*>self._zeros("temp_c", s, np.float32)
        tr.over_s = <float*>self._zeros("over_s", s, np.float32)
        tr.cmd_end_ns = <int64_t*>self._zeros("cmd_t_end_ns", tr.cmd_cap, np.int64)
        tr.cmd_value_w = <double*>self._zeros("cmd_value_w", tr.cmd_cap, np.float64)
        tr.cmd_effect_ns = <int64_t*>self._zeros("cmd_t_effect_ns", tr.cmd_cap, np.int64)
        tr.cmd_t90_ns = <int64_t*>self._zeros("cmd_t90_ns", tr.cmd_cap, np.int64)
        tr.step_ns = <int64_t*>self._zeros("step_t_ns", tr.step_cap, np.int64)
        tr.step_w = <double*>self._zeros("step_delta_w", tr.step_cap, np.float64)

    def _faults(self, faults):
        """Fault schedule -> acts sorted by time; a fault with for_s gets a partner that puts the value back."""
        acts = []
        for i, f in enumerate(faults):
            acts.append((round(f.at_s * 1e9), 2 * i, _params.INDEX[f.key], False, i, f.value))
            if f.for_s is not None:
                acts.append((round((f.at_s + f.for_s) * 1e9), 2 * i + 1, _params.INDEX[f.key], True, i, 0.0))
        acts.sort()
        where = {act[4]: n for n, act in enumerate(acts) if not act[3]}
        self.p.n_acts = len(acts)
        for n, (t_ns, _, par, restore, i, value) in enumerate(acts):
            self.p.act[n].t_ns = t_ns
            self.p.act[n].par = par
            self.p.act[n].restore = restore
            self.p.act[n].partner = where[i]
            self.p.act[n].value = value

    def _devices(self):
        """Fresh register images; which kinds there are."""
        cdef Plant* p = self.p
        cdef uint16_t[::1] regs
        cdef uint8_t[::1] mask
        cdef Device* d
        p.pcs_dev = p.bms_dev = -1
        p.n_devices = 0
        for dev in self.config.devices:
            base = _maps.SUNSPEC_BASE
            if dev.kind == "meter":
                base, image = 0, (np.zeros(_maps.METER_REGS, np.uint16), np.zeros(_maps.METER_REGS, np.uint8))
            elif dev.kind == "pcs":
                image = _maps.pcs_image(dev.unit, p.par[P_pcs_s_rated_va])
            else:
                image = _maps.bms_image(dev.unit, p.bat.rated_w, p.bat.capacity_as / 3600.0)
            regs, mask = image
            self._keep += [regs, mask]
            d = &p.dev[p.n_devices]
            d.kind = ("meter", "bms", "pcs").index(dev.kind)
            d.port, d.unit, d.base, d.n_regs = self.ports[dev.port], dev.unit, base, regs.shape[0]
            d.regs = &regs[0]
            d.writable = &mask[0]
            if d.kind == KIND_PCS:
                p.pcs_dev = p.n_devices
            if d.kind == KIND_BMS:
                p.bms_dev = p.n_devices
            p.n_devices += 1

    def start(self, t0_ns):
        """Begin at t0_ns: bins, load, heartbeats and fault schedule count from here. Once per plant."""
        cdef Plant* p = self.p
        if p.started:
            raise RuntimeError("the plant has started already; build a new one for a new run")
        p.t0_ns = p.now_ns = p.acc_ns = t0_ns
        p.bin_end_ns = p.t0_ns + BIN_NS
        # splitmix64 of the seed: neighbouring seeds must not give neighbouring dice, and 0 is no state for xorshift
        z = (int(self.config.seed) * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & (2**64 - 1)
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        p.rng = (z ^ z >> 27) or 1
        p.seg_n = 1             # one piece at 0 W stands before the converter's first word
        p.seg[0].t_ns = t0_ns
        p.seg[0].connected = p.par[P_grid_connected] != 0.0
        battery_init(p)
        self._devices()
        for name, port in self.config.ports.items():
            if port.bitrate:
                can_init(p, self.ports[name], port.bitrate)
            elif port.tcp:
                tcp_init(p, self.ports[name])
            else:
                port_init(p, self.ports[name], port.baud, port.char_bits)
        p.latch_ns = p.t0_ns if p.par[P_meter_update_s] > 0.0 else INT64_MAX
        pcs_init(p)
        p.started = 1

    def set(self, str key, value, t_ns=None):
        """Change a setting, at the last instant handled or at t_ns (events up to then are handled first). Raises
        ParamError.
        """
        cdef double x = _params.check(key, value, running=self.p.started)
        if t_ns is not None and self.p.started:
            plant_run(self.p, t_ns)
        plant_set(self.p, _params.INDEX[key], x, self.p.now_ns)

    def get(self, str key):
        """Present value of a setting."""
        _params.check(key, _params.PARAMS[key].default if key in _params.PARAMS else 0)
        return self.p.par[<int>_params.INDEX[key]]

    def rx(self, port, bytes data, t_ns):
        """Bytes that a master begins to send on a port (name or number) at t_ns."""
        plant_run(self.p, t_ns)
        plant_rx(self.p, self.ports[port] if isinstance(port, str) else port, data, len(data), t_ns)

    def next(self):
        """Time of the next event, ns."""
        return plant_next(self.p)

    def run(self, t_ns):
        """Handle all events up to t_ns; returns what was emitted meanwhile: [(port number, bytes, t_ns)], unless emit
        was replaced. No bytes: the cabinet has closed that TCP connection.
        """
        plant_run(self.p, t_ns)
        out = list(self._out)
        self._out.clear()
        return out

    def run_fast(self, int64_t t_ns):
        """run() without the GIL and without collecting: only for a plant whose emit was replaced or that nobody talks
        to.
        """
        with nogil:
            plant_run(self.p, t_ns)

    def now(self):
        """State at the last instant handled: watts, signs as in _core/image.pxd."""
        cdef Plant* p = self.p
        t = p.now_ns
        return {
            "t_ns": t, "load_w": load_w(p, t), "batt_w": batt_w(p, t), "grid_w": grid_w(p, t), "pcs_state": p.pcs.state,
            "soc": p.bat.soc, "temp_c": p.bat.temp_c, "closed": bool(p.bat.closed),
            "dc_w": p.bat.p_dc_w, "v_v": p.bat.v_v, "i_a": p.bat.i_a, "capacity_as": p.bat.capacity_as,
            "dc_out_j": p.bat.dc_out_j, "conv_loss_j": p.bat.conv_loss_j, "heat_j": p.bat.heat_j,
        }

    def counters(self):
        """Per port: dict of counters."""
        cdef Port* o
        result = {}
        for name, i in self.ports.items():
            o = &self.p.port[<int>i]
            result[name] = {
                "requests": o.requests, "bad_crc": o.bad_crc, "silence_violations": o.silence_violations,
                "faults_injected": o.faults_injected, "exceptions": o.exceptions, "no_device": o.no_device,
                "tx_dropped": o.tx_dropped, "collisions": o.collisions, "bytes_lost": o.bytes_lost,
            }
        return result

    def truth(self):
        """What really happened: dict of numpy arrays. All times in ns on the plant's clock, powers in W, _core/image.pxd's
        signs.

        load_w, grid_w, batt_w [n] (10 ms means from t0_ns); soc, temp_c, over_s [s] (at the end of each second;
        over_s: seconds over the battery's true limits so far); step_t_ns, step_delta_w; cmd_t_end_ns, cmd_value_w,
        cmd_t_effect_ns, cmd_t90_ns (-1: never); late_t_ns, late_ns; event_t_ns, event_code, event_value with
        event_names; port_names, counter_names, counters [port, counter]; t0_ns, now_ns, bin_ns, soc_start, truncated
        (1: a log was full, see TRUTH_CAP_S), late_total.
        """
        cdef Truth* tr = &self.p.truth
        cdef int64_t n = tr.ev_n, m = tr.late_n, i
        lengths = dict.fromkeys(("load_w", "grid_w", "batt_w"), tr.bin_n)
        lengths |= dict.fromkeys(("soc", "temp_c", "over_s"), tr.sec_n)
        lengths |= dict.fromkeys(("cmd_t_end_ns", "cmd_value_w", "cmd_t_effect_ns", "cmd_t90_ns"), tr.cmd_n)
        lengths |= dict.fromkeys(("step_t_ns", "step_delta_w"), tr.step_n)
        out = {name: self._arrays[name][:k].copy() for name, k in lengths.items()}
        out["event_t_ns"] = np.array([tr.ev_ns[i] for i in range(n)], np.int64)
        out["event_code"] = np.array([tr.ev_code[i] for i in range(n)], np.int32)
        out["event_value"] = np.array([tr.ev_value[i] for i in range(n)], np.float64)
        out["event_names"] = np.array([_params.EVENT_NAMES.get(k, "?") for k in range(max(_params.EVENT_NAMES) + 1)])
        out["late_t_ns"] = np.array([tr.late_at_ns[i] for i in range(m)], np.int64)
        out["late_ns"] = np.array([tr.late_by_ns[i] for i in range(m)], np.int64)
        counters = self.counters()
        out["port_names"] = np.array(list(counters))
        out["counter_names"] = np.array(list(next(iter(counters.values()), {})))
        out["counters"] = np.array([list(c.values()) for c in counters.values()], np.int64)
        full = tr.bin_n >= tr.bin_cap or tr.cmd_n >= tr.cmd_cap or tr.step_n >= tr.step_cap
        scalars = {"t0_ns": self.p.t0_ns, "now_ns": self.p.now_ns, "bin_ns": BIN_NS}
        scalars |= {"late_total": tr.late_total, "truncated": int(full)}
        out |= {k: np.int64(v) for k, v in scalars.items()}
        out["soc_start"] = np.float64(self.config.par[_params.INDEX["battery.soc"]])
        return out

    def write_truth(self, path):
        """truth() as an .npz, written beside and moved into place: a reader never sees half a file."""
        import os

        tmp = f"{path}.tmp.npz"
        np.savez(tmp, **self.truth())
        os.replace(tmp, path)
