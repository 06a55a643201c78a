# THE CONTRACT. Everything else in the house is a room around this hall.
#
# SI units, names as pandapower spells them, unit last. Signs: grid import +, battery discharge + (at the AC terminals), PV and genset
# production +, q_var + injects. Signs, units and scales are applied once, where profiles compile; from here on nothing converts.
#
#   load_w = grid_p_w + batt_p_w + pv_p_w + gen_p_w
#
# Every value is a double (integers and bit fields up to 32 bits are exact in it); NaN means "not measured". Times are int64 nanoseconds
# of one clock: CLOCK_MONOTONIC in real time, the seeded clock in virtual time. 0 means never.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cpdef enum:
    MAX_BUSES = 8
    MAX_DEVICES = 32
    RING_TICKS = 6000           # 60 s of ticks
    HIST_BINS = 2048            # latency histograms: 1 us a bin, the last bin holds what is beyond
    TURN_BINS = 256             # turnarounds: 0.1 ms a bin, the last bin holds what is beyond
    SLOTS = 3                   # operator > schedule > planner
    SITE_REVISIONS = 4          # of Site kept in the image: who reads it once a second can name the one of every tick

cpdef enum:                      # Group.quality
    Q_NONE = 0                  # never answered
    Q_GOOD = 1
    Q_BAD = 2                   # answered, but a field that is needed was a sentinel, NaN or out of its range

cpdef enum:                      # Outputs.mode
    MODE_FAULT = 0              # waits for a reset edge, or for the automatic one
    MODE_STANDBY = 1            # power 0; the start sequence runs here (Outputs.start_step)
    MODE_GRID = 2
    MODE_ISLAND = 3
    MODE_RESYNC = 4
    MODE_TRIP = 5               # grid outside its window: power 0 until it has been good for the enter-service delay
    MODE_STOP = 6               # SIGTERM or parked: ramps to 0, PCS to standby; only a park that is released starts again

cpdef enum:                      # Outputs.start_step
    START_DEVICES = 0           # identity and scale factors verified, every fast group fresh
    START_REVERSION = 1         # WSetRvrt, WSetEnaRvrt, WSetRvrtTms written and read back
    START_BMS = 2               # contactors closed, limits above 0
    START_HEARTBEAT = 3         # the PCS heartbeat moves for 3 s (one change where a live PCS is adopted)
    START_OPERATE = 4           # operate asked, waiting for RUNNING
    START_DONE = 5

cpdef enum:                      # Setpoint.kind
    SP_NONE = 0
    SP_HOLD = 1                 # battery at value_w, whatever the load does
    SP_BASE = 2                 # value_w is added to the target of grid import

cpdef enum:                      # Setpoint slots, highest rank first
    SLOT_OPERATOR = 0
    SLOT_SCHEDULE = 1
    SLOT_PLANNER = 2

cpdef enum:                      # Outputs.op_request: what the PCS (or BMS) is asked to do; hal maps it to registers
    OP_NONE = 0
    OP_START = 1
    OP_STOP = 2


cpdef enum:                      # Outputs.limits_active: why power is what it is; the words stand in words.py
    LIM_RAMP = 1 << 0
    LIM_IMPORT = 1 << 1
    LIM_EXPORT = 1 << 2
    LIM_BILLING = 1 << 3
    LIM_FEEDER = 1 << 4
    LIM_SOC_MIN = 1 << 5
    LIM_SOC_MAX = 1 << 6
    LIM_TEMP = 1 << 7
    LIM_PCS_S = 1 << 8
    LIM_BMS_CHARGE = 1 << 9
    LIM_BMS_DISCHARGE = 1 << 10
    LIM_BATT_V = 1 << 11
    LIM_SLEW = 1 << 12
    LIM_METER_STALE = 1 << 13
    LIM_BMS_STALE = 1 << 14
    LIM_HOLD = 1 << 15
    LIM_LEASE = 1 << 16
    LIM_FILTER = 1 << 17
    LIM_DROOP = 1 << 18
    LIM_MODE = 1 << 19
    LIM_SITE_P = 1 << 20
    LIM_NOT_HELD = 1 << 21
    LIM_OPERATOR = 1 << 22
    LIM_PCS_DEAF = 1 << 23

