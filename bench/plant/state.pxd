"""The state of the virtual cabinet: parameters, physics, registers, wire, truth. One struct, no pointers into Python.

Everything is SI with the unit last in the name; every instant is int64 nanoseconds on the caller's clock
(CLOCK_MONOTONIC in real time, whatever the simulation counts in virtual time). All arrays are bounded: a plant that
runs for days never grows. Signs: grid import +, battery discharge +, as in _core/image.pxd. SunSpec registers carry
SunSpec's signs (see devices.pyx).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

# Bytes on the wire, on their way to the master; the LAST bit of buf is on the wire at t_ns. n = 0: the cabinet closes the TCP
# connection. Must not call back into the plant.
ctypedef void (*emit_fn)(void* ctx, int port, const uint8_t* buf, int n, int64_t t_ns) noexcept nogil

cdef enum:
    MAX_PORTS = 4
    MAX_DEVICES = 8
    MAX_FAULT_ACTS = 1024
    RX_BYTES = 512          # a Modbus RTU frame has at most 256 bytes; twice that shows a glued pair
    TX_BYTES = 300          # 256 and room for leading garbage
    TX_QUEUE = 8            # answers on their way per port; a late device and a chunked answer need more than one
    CMD_QUEUE = 16          # commands between detection and effect (dead time); oldest first
    SEG_RING = 128          # past pieces of the power trajectory, for meters that average over a window
    N_EVENTS = 4096         # truth: discrete events
    N_LATE = 65536          # truth: late wakes of the plant itself
    N_LOSS = 1001           # converter loss table: points from 0 to 1 pu
    N_OCV = 201
    N_RTEMP = 4
    N_RSOC = 11
    N_PORT_PARS = 9
    SEGMENTS = 16           # pieces of a TCP stream on their way to the server
    STREAM_BYTES = 1024     # ... and their bytes: three requests of the longest kind, and a master has one under way
    CAN_QUEUE = 64          # frames of all nodes that wait for the bus
    CAN_LINE = 64           # characters of an slcan line
    CAN_TEXT = 256          # answers of the adapter on their way to the master

# One parameter = one double in Plant.par; the key "pcs.tau_s" is P_pcs_tau_s. bench/plant/params.py holds default,
# range, unit, text and refuses to load when the two lists differ.
cpdef enum:
    P_battery_soc
    P_battery_energy_wh
    P_battery_temp_c
    P_battery_ambient_c
    P_battery_cooling_w_per_k
    P_pcs_s_rated_va
    P_pcs_dead_time_s
    P_pcs_tau_s
    P_pcs_slew_w_per_s
    P_pcs_own_ramp_w_per_s
    P_pcs_gain
    P_pcs_ignore_commands
    P_pcs_setpoint_renews
    P_pcs_start_s
    P_pcs_can_timeout_s
    P_pcs_initial_state
    P_pcs_initial_wset_w
    P_pcs_initial_rvrt_s
    P_pcs_hb_stuck
    P_pcs_fault
    P_pcs_fc23
    P_pcs_dead
    P_pcs_turnaround_s
    P_pcs_delay_answer_s
    P_pcs_corrupt_p
    P_meter_gain
    P_meter_offset_w
    P_meter_noise_w
    P_meter_mode
    P_meter_window_s
    P_meter_update_s
    P_meter_dead
    P_meter_turnaround_s
    P_meter_delay_answer_s
    P_meter_corrupt_p
    P_bms_charge_limit_w
    P_bms_discharge_limit_w
    P_bms_contactor_open
    P_bms_initial_connected
    P_bms_evt1
    P_bms_soc_offset
    P_bms_hb_stuck
    P_bms_can_mute
    P_bms_can_foxbms
    P_bms_dead
    P_bms_turnaround_s
    P_bms_delay_answer_s
    P_bms_corrupt_p
    P_grid_f_hz
    P_grid_v_ln_v
    P_grid_connected
    P_grid_f_sine_hz
    P_grid_f_sine_period_s
    P_load_scale
    P_load_extra_w
    P_load_q_var
    P_FIXED_COUNT

# The faults of one port: par[P_FIXED_COUNT + port * N_PORT_PARS + PP_x], key "a.bit_error_p" and so on.
cpdef enum:
    PP_bit_error_p
    PP_drop_p
    PP_garbage_p
    PP_truncate_p
    PP_echo
    PP_chunk
    PP_jitter_s
    PP_latency_s
    PP_cut

cdef enum:
    N_PARS = 92             # P_FIXED_COUNT + MAX_PORTS * N_PORT_PARS; checked when state is imported

cpdef enum:
    EV_FAULT_SET = 1        # value: index of the parameter
    EV_FAULT_CLEAR = 2
    EV_CONTACTOR_OPEN = 3   # value: Evt1 bits
    EV_CONTACTOR_CLOSE = 4
    EV_REVERSION = 5        # value: target after it, W
    EV_PCS_STATE = 6        # value: new 701.InvSt
    EV_GRID_LOST = 7
    EV_GRID_BACK = 8
    EV_COMMAND_DROPPED = 9  # the command queue was full
    EV_PARAM_SET = 10       # value: index of the parameter
    EV_HANG_UP = 11         # value: port whose TCP connection the cabinet has closed

cdef enum:
    KIND_METER = 0
    KIND_BMS = 1
    KIND_PCS = 2

# 701.InvSt
cdef enum:
    PCS_OFF = 0
    PCS_STARTING = 2
    PCS_RUNNING = 3
    PCS_THROTTLED = 4
    PCS_FAULT = 6
    PCS_STANDBY = 7


cdef struct Seg:
    # One piece of the AC power trajectory, valid from t_ns until the next piece. dp/dt = clamp((target - p) / tau,
    # +-slew), closed form.
    int64_t t_ns
    double p0_w, target_w, tau_s, slew_w_per_s
    double q_var
    double load_scale, load_extra_w
    int connected           # grid present

cdef struct Device:
    int kind, port, unit
    int base, n_regs        # address of regs[0]; count
    uint16_t* regs
    uint8_t* writable       # 1 where a master may write

cdef struct Tx:
    int64_t start_ns, emit_ns
    int n
    uint8_t buf[TX_BYTES]

cdef struct Port:
    int used                # 1 RTU or TCP, 2 CAN
    int tcp                 # a connection: no characters, no silence; rx, rx_n and what follows them are a line's alone
    int64_t hang_ns         # when the cabinet closes the connection; INT64_MAX: never
    int seg_n, arrived, stream_n
    int64_t seg_at_ns[SEGMENTS]
    int seg_len[SEGMENTS]
    uint8_t stream[STREAM_BYTES]
    int64_t char_ns, t35_ns
    int rx_n, rx_overrun
    int64_t rx_start_ns, rx_end_ns
    int64_t line_end_ns     # last bit of any traffic so far
    int tx_n
    Tx tx[TX_QUEUE]         # sorted by emit_ns
    uint8_t rx[RX_BYTES]
    # counters of the truth
    int64_t requests, bad_crc, silence_violations, faults_injected, exceptions
    int64_t no_device, tx_dropped, collisions, bytes_lost

cdef struct CanMessage:
    uint32_t id, key        # key: arbitration, the smaller wins
    int ext, rtr, n
    int node                # who sends it
    int64_t ready_ns        # not before
    uint8_t data[8]

cdef struct CanPort:
    int64_t bit_ns
    int open                # the adapter's channel
    int q_n
    CanMessage queue[CAN_QUEUE]     # in order of queueing
    CanMessage now          # on the wire
    int busy, destroyed
    int64_t end_ns, free_ns # its last bit; the bus may be used again
    int line_n, line_skip
    uint8_t line[CAN_LINE]
    int text_n
    int64_t text_ns
    uint8_t text[CAN_TEXT]
    int64_t bms_ns, feedback_ns, status_ns      # what the devices send next; INT64_MAX: they are not here
    int feedback_n, command_n, operate          # counters of the frames; last command's, -1: none
    int64_t frames, overflows, arbitrations_lost

cdef struct Command:
    int64_t t_ns            # effect
    int enabled
    double value_w, q_var
    int64_t log_i

cdef struct FaultAct:
    int64_t t_ns            # from start
    int par
    int restore             # 1: put back what the partner found
    int partner             # index of the setting act
    double value

cdef struct Pcs:
    int state               # OFF, STARTING, RUNNING, FAULT or STANDBY; THROTTLED is shown, never held
    int active              # a setpoint acts
    int throttled
    int sync_lost           # grid or DC went away while running
    double active_w, active_slew_w_per_s, active_q_var
    int64_t start_done_ns, rvrt_ns
    int64_t open_log_i      # command whose 90 % instant is still ahead
    int q_n
    Command queue[CMD_QUEUE]

cdef struct Battery:
    double soc, temp_c, i_a, v_v, p_dc_w, r_ohm, ocv_v
    double capacity_as, parallel, heat_j_per_k, rated_w
    double lim_charge_w, lim_discharge_w
    double over_for_s, over_limit_s
    int closed              # contactors
    uint32_t evt1
    double energy_out_wh, energy_in_wh      # AC
    double dc_out_j, dc_in_j, conv_loss_j, heat_j

cdef struct Load:
    int64_t n, cursor, lap, repeat_ns       # repeat_ns 0: ends with its last value
    int64_t* t_ns           # from start
    int64_t* edge_ns
    double* p_w
    int64_t logged_n        # steps of this lap already in the truth

cdef struct Truth:
    int64_t bin_cap, bin_n, sec_cap, sec_n, cmd_cap, cmd_n, step_cap, step_n, ev_n, late_n, late_total
    float* load_w
    float* grid_w
    float* batt_w
    float* soc
    float* temp_c
    float* over_s           # seconds over the battery's limits so far
    int64_t* cmd_end_ns
    double* cmd_value_w
    int64_t* cmd_effect_ns
    int64_t* cmd_t90_ns
    int64_t* step_ns
    double* step_w
    int64_t ev_ns[N_EVENTS]
    int ev_code[N_EVENTS]
    double ev_value[N_EVENTS]
    int64_t late_at_ns[N_LATE]
    int64_t late_by_ns[N_LATE]

cdef struct Plant:
    emit_fn emit
    void* emit_ctx
    int started
    int64_t t0_ns, now_ns
    uint64_t rng
    double par[N_PARS]
    int n_devices, pcs_dev, bms_dev          # -1: none
    Device dev[MAX_DEVICES]
    Port port[MAX_PORTS]
    CanPort can[MAX_PORTS]
    Pcs pcs
    Battery bat
    Load load
    # trajectory: seg[seg_n - 1 mod SEG_RING] is the present piece
    Seg seg[SEG_RING]
    int64_t seg_n
    # open 10 ms bin
    int64_t acc_ns, bin_end_ns
    double acc_load_j, acc_grid_j, acc_batt_j
    # meter latch
    int64_t latch_ns
    double latch[6]
    int latched
    # faults
    int n_acts, next_act
    FaultAct act[MAX_FAULT_ACTS]
    double act_saved[MAX_FAULT_ACTS]
    # tables
    double ocv_v[N_OCV]
    double r_ohm[2][N_RTEMP][N_RSOC]        # 0 charge, 1 discharge
    double r_temp_c[N_RTEMP]
    double loss_pu[2][N_LOSS]
    Truth truth
