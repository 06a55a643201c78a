/* Modbus slave on libmodbus: modbus_slave UNIT serves RTU behind a PTY of its own (modbus_slave UNIT US answers so many microseconds after the
 * request, as a line and a device need), modbus_slave UNIT tcp on a loopback port, one connection at a time. Prints the path of the PTY's other end, or tcp://127.0.0.1:PORT, then serves until killed.
 *
 * Input registers 0..63 and holding registers 0..63 hold f32 values, high word first: value k (registers 2k, 2k+1) is 100.25 + 3.5 k in the
 * holding table and its negative in the input table.
 */
#define _XOPEN_SOURCE 600
#define _DEFAULT_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <modbus.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
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

/* An RTU slave on a PTY; NULL where that cannot be had. */
static modbus_t *open_pty(void)
{
    struct termios raw;
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0) {
        perror("pty");
        return NULL;
    }
    const char *path = ptsname(master);
    /* Kept open: without it the master reads EIO whenever the client is away. */
    int other = open(path, O_RDWR | O_NOCTTY);
    if (other < 0 || tcgetattr(other, &raw) < 0) {
        perror(path);
        return NULL;
    }
    cfmakeraw(&raw);
    tcsetattr(other, TCSANOW, &raw);
    modbus_t *ctx = modbus_new_rtu(path, 460800, 'N', 8, 1);
    if (ctx != NULL)
        modbus_set_socket(ctx, master);
    printf("%s\n", path);
    return ctx;
}

/* A TCP slave and its listening socket; NULL where that cannot be had. */
static modbus_t *open_tcp(int *listening)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    *listening = socket(AF_INET, SOCK_STREAM, 0);
    if (*listening < 0 || bind(*listening, (struct sockaddr *)&at, sizeof at) < 0 || listen(*listening, 1) < 0 ||
        getsockname(*listening, (struct sockaddr *)&at, &size) < 0) {
        perror("socket");
        return NULL;
    }
    printf("tcp://127.0.0.1:%d\n", ntohs(at.sin_port));
    return modbus_new_tcp("127.0.0.1", ntohs(at.sin_port));
}

int main(int argc, char **argv)
{
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    int listening = -1;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int tcp = argc > 2 && strcmp(argv[2], "tcp") == 0;
    useconds_t delay_us = argc > 2 && !tcp ? (useconds_t)atoi(argv[2]) : 0;
    modbus_t *ctx = tcp ? open_tcp(&listening) : open_pty();
    modbus_mapping_t *map = modbus_mapping_new(0, 0, REGISTERS, REGISTERS);
    if (ctx == NULL || map == NULL) {
        fprintf(stderr, "libmodbus: %s\n", modbus_strerror(errno));
        return 1;
    }
    modbus_set_slave(ctx, argc > 1 ? atoi(argv[1]) : 1);
    for (int k = 0; k < REGISTERS / 2; k++) {
        put_f32(map->tab_registers + 2 * k, 100.25f + 3.5f * (float)k);
        put_f32(map->tab_input_registers + 2 * k, -100.25f - 3.5f * (float)k);
    }
    fflush(stdout);
    for (;;) {
        if (listening >= 0 && modbus_tcp_accept(ctx, &listening) < 0)
            return 1;
        for (;;) {
            int n = modbus_receive(ctx, query);
            if (n > 0) {
                if (delay_us)
                    usleep(delay_us);
                modbus_reply(ctx, query, n, map);
            } else if (n < 0 && errno != EMBBADCRC && errno != ETIMEDOUT)
                break;
        }
        if (listening < 0)
            return 1;
        modbus_close(ctx);
    }
}
