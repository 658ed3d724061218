// hello_nvme [TARGET]: the first program to copy, in C. Says what a disk is, writes a block, reads it back, compares.
//
//     cc -o hello_nvme hello_nvme.c $(pkg-config --cflags --libs wholebar)
//
// Without a target it runs on a model in this process. Others: vfio-user:/run/nvme.sock, 0000:01:00.0. What was in the block is put back at
// the end, but a device whose data matters is no place to try a first program.

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <wholebar.h>

static int failed(const char *what)
{
    fprintf(stderr, "hello_nvme: %s: %s\n", what, wb_error());
    return 1;
}

// One request from beginning to end. Programs in a hurry submit many, ring once, and poll for many.
static int execute(struct wb_block_queue *queue, uint32_t nsid, uint32_t op, uint64_t lba, struct wb_buf *buf)
{
    struct wb_request request = {.nsid = nsid, .op = op, .lba = lba, .buf = buf};
    struct wb_completion done;
    int n;

    // From here to the completion the buffer is the command's. A request that is refused leaves it the caller's.
    if (wb_queue_submit(queue, &request) < 0)
        return failed("the request was refused");
    if (wb_queue_ring(queue) < 0)
        return failed("ring");
    while ((n = wb_queue_poll(queue, &done, 1)) == 0)
        ;
    if (n < 0)
        return failed("poll");
    if (done.status != WB_STATUS_OK) {
        fprintf(stderr, "hello_nvme: op %" PRIu32 " ended as %" PRIu32 ", code %#x\n", op, done.status, (unsigned)done.code);
        return 1;
    }
    return 0;
}

static int run(struct wb_disk *disk, const struct wb_namespace *ns, struct wb_pool *pool)
{
    struct wb_block_queue *queue = wb_disk_queue(disk);
    struct wb_buf *before = wb_buf_get(pool, ns->block_size);
    struct wb_buf *data = wb_buf_get(pool, ns->block_size);
    struct wb_buf *back = wb_buf_get(pool, ns->block_size);
    uint64_t lba = ns->blocks - 1;
    int code = 1;

    if (!queue || !before || !data || !back) {
        failed("no queue or buffer");
        goto end;
    }
    for (uint32_t i = 0; i < ns->block_size; i++)
        wb_buf_data(data)[i] = (uint8_t)(i * 7 + i / 256);

    if (execute(queue, ns->nsid, WB_OP_READ, lba, before) || execute(queue, ns->nsid, WB_OP_WRITE, lba, data))
        goto end;
    if (ns->flush && execute(queue, ns->nsid, WB_OP_FLUSH, 0, NULL))
        goto end;
    if (execute(queue, ns->nsid, WB_OP_READ, lba, back))
        goto end;
    if (memcmp(wb_buf_data(data), wb_buf_data(back), ns->block_size) != 0) {
        fprintf(stderr, "hello_nvme: block %" PRIu64 " is not what was written there\n", lba);
        goto end;
    }
    if (execute(queue, ns->nsid, WB_OP_WRITE, lba, before))
        goto end;
    printf("block %" PRIu64 " was written, read back and found equal\n", lba);
    code = 0;
end:
    // After an error a buffer may still be a command's: the queue's end gives it back, and wb_buf_free refuses it.
    wb_queue_free(queue);
    wb_buf_free(before);
    wb_buf_free(data);
    wb_buf_free(back);
    return code;
}

int main(int argc, char **argv)
{
    struct wb_device *device;
    struct wb_device_info info;
    struct wb_disk *disk = NULL;
    struct wb_namespace ns;
    struct wb_arena *arena = NULL;
    struct wb_pool *pool = NULL;
    int code = 1;

    if (argc > 2) {
        fprintf(stderr, "usage: hello_nvme [TARGET]\n");
        return 2;
    }
    device = wb_device_open(argc > 1 ? argv[1] : "sim:nvme,size=64M");
    if (!device) {
        failed("no device");
        return wb_errno() == EINVAL ? 2 : 1;
    }
    if (wb_device_info(device, &info) < 0 || !(disk = wb_disk_open(device, NULL))) {
        failed(wb_device_name(device));
        goto end;
    }
    printf("%s: %04x:%04x, driver %s\n", wb_disk_name(disk), info.vendor_id, info.device_id, wb_disk_driver(disk));
    if (wb_disk_namespaces(disk, &ns, 1) < 1) {
        fprintf(stderr, "hello_nvme: there is no usable namespace\n");
        goto end;
    }
    printf("namespace %" PRIu32 ": %" PRIu64 " blocks of %" PRIu32 " bytes\n", ns.nsid, ns.blocks, ns.block_size);

    // Memory: an arena that the device is let into, and equal buffers in it.
    arena = wb_arena_new(1 << 20);
    if (!arena || wb_disk_attach(disk, arena) < 0 || !(pool = wb_pool_new(arena, 4, ns.block_size, ns.block_size))) {
        failed("no memory");
        goto end;
    }
    code = run(disk, &ns, pool);
end:
    wb_pool_free(pool);
    wb_arena_free(arena);
    wb_disk_free(disk);
    wb_device_free(device);
    return code;
}
