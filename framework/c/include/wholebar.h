// libwholebar: userspace, polled-mode PCI drivers. Storage by queues that are submitted to, rung and polled (as in SPDK), packets by bursts
// (as in DPDK), over devices of VFIO, of vfio-user servers, and models in this process.
//
// This file is written by the tests of the crate wholebar-c from its sources. SPDX-License-Identifier: MIT OR Apache-2.0
//
// A program opens a device by name (wb_device_open), a disk or a port of it (wb_disk_open, wb_port_open), makes memory that the device can
// reach (wb_arena_new, wb_disk_attach, wb_pool_new), takes a queue, and polls. apps/hello-c has one for each.
//
// The rules. Who breaks one has undefined behaviour, as with any C library; what can be checked is, and is answered by -EINVAL.
//
// 1. Handles. A handle is NULL, or came from the function of this library that makes its type and was not freed since. Functions refuse NULL
//    with -EINVAL; each _free takes NULL, and does nothing. Handles may be freed in any order: what a handle needs lives as long as it. But a
//    queue that is freed ends what it had in flight, and a pool's memory stays for good where it is freed while buffers of it are out.
// 2. Threads. A queue, and a buffer, is used by one thread at a time, whichever that is. All other handles may be used by any threads at once,
//    but for the one call that frees them.
// 3. Pointers. What a function is given has to last for the call only: text ends with NUL, an array has as many elements as is said, what is
//    to be filled in can be written. Text that a function returns lasts as long as its handle, and must not be freed.
// 4. Buffers. A buffer is the caller's from wb_buf_get, wb_rx_burst or a completion on, until it is freed, submitted, or taken by
//    wb_tx_burst. While it is, its bytes are the caller's to read and write; afterwards neither the handle nor a pointer to its bytes
//    may be used. A buffer that is freed, submitted or sent twice is refused where that can be seen: while its pool is there, and the buffer
//    was not handed out again and is not in use on another thread.
// 5. Errors. Functions that return int give 0, a count or a state, or one of the negative numbers of errno.h: -EINVAL (a wrong argument or
//    name), -EAGAIN (no room now, or a reset is under way: poll, and try again), -ENODEV (the device is gone), -ENOTSUP (no driver is for it),
//    -ENOMEM, -EIO (all else), and -ENOTRECOVERABLE (a fault of this library, which is also told on standard error: the handle can only be
//    freed, and so can buffers that it was given: those that are gone are refused). Those that return a pointer give NULL, and wb_errno has the
//    number. wb_error has a sentence that says what was tried, what came back and what to do.
// 6. The process is the program's. No function ends it, reads its arguments, writes to standard output, or changes what signals do, but for one:
//    once registers of a device are mapped there is a handler for SIGBUS, which puts other pages in place of those of a device that was taken
//    away, and passes other faults to the handler that was there before. Devices and models have threads of their own, which end as their last
//    handle is freed. A child made by fork uses no handle.


#ifndef WHOLEBAR_H
#define WHOLEBAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The namespaces may have changed: wb_disk_namespaces has them as they are now.
#define WB_EVENT_NAMESPACES 1

// The device reports something else; the text has it.
#define WB_EVENT_DEVICE 2

// The kernel reports an error of the function (AER).
#define WB_EVENT_FUNCTION_ERROR 3

// The kernel wants the device back: close it soon.
#define WB_EVENT_UNBIND_REQUEST 4

// The device was reset, and queues run again; the text says why, and which queues are lost.
#define WB_EVENT_RESET 5

// The device cannot be used any more; the text says why.
#define WB_EVENT_ENDED 6

// A port's link changed; the text has how it is.
#define WB_EVENT_LINK 7

// A queue that sends is stuck; the text says which, and for how long.
#define WB_EVENT_STALLED 8

// The device asks that its address be announced, after it was moved.
#define WB_EVENT_ANNOUNCE 9

// Reads blocks into the buffer: as many bytes as are in use there (wb_buf_set_len).
#define WB_OP_READ 0

// Writes the buffer's bytes.
#define WB_OP_WRITE 1

// Makes what was written durable. No buffer.
#define WB_OP_FLUSH 2

// Compares the buffer's bytes with what is stored.
#define WB_OP_COMPARE 3

// Sets `blocks` blocks to zero. No buffer.
#define WB_OP_WRITE_ZEROES 4

// Says that `blocks` blocks are no longer used. No buffer.
#define WB_OP_DEALLOCATE 5

