/* The inner loops of packet work on DPDK, in TSC cycles an element: the same work, in the same rows, as ../src/bin/inner_loops.rs.
 * A repetition is short, and dropped when one of its threads had less than 97 % of its core. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <rte_bus_vdev.h>
#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>

#define REPS 1000
#define LIMIT_NS 2000000000ull
static const unsigned bursts[] = {1, 8, 32};
static const char *only = ""; /* rows with this in their names */

static struct rte_ring *ring;    /* of the row that is measured */
static struct rte_mempool *pool; /* cache of 256 */
static unsigned burst;
static unsigned lcore; /* the second */
static void *items[64];
static struct rte_mbuf *bufs[64];

/* The other thread. */
static atomic_int stop, started;
static clockid_t helper_clock;
static int with_helper;

static uint64_t nanoseconds(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* Measures `work`, which returns how many elements it moved, and prints the row. */
static void row(const char *name, uint64_t (*work)(void))
{
	static double cycles[REPS];
	if (!strstr(name, only))
		return;
	unsigned clean = 0, tried = 0;
	uint64_t began = nanoseconds(CLOCK_MONOTONIC), gone = 0;
	while (clean < REPS && (gone < LIMIT_NS || (clean < 20 && gone < 4 * LIMIT_NS))) {
		uint64_t theirs = with_helper ? nanoseconds(helper_clock) : 0;
		uint64_t ours = nanoseconds(CLOCK_THREAD_CPUTIME_ID), wall = nanoseconds(CLOCK_MONOTONIC);
		uint64_t start = rte_rdtsc_precise();
		uint64_t elements = work();
		uint64_t spent = rte_rdtsc_precise() - start;
		wall = nanoseconds(CLOCK_MONOTONIC) - wall;
		ours = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - ours;
		theirs = with_helper ? nanoseconds(helper_clock) - theirs : wall;
		tried++;
		if (ours >= wall * 0.97 && theirs >= wall * 0.97)
			cycles[clean++] = (double)spent / elements;
		gone = nanoseconds(CLOCK_MONOTONIC) - began;
	}
	if (!clean) {
		printf("%-44s no clean repetition: the machine is too busy\n", name);
		return;
	}
	qsort(cycles, clean, sizeof *cycles, ascending);
	printf("%-44s cyc/elem min %7.2f med %7.2f p90 %7.2f | clean %u/%u\n", name, cycles[0],
	       cycles[(clean - 1) / 2], cycles[(clean - 1) * 9 / 10], clean, tried);
	fflush(stdout);
}

static int run_side(void *side)
{
	pthread_getcpuclockid(pthread_self(), &helper_clock);
	atomic_store(&started, 1);
	((void (*)(void))side)();
	return 0;
}

static inline int stopped(void) { return atomic_load_explicit(&stop, memory_order_relaxed); }

/* Measures `work` while `side`, which goes on until it is stopped, runs on the second core. */
static void row_beside(const char *name, void (*side)(void), uint64_t (*work)(void))
{
	atomic_store(&stop, 0);
	atomic_store(&started, 0);
	rte_eal_remote_launch(run_side, (void *)side, lcore);
	while (!atomic_load(&started))
		rte_pause();
	with_helper = 1;
	row(name, work);
	with_helper = 0;
	atomic_store(&stop, 1);
	rte_eal_wait_lcore(lcore);
	while (rte_ring_mc_dequeue_burst(ring, items, 32, NULL))
		;
}

/* What a loop below reads in each turn is in a variable of its own: the ring's barriers make the compiler read globals again. */
static unsigned times(void) { return 20000 / (burst * (burst < 8 ? 4 : 2)) + 50; }
static uint64_t wanted(void) { return burst == 1 ? 8192 : 32768; }

/* What goes in next is what came out. */
#define IN_ONE_THREAD(name, put, take)                                  \
	static uint64_t name(void)                                      \
	{                                                               \
		struct rte_ring *r = ring;                              \
		unsigned n = burst, turns = times();                    \
		if (n == 1) {                                           \
			void *item = items[0];                          \
			for (unsigned i = 0; i < turns; i++) {          \
				put(r, item);                           \
				take(r, &item);                         \
			}                                               \
			items[0] = item;                                \
		} else {                                                \
			void **all = items;                             \
			for (unsigned i = 0; i < turns; i++) {          \
				put##_burst(r, all, n, NULL);           \
				take##_burst(r, all, n, NULL);          \
			}                                               \
		}                                                       \
		return (uint64_t)turns * n;                             \
	}

IN_ONE_THREAD(single, rte_ring_sp_enqueue, rte_ring_sc_dequeue)
IN_ONE_THREAD(shared, rte_ring_mp_enqueue, rte_ring_mc_dequeue)

/* Each item is written before it is put. */
#define PRODUCE(name, put)                                              \
	static uint64_t name(void)                                      \
	{                                                               \
		struct rte_ring *r = ring;                              \
		void *some[64];                                         \
		uint64_t done = 0, all = wanted();                      \
		unsigned most = burst;                                  \
		while (done < all) {                                    \
			for (unsigned i = 0; i < most; i++)             \
				some[i] = (void *)(uintptr_t)done;      \
			unsigned n = put(r, some, most, NULL);          \
			if (!n)                                         \
				rte_pause();                            \
			done += n;                                      \
		}                                                       \
		return done;                                            \
	}

#define CONSUME(name, take)                                             \
	static void name(void)                                          \
	{                                                               \
		struct rte_ring *r = ring;                              \
		void *out[64];                                          \
		unsigned most = burst;                                  \
		while (!stopped())                                      \
			if (!take(r, out, most, NULL))                  \
				rte_pause();                            \
	}

PRODUCE(produce, rte_ring_sp_enqueue_burst)
CONSUME(consume, rte_ring_sc_dequeue_burst)
PRODUCE(produce_shared, rte_ring_mp_enqueue_burst)
CONSUME(consume_shared, rte_ring_mc_dequeue_burst)

static inline void contend(struct rte_ring *r, void **some, unsigned n)
{
	if (rte_ring_mp_enqueue_burst(r, some, n, NULL))
		rte_ring_mc_dequeue_burst(r, some, n, NULL);
}

static void contend_on(void)
{
	struct rte_ring *r = ring;
	void *some[64] = {0};
	unsigned n = burst;
	while (!stopped())
		contend(r, some, n);
}

static uint64_t contended(void)
{
	struct rte_ring *r = ring;
	void *some[64] = {0};
	unsigned n = burst;
	for (unsigned i = 0; i < 1000; i++)
		contend(r, some, n);
	return 1000ull * n;
}

static uint64_t free_bulk(void)
{
	struct rte_mempool *p = pool;
	for (unsigned i = 0; i < 500; i++) {
		if (rte_pktmbuf_alloc_bulk(p, bufs, 32))
			abort();
		rte_pktmbuf_free_bulk(bufs, 32);
	}
	return 500 * 32;
}

static uint64_t free_each(void)
{
	struct rte_mempool *p = pool;
	for (unsigned i = 0; i < 500; i++) {
		if (rte_pktmbuf_alloc_bulk(p, bufs, 32))
			abort();
		for (unsigned j = 0; j < 32; j++)
			rte_pktmbuf_free(bufs[j]);
	}
	return 500 * 32;
}

static uint64_t get_put(void)
{
	struct rte_mempool *p = pool;
	unsigned n = burst;
	for (unsigned i = 0; i < 1000; i++) {
		if (rte_mempool_get_bulk(p, (void **)bufs, n))
			abort();
		rte_mempool_put_bulk(p, (void **)bufs, n);
	}
	return 1000ull * n;
}

static uint64_t pipe_in(void)
{
	struct rte_ring *r = ring;
	struct rte_mempool *p = pool;
	uint64_t done = 0;
	while (done < 8192) {
		if (rte_pktmbuf_alloc_bulk(p, bufs, 32)) {
			rte_pause();
			continue;
		}
		for (unsigned i = 0; i < 32; i++)
			bufs[i]->data_len = bufs[i]->pkt_len = 60;
		for (unsigned sent = 0; sent < 32;) {
			unsigned n = rte_ring_sp_enqueue_burst(r, (void **)bufs + sent, 32 - sent, NULL);
			if (!n)
				rte_pause();
			sent += n;
		}
		done += 32;
	}
	return done;
}

static void pipe_out(void)
{
	struct rte_ring *r = ring;
	struct rte_mbuf *out[32];
	while (!stopped()) {
		unsigned n = rte_ring_sc_dequeue_burst(r, (void **)out, 32, NULL);
		if (n)
			rte_pktmbuf_free_bulk(out, n);
		else
			rte_pause();
	}
}

static uint16_t ports[2];
static enum { IO, MACSWAP, L2FWD } rewrite;

static uint64_t forward(void)
{
	static const struct rte_ether_addr own = {{2, 0, 0, 0, 0, 1}}, next_hop = {{2, 0, 0, 0, 0, 2}};
	uint64_t packets = 0;
	for (unsigned i = 0; i < 400; i++) {
		uint16_t n = rte_eth_rx_burst(ports[i & 1], 0, bufs, burst);
		for (unsigned j = 0; rewrite != IO && j < n; j++) {
			struct rte_ether_hdr *ether = rte_pktmbuf_mtod(bufs[j], struct rte_ether_hdr *);
			struct rte_ether_addr from = ether->src_addr;
			ether->src_addr = rewrite == MACSWAP ? ether->dst_addr : own;
			ether->dst_addr = rewrite == MACSWAP ? from : next_hop;
		}
		uint16_t sent = rte_eth_tx_burst(ports[1 - (i & 1)], 0, bufs, n);
		while (sent < n)
			rte_pktmbuf_free(bufs[sent++]);
		packets += n;
	}
	return packets;
}

static int start_port(const char *name, uint16_t *port)
{
	struct rte_eth_conf conf = {0};
	return rte_vdev_init(name, "size=64,copy=0") || rte_eth_dev_get_port_by_name(name, port) ||
	       rte_eth_dev_configure(*port, 1, 1, &conf) || rte_eth_rx_queue_setup(*port, 0, 512, SOCKET_ID_ANY, NULL, pool) ||
	       rte_eth_tx_queue_setup(*port, 0, 512, SOCKET_ID_ANY, NULL) || rte_eth_dev_start(*port);
}

/* A row for each size of a burst. */
static void rows(const char *format, void (*side)(void), uint64_t (*work)(void))
{
	char name[96];
	for (unsigned i = 0; i < RTE_DIM(bursts); i++) {
		burst = bursts[i];
		snprintf(name, sizeof name, format, burst);
		if (side)
			row_beside(name, side, work);
		else
			row(name, work);
	}
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv);
	if (used < 0)
		return 1;
	if (used + 1 < argc)
		only = argv[used + 1];
	struct rte_ring *sp = rte_ring_create("sp", 1024, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ);
	struct rte_ring *mp = rte_ring_create("mp", 1024, SOCKET_ID_ANY, 0);
	pool = rte_pktmbuf_pool_create("pool", 8191, 256, 0, 2048 + 128, SOCKET_ID_ANY);
	if (!sp || !mp || !pool) {
		fprintf(stderr, "no memory: are there 256 free 2 MiB hugepages?\n");
		return 1;
	}
	lcore = rte_get_next_lcore(-1, 1, 0);
	int two = rte_lcore_count() > 1;

	ring = sp;
	rows("ring 1T SP/SC enq+deq burst %u", NULL, single);
	ring = mp;
	rows("ring 1T MP/MC enq+deq burst %u", NULL, shared);
	if (two) {
		ring = sp;
		rows("ring 2T SP/SC prod->cons burst %u", consume, produce);
		ring = mp;
		rows("ring 2T MP/MC prod->cons burst %u", consume_shared, produce_shared);
		rows("ring 2T MP/MC contended, per thread, burst %u", contend_on, contended);
	}
	row("mbuf alloc_bulk+free_bulk 32 cache256 (MP/MC)", free_bulk);
	row("mbuf alloc_bulk+32x free cache256 (MP/MC)", free_each);
	rows("mempool get_bulk+put_bulk %u cache256", NULL, get_put);
	if (two) {
		ring = sp;
		row_beside("pipe 2T alloc->SP/SC ring->free, 32", pipe_out, pipe_in);
	}
	if (start_port("net_null0", &ports[0]) || start_port("net_null1", &ports[1])) {
		fprintf(stderr, "the null ports could not be started\n");
		return 1;
	}
	burst = 32;
	rewrite = IO, row("fwd net_null io burst 32", forward);
	rewrite = MACSWAP, row("fwd net_null macswap burst 32", forward);
	rewrite = L2FWD, row("fwd net_null l2fwd(mac update) burst 32", forward);
	burst = 8;
	rewrite = IO, row("fwd net_null io burst 8", forward);
	return 0;
}
