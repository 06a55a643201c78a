/* libmodbus's own client, timed: modbus_client PATH UNIT, PATH a tty (RTU) or tcp://127.0.0.1:PORT. Each line "N PAUSE_NS" on stdin is answered by one line of N times in ns, from
 * modbus_read_registers (its first act is to frame and write the request) to ten decoded doubles; a failed or wrong read is -1.
 */
#define _DEFAULT_SOURCE
#include <modbus.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define REGISTERS 20

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* By hand: modbus_get_float_abcd swaps the bytes of each register in libmodbus 3.1.6. */
static float get_f32(const uint16_t *words)
{
    uint32_t raw = (uint32_t)words[0] << 16 | words[1];
    float value;
    memcpy(&value, &raw, sizeof value);
    return value;
}

int main(int argc, char **argv)
{
    uint16_t words[REGISTERS];
    double value[REGISTERS / 2];
    long n, pause_ns;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char *path = argc > 1 ? argv[1] : "";
    const char *port = strncmp(path, "tcp://", 6) == 0 ? strrchr(path, ':') : NULL;
    modbus_t *ctx = port != NULL ? modbus_new_tcp("127.0.0.1", atoi(port + 1)) : modbus_new_rtu(path, 460800, 'N', 8, 1);
    if (ctx == NULL || modbus_set_slave(ctx, argc > 2 ? atoi(argv[2]) : 1) < 0 || modbus_connect(ctx) < 0) {
        fprintf(stderr, "libmodbus cannot open the port\n");
        return 1;
    }
    while (scanf("%ld %ld", &n, &pause_ns) == 2 && n > 0 && n <= 1000000) {
        int64_t *took = malloc((size_t)n * sizeof *took);
        if (took == NULL)
            return 1;
        for (long i = 0; i < n; i++) {
            struct timespec pause = {pause_ns / 1000000000, pause_ns % 1000000000};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
            int64_t t = now_ns();
            int got = modbus_read_registers(ctx, 0, REGISTERS, words);
            for (int k = 0; k < REGISTERS / 2; k++)
                value[k] = get_f32(words + 2 * k);
            took[i] = now_ns() - t;
            for (int k = 0; k < REGISTERS / 2; k++)
                if (got != REGISTERS || value[k] != 100.25 + 3.5 * k)
                    took[i] = -1;
        }
        for (long i = 0; i < n; i++)
            printf("%lld%c", (long long)took[i], i + 1 < n ? ' ' : '\n');
        fflush(stdout);
        free(took);
    }
    return 0;
}