// Has the device check that `blocks` blocks can be read. No buffer.
#define WB_OP_VERIFY 6

// The command was done.
#define WB_STATUS_OK 0

// The device refused it or failed: `code` says how.
#define WB_STATUS_DEVICE 1

// Given up: its time passed, or its queue was reset.
#define WB_STATUS_ABORTED 2

// The device is gone.
#define WB_STATUS_GONE 3

// The queue can be used.
#define WB_STATE_RUNNING 0

// Its device is being reset; it will run again.
#define WB_STATE_RESETTING 1

// It cannot be used, for good.
#define WB_STATE_FAILED 2

// Its device is gone.
#define WB_STATE_GONE 3

// One piece of memory that devices can be let into. (DPDK: a memory zone.)
struct wb_arena;

// One submission and completion queue of a disk, for one thread at a time. (SPDK: an I/O qpair.)
struct wb_block_queue;

// A buffer: bytes that a device can reach, with room in front of them. (DPDK: an mbuf of one segment.)
//
// The pointer is the handle of the Rust side itself, and nothing is allocated for it.
struct wb_buf;

// A PCI function, opened.
struct wb_device;

// A storage device, opened: an NVMe controller, or a virtio block device. (SPDK: a controller of spdk_nvme.)
struct wb_disk;

// Equal buffers in an arena. (DPDK: a mempool of mbufs.)
struct wb_pool;

// A network device, opened. (DPDK: an ethdev.)
struct wb_port;

// A queue that receives, for one thread at a time.
struct wb_rx_queue;

// A queue that sends, for one thread at a time.
struct wb_tx_queue;

// What a PCI function says that it is, in its configuration space.
struct wb_device_info {
  // Vendor.
  uint16_t vendor_id;
  // Device.
  uint16_t device_id;
  // Vendor of the card; 0 where there is none.
  uint16_t subsystem_vendor_id;
  // The card; 0 where there is none.
  uint16_t subsystem_device_id;
  // Base class, subclass and programming interface, in the lowest 24 bits: 0x010802 is NVMe.
  uint32_t class_code;
  // Revision.
  uint8_t revision;
};

// How a disk is opened: 0 is what suits the device, so that `{0}` is the default.
struct wb_disk_config {
  // Queues to ask for; the device may have fewer. 0 is one.
  uint16_t queues;
  // Entries of each: a power of two.
  uint16_t entries;
};

// What can be read and written of a disk, and how. (SPDK: a namespace of spdk_nvme.)
struct wb_namespace {
  // Its capacity, in blocks.
  uint64_t blocks;
  // Its number, as requests have it.
  uint32_t nsid;
  // Bytes of a block: a power of two from 512.
  uint32_t block_size;
  // Bytes of one read or write at most.
  uint32_t max_transfer;
  // Blocks of one WB_OP_WRITE_ZEROES at most; 0 where it takes none.
  uint32_t max_write_zeroes;
  // Blocks of one WB_OP_DEALLOCATE at most; 0 where it takes none.
  uint32_t max_deallocate;
  // Blocks of one WB_OP_VERIFY at most; 0 where it takes none.
  uint32_t max_verify;
  // It cannot be written.
  bool read_only;
  // It takes WB_OP_FLUSH; where it does not, what was written is durable.
  bool flush;
  // It takes WB_OP_COMPARE.
  bool compare;
};

// Something that happened to a disk or a port.
struct wb_event {
  // What: one of WB_EVENT_. Later versions may have others.
  uint32_t kind;
  // A sentence, cut off where it is longer.
  char text[252];
};

// One command.
struct wb_request {
  // The caller's; comes back with the completion.
  uint64_t tag;
  // The namespace.
  uint32_t nsid;
  // What to do: one of WB_OP_.
  uint32_t op;
  // The first block.
  uint64_t lba;
  // The data, which is the command's while it is in flight; NULL where there is none. Its bytes in use are a multiple of the block size.
  struct wb_buf *buf;
  // How many blocks, where that isn't the data's length: of WB_OP_WRITE_ZEROES, WB_OP_DEALLOCATE, WB_OP_VERIFY.
  uint32_t blocks;
  // Milliseconds until it is given up; 0 for the driver's own limit.
  uint32_t timeout_ms;
};

// A finished command.
struct wb_completion {
  // The request's.
  uint64_t tag;
  // Its buffer, which is the caller's again. NULL where there was none, or where the device may still write to it: then it is never used again.
  struct wb_buf *buf;
  // How it ended: WB_STATUS_OK, WB_STATUS_DEVICE, WB_STATUS_ABORTED, WB_STATUS_GONE.
  uint32_t status;
  // Of WB_STATUS_DEVICE: what the device said. NVMe: status code type in bits 10 to 8, status code in bits 7 to 0. virtio: its status byte.
  uint16_t code;
};