cpdef enum:                      # Limits.flags
    LIMITS_OPERATOR = 1         # an operator's live limit is tighter than those of site and supervisor

cpdef enum:                      # Outputs.alarms: what each means, and what follows from it, stands in faults.py
    ALM_METER_LOST = 1 << 0
    ALM_METER_FROZEN = 1 << 1
    ALM_PCS_LOST = 1 << 2
    ALM_PCS_FAULT = 1 << 3
    ALM_PCS_NOT_FOLLOWING = 1 << 4
    ALM_BMS_LOST = 1 << 5
    ALM_BMS_FAULT = 1 << 6
    ALM_IDENTITY = 1 << 7
    ALM_GRID_OUTSIDE = 1 << 8
    ALM_PCS_LOCAL = 1 << 9
    ALM_REVERSION = 1 << 10
    ALM_METER_SIGN = 1 << 11
    ALM_INTERNAL = 1 << 12


# ---------------------------------------------------------------- inputs: one group a source, each with its own age and quality

ctypedef struct Group:
    int64_t t_ns                # the instant the values stand for
    int64_t rx_ns               # when the last good answer was complete
    uint32_t count              # good answers so far
    uint32_t quality            # Q_*

ctypedef struct Meter:          # at the PCC, fast
    Group g
    double grid_p_w
    double q_var
    double v1_v                 # line to neutral
    double v2_v
    double v3_v
    double f_hz

ctypedef struct Pcs:            # 701: what the converter says it does
    Group g
    double batt_p_w
    double pcs_q_var
    double pcs_s_va
    double pcs_state            # SunSpec 701.InvSt numbering: 0 OFF .. 3 RUNNING, 4 THROTTLED, 6 FAULT, 7 STANDBY
    double pcs_conn             # 1 connected
    double pcs_alarm            # bit field
    double pcs_der_mode         # bit 0 grid following, bit 1 grid forming
    double pcs_v_v
    double pcs_f_hz

ctypedef struct PcsControl:     # 704 read back
    Group g
    double wset_ena
    double wset_w
    double wset_rvrt_w
    double wset_rvrt_ena
    double wset_rvrt_s
    double wset_rvrt_rem_s

ctypedef struct PcsLife:        # 715
    Group g
    double pcs_local            # 1: a person holds it locally
    double pcs_heartbeat

ctypedef struct Bms:            # state
    Group g
    double soc                  # 0..1
    double soh                  # 0..1
    double bms_state            # SunSpec 802.State numbering: 3 connected, 4 standby, 99 fault
    double bms_events           # bit field
    double bms_heartbeat

ctypedef struct BmsLimits:
    Group g
    double batt_v               # under load
    double batt_i_a             # discharge +
    double batt_i_charge_max_a
    double batt_i_discharge_max_a
    double batt_p_charge_max_w  # magnitudes, NaN where the BMS gives none
    double batt_p_discharge_max_w

ctypedef struct BmsTemp:
    Group g
    double batt_temp_max_c
    double batt_temp_min_c

ctypedef struct Others:         # other sources at the PCC; NaN where the site has none
    Group g
    double pv_p_w
    double gen_p_w

ctypedef struct Setpoint:       # one ranked slot, as the engine accepted it
    int64_t lease_until_ns
    int64_t id                  # of the command, for the audit trail
    double value_w
    int32_t kind                # SP_*
    int32_t pad

ctypedef struct Limits:         # what may move at run time; leased by the supervisor, bounded by Site
    int64_t lease_until_ns
    double import_limit_w
    double export_limit_w
    double ramp_up_w_per_s      # of grid import
    double ramp_down_w_per_s
    double p_charge_max_w
    double p_discharge_max_w
    double soc_min
    double soc_max
    double soc_target
    uint64_t flags              # LIMITS_*

