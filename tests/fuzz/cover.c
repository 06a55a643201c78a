/* Coverage of code that gcc has instrumented (-fsanitize-coverage=trace-pc,trace-cmp), handed to the libFuzzer inside atheris.
 *
 * gcc calls __sanitizer_cov_trace_pc at every edge and leaves it to us what to make of it; libFuzzer wants arrays of 8-bit counters with the
 * program counter that belongs to each. Preloaded, so that it is found before the empty functions of the same names in libasan.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

enum { COUNTERS = 1 << 15, SLOTS = 1 << 17 };       /* edges at most; hash table four times as large, so that it stays sparse */

static uint8_t counters[COUNTERS];
static struct { uintptr_t pc, flags; } pcs[COUNTERS];
static struct { uintptr_t pc; uint32_t counter; } slots[SLOTS];
static uint32_t used;

void __sanitizer_cov_trace_pc(void) {
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    uint32_t at = (uint32_t)((pc * 0x9E3779B97F4A7C15ull) >> 47) & (SLOTS - 1);
    while (slots[at].pc != pc) {
        if (slots[at].pc == 0) {
            if (used == COUNTERS) return;
            slots[at].pc = pc;
            slots[at].counter = used;
            pcs[used++].pc = pc;
        }
        else at = (at + 1) & (SLOTS - 1);
    }
    uint8_t *c = &counters[slots[at].counter];
    if (*c < 255) ++*c;
}

/* Comparisons go to libFuzzer as they are. The call must be a jump (-O2): libFuzzer keys them by its return address. */
#define FORWARD(name, type)                                                                     \
    static void (*to_##name)(type, type);                                                       \
    void __sanitizer_cov_##name(type a, type b) { if (to_##name) to_##name(a, b); }
FORWARD(trace_cmp1, uint8_t)
FORWARD(trace_cmp2, uint16_t)
FORWARD(trace_cmp4, uint32_t)
FORWARD(trace_cmp8, uint64_t)
FORWARD(trace_const_cmp1, uint8_t)
FORWARD(trace_const_cmp2, uint16_t)
FORWARD(trace_const_cmp4, uint32_t)
FORWARD(trace_const_cmp8, uint64_t)
static void (*to_trace_switch)(uint64_t, uint64_t *);
void __sanitizer_cov_trace_switch(uint64_t a, uint64_t *cases) { if (to_trace_switch) to_trace_switch(a, cases); }
void __sanitizer_cov_trace_cmpf(float a, float b) { (void)a; (void)b; }
void __sanitizer_cov_trace_cmpd(double a, double b) { (void)a; (void)b; }

/* atheris itself calls these two for Python's counters, and would get libasan's empty ones. */
static void (*to_counters)(void *, void *), (*to_pcs)(void *, void *);
void __sanitizer_cov_8bit_counters_init(void *from, void *to) { if (to_counters) to_counters(from, to); }
void __sanitizer_cov_pcs_init(void *from, void *to) { if (to_pcs) to_pcs(from, to); }

/* `path`: the module with libFuzzer in it, loaded already. 0, or how many of its functions are missing. */
int cover_attach(const char *path) {
    void *lib = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    int missing = 0;
    if (lib == NULL) return -1;
#define FIND(name) missing += !(to_##name = (__typeof__(to_##name))dlsym(lib, "__sanitizer_cov_" #name))
    FIND(trace_cmp1); FIND(trace_cmp2); FIND(trace_cmp4); FIND(trace_cmp8); FIND(trace_switch);
    FIND(trace_const_cmp1); FIND(trace_const_cmp2); FIND(trace_const_cmp4); FIND(trace_const_cmp8);
    to_counters = (void (*)(void *, void *))dlsym(lib, "__sanitizer_cov_8bit_counters_init");
    to_pcs = (void (*)(void *, void *))dlsym(lib, "__sanitizer_cov_pcs_init");
    if (to_counters == NULL || to_pcs == NULL) return missing + 2;
    to_counters(counters, counters + COUNTERS);
    to_pcs(pcs, pcs + COUNTERS);
    return missing;
}
