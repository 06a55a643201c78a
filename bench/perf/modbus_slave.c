/* Modbus RTU slave on libmodbus behind a PTY of its own: modbus_slave UNIT. Prints the path of the PTY's other end, then serves until killed.
 *
 * Input registers 0..63 and holding registers 0..63 hold f32 values, high word first: value k (registers 2k, 2k+1) is 100.25 + 3.5 k in the
 * holding table and its negative in the input table.
 */
#define _XOPEN_SOURCE 600
#define _DEFAULT_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <modbus.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <termios.h>
#include <unistd.h>

#define REGISTERS 64

/* By hand: modbus_set_float_abcd swaps the bytes of each register in libmodbus 3.1.6. */
static void put_f32(uint16_t *words, float value)
{
    uint32_t raw;
    memcpy(&raw, &value, sizeof raw);
    words[0] = (uint16_t)(raw >> 16);
    words[1] = (uint16_t)raw;
}

int main(int argc, char **argv)
{
    uint8_t query[MODBUS_RTU_MAX_ADU_LENGTH];
    struct termios raw;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0) {
        perror("pty");
        return 1;
    }
    const char *path = ptsname(master);
    /* Kept open: without it the master reads EIO whenever the client is away. */
    int other = open(path, O_RDWR | O_NOCTTY);
    if (other < 0 || tcgetattr(other, &raw) < 0) {
        perror(path);
        return 1;
    }
    cfmakeraw(&raw);
    tcsetattr(other, TCSANOW, &raw);

    modbus_t *ctx = modbus_new_rtu(path, 460800, 'N', 8, 1);
    modbus_mapping_t *map = modbus_mapping_new(0, 0, REGISTERS, REGISTERS);
    if (ctx == NULL || map == NULL) {
        fprintf(stderr, "libmodbus: %s\n", modbus_strerror(errno));
        return 1;
    }
    modbus_set_slave(ctx, argc > 1 ? atoi(argv[1]) : 1);
    modbus_set_socket(ctx, master);
    for (int k = 0; k < REGISTERS / 2; k++) {
        put_f32(map->tab_registers + 2 * k, 100.25f + 3.5f * (float)k);
        put_f32(map->tab_input_registers + 2 * k, -100.25f - 3.5f * (float)k);
    }
    printf("%s\n", path);
    fflush(stdout);
    for (;;) {
        int n = modbus_receive(ctx, query);
        if (n > 0)
            modbus_reply(ctx, query, n, map);
        else if (n < 0 && errno != EMBBADCRC && errno != ETIMEDOUT)
            return 1;
    }
}