ctypedef struct Inputs:
    int64_t tick
    int64_t t_ns                # the tick's nominal instant
    int64_t step_t_ns           # when the kernel was called
    int64_t command_t_ns        # when the command of this step will have left the wire (its frame's last bit), by the plan
    double billing_phase_s      # seconds since the billing window began; NaN: no window
    int32_t verified            # 1: every needed device's identity and scale factors equal the compiled ones
    int32_t stop                # 1: ramp to 0 and stay; 2: 0 now
    int32_t reset               # edge counter of fault resets
    uint32_t latched            # ALM_* of a FAULT that waited for a person when control was started again; 0 from the second step on
    int32_t park                # 1: a person wants the battery at 0 W and the PCS in standby until further notice
    int32_t site_rev            # revision of the Site that this step runs with
    int32_t pcs_deaf            # 1: the last command did not get through to the PCS, or nobody knows (not sent, refused, not acknowledged)
    int32_t pad
    Meter meter
    Pcs pcs
    PcsControl pcs_ctl
    PcsLife pcs_life
    Bms bms
    BmsLimits bms_lim
    BmsTemp bms_temp
    Others others
    Setpoint slot[SLOTS]


# ---------------------------------------------------------------- from the site file; moves only as a whole (SiteSlot)

ctypedef struct Site:
    double f_nom_hz
    double v_nom_v              # line to neutral
    double feeder_w             # PCC breaker rating
    double import_limit_w
    double export_limit_w
    double ramp_up_w_per_s
    double ramp_down_w_per_s
    double billing_window_s     # 0: none
    double enter_service_delay_s
    double s_rated_va
    double pcs_p_max_w
    double pcs_dead_s           # from the end of the command frame: detection + dead time
    double pcs_tau_s
    double pcs_rvrt_s
    double cmd_slew_w_per_s     # inf: none
    double energy_wh
    double p_charge_max_w
    double p_discharge_max_w
    double soc_min
    double soc_max
    double soc_target
    double soc_time_s           # the SoC term closes the gap with this time constant
    double mean_min_s           # horizon of the slow mean
    double mean_max_s
    double batt_eta             # one way, DC to AC
    double batt_v_min_v         # taper at the voltage limits
    double batt_v_max_v
    double temp_min_c
    double temp_max_c
    double temp_taper_c         # power falls to 0 over this many kelvin inside the limits
    double droop_db_hz
    double droop_r              # per unit frequency for per unit power; 0: droop off
    double droop_tr_s           # open-loop response time (to 90 %)
    double volt_db_pu           # Q(V): deadband half width
    double volt_full_pu         # deviation at which Q is q_max
    double q_max_var            # 0: off
    double volt_tr_s
    double f_min_hz             # outside for trip_s: TRIP
    double f_max_hz
    double v_min_pu
    double v_max_pu
    double trip_s
    double meter_hold_s         # older: power goes to 0
    double meter_lost_s         # older: FAULT
    double frozen_s             # all meter values bit-identical for so long: frozen; 0: off
    double bms_lost_s
    double pcs_lost_s
    double follow_w             # PCS readback off the model by more ...
    double follow_s             # ... for so long: FAULT
    double align_full_s         # full bandwidth up to this alignment error
    int32_t has_pcs_ctl         # which groups the site's devices give
    int32_t has_pcs_life
    int32_t has_bms
    int32_t has_bms_limits
    int32_t has_bms_temp
    int32_t has_others


# ---------------------------------------------------------------- what the kernel remembers from tick to tick

cpdef enum:
    MODEL_QUEUE = 64            # commands on their way to the terminals: dead time up to 640 ms
    RING_LAGS = 6               # ticks after which a battery move that was taken for load comes back

