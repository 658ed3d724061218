// l2fwd [PORT PORT] [PACKETS]: the program to copy for packets, in C. What one port receives, the other sends, from its own address to
// 02:00:00:00:00:NN, NN being the port; on one core, until so many packets were sent, or Ctrl-C.
//
//     cc -o l2fwd l2fwd.c $(pkg-config --cflags --libs wholebar)
//     l2fwd 0000:01:00.0 0000:02:00.0
//
// Without ports it takes two models of a virtio network card, each of which sends back what it is sent, puts 32 packets between them, and
// ends when 10000 were sent, or PACKETS.

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wholebar.h>

#define BURST 32
#define BUFFERS 2048
#define HEADROOM 128
#define BUFFER (2048 + HEADROOM)

struct end {
    struct wb_port *port;
    struct wb_rx_queue *rx;
    struct wb_tx_queue *tx;
    uint8_t addresses[12];        // what it sends begins with: destination, source
    struct wb_buf *packets[BURST]; // what it received, and the other has not sent yet
    uint16_t held;
    uint64_t sent;
};

// The library handles no signals: Ctrl-C is the program's.
static volatile sig_atomic_t stop;

static void on_signal(int signal)
{
    (void)signal;
    stop = 1;
}

static int failed(const char *what)
{
    fprintf(stderr, "l2fwd: %s: %s\n", what, wb_error());
    return wb_errno() == EINVAL ? 2 : 1;
}

// A port by its device's name, with whichever driver that needs; let into the arena; and its queues.
static int open_end(struct end *end, int number, const char *name, struct wb_arena *arena, struct wb_pool *pool)
{
    // What a port is to receive is said here, not once it runs: until it is told, a device drops what is for other addresses than its own.
    struct wb_port_config config = {.headroom = HEADROOM, .promiscuous = 1};
    struct wb_device *device = wb_device_open(name);
    struct wb_port_info info;

    if (!device)
        return failed("no device");
    end->port = wb_port_open(device, &config);
    wb_device_free(device); // the port keeps it
    if (!end->port || wb_port_attach(end->port, arena) < 0 || wb_port_info(end->port, &info) < 0)
        return failed(name);
    end->rx = wb_port_rx_queue(end->port, 0, pool);
    end->tx = wb_port_tx_queue(end->port, 0);
    if (!end->rx || !end->tx)
        return failed(name);
    memcpy(end->addresses, (uint8_t[]){0x02, 0, 0, 0, 0, (uint8_t)number}, 6);
    memcpy(end->addresses + 6, info.mac, 6);
    printf("port %d: %s, driver %s, %02x:%02x:%02x:%02x:%02x:%02x, MTU %u, link %s\n", number, wb_port_name(end->port),
           wb_port_driver(end->port), info.mac[0], info.mac[1], info.mac[2], info.mac[3], info.mac[4], info.mac[5],
           info.mtu, info.link_up ? "up" : "down");
    return 0;
}

static void close_end(struct end *end)
{
    while (end->held > 0)
        wb_buf_free(end->packets[--end->held]);
    wb_rx_free(end->rx);
    wb_tx_free(end->tx);
    wb_port_free(end->port);
}

// Packets to begin with, as if `end` had received them.
static int first_packets(struct end *end, struct wb_pool *pool)
{
    for (; end->held < BURST; end->held++) {
        struct wb_buf *packet = wb_buf_get(pool, 0);
        if (!packet || wb_buf_reserve(packet, HEADROOM) < 0 || wb_buf_set_len(packet, 64) < 0)
            return failed("no packet");
        memset(wb_buf_data(packet), 0, 64);
        wb_buf_data(packet)[12] = 0x08;
        end->packets[end->held] = packet;
    }
    return 0;
}

// What `from` receives, `to` sends.
static int forward(struct end *from, struct end *to)
{
    uint16_t held = from->held;
    int n = wb_rx_burst(from->rx, from->packets + held, BURST - held);

    if (n < 0)
        return failed("receiving");
    from->held += (uint16_t)n;
    for (uint16_t i = 0; i < from->held; i++)
        if (wb_buf_len(from->packets[i]) >= 12)
            memcpy(wb_buf_data(from->packets[i]), to->addresses, 12);
    // A queue with nothing to send gives back the buffers of what it sent.
    if (from->held == 0) {
        wb_tx_reclaim(to->tx);
        return 0;
    }
    // What there is no room for stays, in front.
    n = wb_tx_burst(to->tx, from->packets, from->held);
    if (n < 0)
        return failed("sending");
    from->held -= (uint16_t)n;
    memmove(from->packets, from->packets + n, from->held * sizeof from->packets[0]);
    to->sent += (uint64_t)n;
    return 0;
}

// The slow path: what happened to the ports.
static int events(struct end *ends)
{
    struct wb_event event;

    for (int i = 0; i < 2; i++)
        while (wb_port_event(ends[i].port, &event) > 0) {
            fprintf(stderr, "port %d: %s\n", i, event.text);
            if (event.kind == WB_EVENT_ENDED || event.kind == WB_EVENT_UNBIND_REQUEST)
                return 1;
        }
    return 0;
}

int main(int argc, char **argv)
{
    const char *names[2] = {"sim:virtio-net", "sim:virtio-net"};
    struct sigaction action = {.sa_handler = on_signal};
    struct end ends[2] = {{0}, {0}};
    struct wb_arena *arena;
    struct wb_pool *pool = NULL;
    uint64_t most = UINT64_MAX;
    int code;

    if (argc > 4) {
        fprintf(stderr, "usage: l2fwd [PORT PORT] [PACKETS]\n");
        return 2;
    }
    if (argc > 2) {
        names[0] = argv[1];
        names[1] = argv[2];
    }
    if (argc % 2 == 0)
        most = strtoull(argv[argc - 1], NULL, 10);
    else if (argc == 1)
        most = 10000;
    sigaction(SIGINT, &action, NULL);

    // One arena that both devices are let into, so that a buffer one received into, the other can send from.
    arena = wb_arena_new((uint64_t)BUFFERS * BUFFER);
    if (!arena || !(pool = wb_pool_new(arena, BUFFERS, BUFFER, 64))) {
        code = failed("no memory");
        goto end;
    }
    for (int i = 0; i < 2; i++)
        if ((code = open_end(&ends[i], i, names[i], arena, pool)) != 0)
            goto end;
    if (argc < 3 && (code = first_packets(&ends[0], pool)) != 0)
        goto end;

    for (unsigned turns = 0; code == 0 && !stop && ends[0].sent + ends[1].sent < most; turns++) {
        code = forward(&ends[0], &ends[1]);
        if (code == 0)
            code = forward(&ends[1], &ends[0]);
        if (code == 0 && turns % 1024 == 0)
            code = events(ends);
    }
    for (int i = 0; i < 2; i++)
        printf("port %d sent %" PRIu64 " packets\n", i, ends[i].sent);
end:
    close_end(&ends[0]);
    close_end(&ends[1]);
    // Every buffer is home once nobody holds any: arrays, queues, devices.
    if (pool && wb_pool_available(pool) != BUFFERS) {
        fprintf(stderr, "l2fwd: %d of %d buffers are home\n", wb_pool_available(pool), BUFFERS);
        code = 1;
    }
    wb_pool_free(pool);
    wb_arena_free(arena);
    return code;
}