// How a port is opened: 0 is the default, so that `{0}` is that of all. (DPDK: rte_eth_conf.)
struct wb_port_config {
  // Queues that receive. 0 is one.
  uint16_t rx_queues;
  // Queues that send. 0 is one.
  uint16_t tx_queues;
  // Descriptors of a queue that receives, a power of two. 0 is what suits the device.
  uint16_t rx_descriptors;
  // Descriptors of a queue that sends, a power of two. 0 is what suits the device.
  uint16_t tx_descriptors;
  // The largest packet, in bytes, without link-layer header. 0 is 1500, or what the device has if that is less.
  uint16_t mtu;
  // Bytes left in front of received packets. 0 is 128.
  uint16_t headroom;
  // Not 0: receives what is sent to anybody.
  uint8_t promiscuous;
};

// What a port is and how it stands.
struct wb_port_info {
  // Its station address.
  uint8_t mac[6];
  // The largest packet, in bytes, without link-layer header.
  uint16_t mtu;
  // Queues that receive, as it was opened.
  uint16_t rx_queues;
  // Queues that send, as it was opened.
  uint16_t tx_queues;
  // The link's speed in Mb/s; 0 where that is not known.
  uint32_t link_speed;
  // The link is up.
  bool link_up;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What went wrong in the last call of this thread that failed: a sentence; empty where none did. It lasts until the next that does.
const char *wb_error(void);

// The number of that error, as errno.h has it (positive); 0 where no call of this thread failed. (DPDK: rte_errno.)
int wb_errno(void);

// Opens a device by name: `0000:01:00.0` (the kernel's VFIO), `vfio-user:/run/nvme.sock`, `sim:nvme,size=64M` (a model in this process). NULL
// where that fails: wb_errno is EINVAL for a name that is wrong. Disks and ports of it keep the device, so that it may be freed as soon as they
// are open.
struct wb_device *wb_device_open(const char *target);

// Closes a device, once no disk, port or queue of it is left.
void wb_device_free(struct wb_device *device);

// The name it was opened by; NULL for NULL.
const char *wb_device_name(const struct wb_device *device);

// Reads what it is.
int wb_device_info(const struct wb_device *device, struct wb_device_info *info);

// The version of this library: `0.1.0`.
const char *wb_version(void);

// Memory of at least `bytes`, in hugepages where enough are free; NULL where the system has none.
struct wb_arena *wb_arena_new(uint64_t bytes);

// Frees an arena, once no pool of it, and no device that was let into it, is left.
void wb_arena_free(struct wb_arena *arena);

// `count` buffers of `size` bytes each, aligned to `align` bytes (a power of two; a disk's block size, or 64 for packets); NULL where the arena
// has no room for them. (DPDK: rte_pktmbuf_pool_create.)
struct wb_pool *wb_pool_new(const struct wb_arena *arena, uint32_t count, uint32_t size, uint32_t align);

// Frees a pool. Buffers have to be home first, those in queues too: where one is out, the pool's memory is never freed.
void wb_pool_free(struct wb_pool *pool);

// How many buffers are home. (DPDK: rte_mempool_avail_count.)
int wb_pool_available(const struct wb_pool *pool);

// A buffer with `len` bytes in use and no headroom, for the caller to own; NULL where all are out (wb_errno is ENOMEM), or `len` is more than one holds
// (EINVAL). What is in it is what was there before. (DPDK: rte_pktmbuf_alloc.)
struct wb_buf *wb_buf_get(const struct wb_pool *pool, uint32_t len);

// Gives a buffer back to its pool. NULL is none. 0, or -EINVAL for a buffer that is not the caller's (any more). (DPDK: rte_pktmbuf_free.)
int wb_buf_free(struct wb_buf *buf);

// Where its bytes are; NULL for a buffer that is not the caller's. They may be read and written as long as it is. (DPDK: rte_pktmbuf_mtod.)
uint8_t *wb_buf_data(struct wb_buf *buf);

// How many bytes are in use, or -EINVAL. (DPDK: rte_pktmbuf_data_len.)
int wb_buf_len(struct wb_buf *buf);

// How many bytes it can hold, headroom included, or -EINVAL.
int wb_buf_capacity(struct wb_buf *buf);

// How many bytes of room are in front of those in use, or -EINVAL. (DPDK: rte_pktmbuf_headroom.)
int wb_buf_headroom(struct wb_buf *buf);

// Says how many bytes are in use. 0, or -EINVAL where it cannot hold as many.
int wb_buf_set_len(struct wb_buf *buf, uint32_t len);

// Leaves `bytes` of room in front of the data, which there is none of then. 0, or -EINVAL where the buffer is smaller. (DPDK: rte_pktmbuf_reset_headroom.)
int wb_buf_reserve(struct wb_buf *buf, uint16_t bytes);

// Has the data begin `bytes` earlier, for a header; returns where it begins now, or NULL where there is less room in front. (DPDK: rte_pktmbuf_prepend.)
uint8_t *wb_buf_prepend(struct wb_buf *buf, uint16_t bytes);

// Has the data begin `bytes` later: takes a header off; returns where it begins now, or NULL where there are fewer. (DPDK: rte_pktmbuf_adj.)
uint8_t *wb_buf_adj(struct wb_buf *buf, uint16_t bytes);

// Opens a storage device with the driver that is for it; `config` may be NULL. NULL where that fails: wb_errno is ENOTSUP where no driver is for the device.
struct wb_disk *wb_disk_open(const struct wb_device *device, const struct wb_disk_config *config);

// Opens a disk by the name of any target: those of wb_device_open, which are opened with the driver that is for them, and `kernel:/dev/nvme0n1` or
// `kernel:./disk.img`, which are read and written through the kernel (io_uring). `config` may be NULL. NULL where that fails: wb_errno is EINVAL for a name that is
// wrong, or names no disk.
struct wb_disk *wb_disk_open_target(const char *target, const struct wb_disk_config *config);

// Closes a disk, once no queue of it is left.
void wb_disk_free(struct wb_disk *disk);

// The device's name; NULL for NULL.
const char *wb_disk_name(const struct wb_disk *disk);

// The driver's name: `nvme`, `virtio`; NULL for NULL.
const char *wb_disk_driver(const struct wb_disk *disk);

// How many queues can be had at once.
int wb_disk_queues(const struct wb_disk *disk);

// The namespaces that can be used, in the order of their numbers, as they are now: fills in at most `max`, and returns how many there are. A device that is one
// disk has one, number 1.
int wb_disk_namespaces(const struct wb_disk *disk, struct wb_namespace *namespaces, size_t max);

// Lets the device into an arena, so that its queues can use buffers there; does nothing where it is in already.
int wb_disk_attach(const struct wb_disk *disk, const struct wb_arena *arena);

// A queue, for one thread at a time; NULL where all are in use. It keeps the disk open. (SPDK: spdk_nvme_ctrlr_alloc_io_qpair.)
struct wb_block_queue *wb_disk_queue(const struct wb_disk *disk);

// Takes the oldest event that waits: returns 1 and fills it in, or 0 where none does. While 256 wait, further ones are dropped.
int wb_disk_event(const struct wb_disk *disk, struct wb_event *event);

// Resets the device, and returns when its queues can go on: what was in flight completes as WB_STATUS_ABORTED. Each queue has to be polled on another thread meanwhile:
// one that is not, within five seconds, is lost, and its buffers are never reused.
int wb_disk_reset(const struct wb_disk *disk);

// Queues a command; the device is not told before wb_queue_ring. 0: the buffer is the command's until its completion. Else it stays the caller's: -EAGAIN where the
// queue is full or being reset, -EINVAL for a command that can never be done, -ENODEV where the device is gone.
int wb_queue_submit(struct wb_block_queue *queue, const struct wb_request *request);

// Tells the device of every command submitted since the last call: one doorbell.
int wb_queue_ring(struct wb_block_queue *queue);

// Takes finished commands, at most `max`; returns how many there were, without waiting. (SPDK: spdk_nvme_qpair_process_completions.)
int wb_queue_poll(struct wb_block_queue *queue, struct wb_completion *done, size_t max);

// How many commands are in flight.
int wb_queue_in_flight(struct wb_block_queue *queue);

// Whether it can be used: WB_STATE_RUNNING, WB_STATE_RESETTING, WB_STATE_FAILED (wb_error says why), WB_STATE_GONE.
int wb_queue_state(struct wb_block_queue *queue);

// Ends a queue. Poll until nothing is in flight first: what still is is aborted, and its buffers go home, or are never used again where the device may write to them.
void wb_queue_free(struct wb_block_queue *queue);

// Opens a network device with the driver that is for it; `config` may be NULL. NULL where that fails: wb_errno is ENOTSUP where no driver is for the device.
struct wb_port *wb_port_open(const struct wb_device *device, const struct wb_port_config *config);

// Opens a port by the name of any target: those of wb_device_open, which are opened with the driver that is for them, and `kernel:eth0`, an interface that stays the
// kernel's, by packet sockets, or by AF_XDP (`,mode=xdp`). `config` may be NULL. NULL where that fails: wb_errno is EINVAL for a name that is wrong, or names no
// port.
struct wb_port *wb_port_open_target(const char *target, const struct wb_port_config *config);

// Closes a port, once no queue of it is left.
void wb_port_free(struct wb_port *port);

// The device's name; NULL for NULL.
const char *wb_port_name(const struct wb_port *port);

// The driver's name: `virtio`, `igb`, `igbvf`, `e1000e`, `vmxnet3`; NULL for NULL.
const char *wb_port_driver(const struct wb_port *port);

// Reads what it is and how it stands. May read a register, for the link. (DPDK: rte_eth_macaddr_get, rte_eth_link_get_nowait.)
int wb_port_info(const struct wb_port *port, struct wb_port_info *info);

// Whether what is sent to anybody is received, from now on. (DPDK: rte_eth_promiscuous_enable.)
int wb_port_set_promiscuous(const struct wb_port *port, int on);

// Lets the device into an arena, so that its queues can use buffers there; does nothing where it is in already. (DPDK: rte_dev_dma_map.)
int wb_port_attach(const struct wb_port *port, const struct wb_arena *arena);

// Receive queue `index`, from 0, which takes its buffers from `pool`, whose arena is attached; NULL where there is no such queue, it is in use, or the
// buffers are too small for headroom and MTU. It keeps the port and the pool. (DPDK: rte_eth_rx_queue_setup.)
struct wb_rx_queue *wb_port_rx_queue(const struct wb_port *port, uint16_t index, const struct wb_pool *pool);

// Send queue `index`, from 0; NULL where there is no such queue, or it is in use. It keeps the port. (DPDK: rte_eth_tx_queue_setup.)
struct wb_tx_queue *wb_port_tx_queue(const struct wb_port *port, uint16_t index);

// Takes the oldest event that waits: returns 1 and fills it in, or 0 where none does. While 256 wait, further ones are dropped.
int wb_port_event(const struct wb_port *port, struct wb_event *event);

// Resets the device, and returns when its queues can go on: packets in flight are dropped and counted, their buffers go home. Each queue has to be polled on
// another thread meanwhile: one that is not, within five seconds, is lost, and its buffers are never reused. (DPDK: rte_eth_dev_reset.)
int wb_port_reset(const struct wb_port *port);

// Takes packets that have come, at most `n`, each in a buffer that is the caller's then; returns how many, without waiting. The queue is given new buffers
// from its pool for those that left it. (DPDK: rte_eth_rx_burst.)
int wb_rx_burst(struct wb_rx_queue *queue, struct wb_buf **packets, uint16_t n);

// Sends packets, from the front of the array on, as many as there is room for; returns how many. Those are the queue's, the rest stays the caller's. A packet that
// can never be sent counts as sent, and is dropped. Where a buffer is not the caller's, -EINVAL, or how many of those in front of it were taken, as with any other
// error. (DPDK: rte_eth_tx_burst.)
int wb_tx_burst(struct wb_tx_queue *queue, struct wb_buf *const *packets, uint16_t n);

// Gives back the buffers of packets that were sent, where nothing is to be sent for a while: wb_tx_burst does so when it needs room. (DPDK: rte_eth_tx_done_cleanup.)
int wb_tx_reclaim(struct wb_tx_queue *queue);

// How many packets were taken and are not known to be sent.
int wb_tx_in_flight(struct wb_tx_queue *queue);

// Whether it can be used: WB_STATE_RUNNING, WB_STATE_RESETTING, WB_STATE_FAILED (wb_error says why), WB_STATE_GONE.
int wb_rx_state(struct wb_rx_queue *queue);

// Whether it can be used, as wb_rx_state.
int wb_tx_state(struct wb_tx_queue *queue);

// Ends a receive queue. Buffers that it had go home as its device is done with them.
void wb_rx_free(struct wb_rx_queue *queue);

// Ends a send queue. Packets in flight end with the port.
void wb_tx_free(struct wb_tx_queue *queue);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WHOLEBAR_H */