ctypedef struct State:
    int64_t last_t_ns           # the previous tick's instant
    int64_t mode_since_ns
    int64_t clean_since_ns      # the causes of a fault are gone since
    int64_t stop_since_ns
    int64_t step_since_ns
    int64_t model_t_ns          # the PCS model on the meter's clock stands at this instant
    int64_t rb_t_ns             # and the same model on the readback's clock at this one
    int64_t good_since_ns       # grid inside its window since
    int64_t bad_since_ns        # grid outside since (0: inside)
    int64_t deaf_since_ns       # no command has got through since (0: the last one has)
    int64_t follow_since_ns
    int64_t frozen_since_ns
    int64_t hb_t_ns             # last change of the PCS heartbeat
    int64_t hb_first_ns
    int64_t reset_t_ns[3]       # automatic resets of the last hour
    int64_t q_t_ns[MODEL_QUEUE] # when each queued command takes effect
    double q_w[MODEL_QUEUE]
    double model_target_w
    double model_p_w            # PCS power by the model, at the meter's instant
    double rb_target_w
    double rb_p_w               # and at the readback's
    double rb_err_w             # slow mean of readback - model
    double rb_abs_w             # slow mean of |readback - model|
    double align_num            # sums of the on-line alignment estimate
    double align_den
    double align_s              # alignment error of the PCS model against the readback
    double ring_s               # alignment error that the loop's own ringing shows; 0: it does not ring
    double ring_e[RING_LAGS]    # latest changes of the reconstructed load, newest first
    double ring_load_w
    double ring_var             # their mean square, and what of it comes back with the other sign so many ticks later
    double ring_cov[RING_LAGS]
    double load_w
    double stop_s               # how long the ramp to 0 takes
    double mean_w
    double horizon_s
    double ref_w
    double cmd_w
    double droop_w
    double volt_var
    double billing_wh
    double billing_phase_s
    double billing_limit_w      # the limit that the window is counted against
    double last_grid_w
    double last_meter[6]
    double sign_m_w             # sums of the block in progress: meter and battery, the sign check's
    double sign_p_w
    double sign_last_m_w        # means of the block before
    double sign_last_p_w
    double sign_num             # d(grid) * d(battery) and d(battery)^2, block by block
    double sign_den
    double sign_tick_num        # and sample by sample
    double sign_tick_den
    double sign_prev_m_w
    double sign_prev_p_w
    int64_t pcs_good_ns         # when the PCS, the BMS and its limits were last good: one bad answer is not a lost device
    int64_t bms_good_ns
    int64_t bms_lim_good_ns
    double last_hb
    double not_held_s           # ramp limit not held, seconds so far
    int64_t last_meter_t_ns
    uint32_t last_meter_count
    uint32_t last_pcs_count
    uint32_t q_n                # commands pushed so far; the last MODEL_QUEUE of them stand in q_*
    uint32_t model_at           # how many of them the model has taken
    uint32_t rb_at
    uint32_t ring_calm          # ticks without ringing, and with it
    uint32_t ring_hot
    uint32_t sign_n             # samples in the block; blocks since GRID
    uint32_t sign_blocks
    int32_t mode
    int32_t start_step
    int32_t reset_seen
    int32_t tripped             # a TRIP since the last GRID: the enter-service delay counts, whatever the converter does
    uint32_t alarms             # latched until reset
    int32_t adopt               # 1: the PCS was live when we came
    int32_t was_clean           # GRID had been held without a fault: an automatic reset is allowed
    int32_t stale               # the meter was stale at the previous tick
    int32_t parked              # STOP was entered to park, and nobody has asked to stop since
    uint32_t proven             # ticks in a row that passed every check


# ---------------------------------------------------------------- outputs

ctypedef struct Outputs:
    double p_cmd_w              # battery AC power, discharge +
    double q_cmd_var
    double load_w               # reconstructed
    double mean_w               # its slow mean
    double target_w
    double ref_w                # reference of grid import
    double grid_p_w             # as judged
    double batt_p_w             # model at the meter's instant
    double droop_w
    double p_min_w              # the window the limits left for p_cmd_w
    double p_max_w
    double horizon_s
    double align_s
    double filter_s             # load filter in force; 0: full bandwidth
    double not_held_s
    double soc
    double rvrt_s               # reversion time to write
    double enable               # WSetEna to write
    double heartbeat            # for ControllerHb
    int64_t slot_id             # the setpoint in force
    uint64_t limits_active      # LIM_*
    uint32_t alarms             # ALM_*
    int32_t mode
    int32_t start_step
    int32_t gate                # 1: the command may leave
    int32_t op_request          # OP_*
    int32_t slot                # SLOT_* in force, -1 none


# ---------------------------------------------------------------- the shared memory

ctypedef struct BusStats:
    int64_t transactions
    int64_t timeouts
    int64_t crc_errors
    int64_t exceptions
    int64_t wrong_unit          # answers from another address or function
    int64_t short_frames
    int64_t long_frames         # bytes nobody asked for
    int64_t echoes
    int64_t late                # answers to a request that had been given up
    int64_t unsent              # a write() that took less than the frame, or failed
    int64_t overruns            # a fast transaction that found the bus busy at its tick
    int64_t reopened
    int64_t busy_ns             # the wire in use: request, wait and answer of what was answered; CAN: frames heard and sent, at their longest
    int32_t is_open
    int32_t pad

ctypedef struct DeviceStats:
    int64_t ok
    int64_t failed
    int64_t last_ok_ns
    int64_t retry_ns            # while lost: next attempt
    int32_t alive
    int32_t verified            # 0 not yet, 1 equal, -1 differs
    int32_t lost_count
    uint32_t turn_n             # answers in turn; at TURN_FORGET all of it counts half, so that it is of the last minutes
    int64_t turn_max_ns         # ever
    uint32_t turn[TURN_BINS]    # from the request's detection to the answer's first bit, as the whole answer's instant shows it

ctypedef struct EngineStats:
    int64_t ticks
    int64_t missed_ticks
    int64_t start_ns
    int64_t last_wake_late_ns
    int64_t last_step_ns
    int64_t max_wake_late_ns
    int64_t max_step_ns
    int64_t bytes_in
    int64_t bytes_out
    int64_t setpoint_rejects    # slot writes refused: CRC, range, NaN
    uint32_t wake_us[HIST_BINS]
    uint32_t step_ns[HIST_BINS]     # 16 ns a bin

ctypedef struct Record:         # one tick, enough to run it again
    int64_t tick
    int64_t wake_late_ns
    Inputs inp
    Limits lim                  # in force: leases already applied
    Outputs out

ctypedef struct RingEntry:
    uint64_t seq                # 2 * (tick + 1) when whole, odd while written
    Record rec

ctypedef struct SlotCopy:
    Setpoint body
    uint32_t crc
    uint32_t pad

ctypedef struct SetpointSlot:   # two copies + counter: a writer killed in mid-write leaves the other copy good
    uint32_t counter            # the live copy is [counter & 1]
    uint32_t pad
    SlotCopy copy[2]

ctypedef struct LimitsCopy:
    Limits body
    uint32_t crc
    uint32_t pad

ctypedef struct LimitsSlot:
    uint32_t counter
    uint32_t pad
    LimitsCopy copy[2]

ctypedef struct SiteCopy:       # one revision of Site
    Site body
    int32_t rev                 # > 0; 0: never written
    uint32_t crc                # of body and rev

ctypedef struct SiteSlot:
    uint32_t counter
    uint32_t pad
    SiteCopy copy[2]

ctypedef struct Image:
    uint64_t magic
    uint32_t version
    uint32_t size
    uint64_t layout             # hash of the layout: a reader of another build refuses
    int64_t control_pid
    int64_t started_ns
    int32_t stop                # requests to the engine: 1 ramp down, 2 zero now, 3 leave the loop
    int32_t reset
    int32_t park                # a person's request, as Inputs.park; outlives control
    int32_t site_rev            # revision of `site`
    double billing_offset_s     # wall-clock phase of the billing window at t_ns = 0, from the supervisor
    SetpointSlot setpoint[SLOTS]
    LimitsSlot limits           # the supervisor's
    LimitsSlot limits_op        # an operator's: infinite where not set
    SiteSlot site_new           # what somebody wants Site to be
    Site site                   # in force: written by the engine, and by set_site before it starts
    SiteCopy site_history[SITE_REVISIONS]   # revision n in [n % SITE_REVISIONS]
    EngineStats engine
    BusStats bus[MAX_BUSES]
    DeviceStats device[MAX_DEVICES]
    uint64_t state_seq          # seqlock of state
    State state
    uint64_t head               # ticks written to the ring
    RingEntry ring[RING_TICKS]


cdef uint32_t crc32(const void* data, size_t n) noexcept nogil
cdef int read_setpoint(const SetpointSlot* s, Setpoint* out) noexcept nogil
cdef int read_limits(const LimitsSlot* s, Limits* out) noexcept nogil
cdef int read_site(const SiteSlot* s, SiteCopy* out) noexcept nogil
cdef void keep_site(Image* m, const SiteCopy* c) noexcept nogil
cdef void publish(Image* m, const Record* rec, const State* st) noexcept nogil
cdef int last_state(const Image* m, State* out) noexcept nogil
cdef int last_outputs(const Image* m, Outputs* out) noexcept nogil

cdef class ProcessImage:
    cdef Image* m
    cdef readonly int fd
    cdef readonly bint writable
    cdef readonly bint owner
    cdef _map(self, int fd, bint writable)
    cdef bint _entry(self, uint64_t n, Record* out) noexcept nogil
