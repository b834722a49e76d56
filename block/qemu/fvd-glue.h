/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of the glue share. The glue translates between QEMU's block
 * layer and FVD's core (fvd/fvd.h) and decides nothing that the core could.
 */
#ifndef BLOCK_FVD_GLUE_H
#define BLOCK_FVD_GLUE_H

#include "block/block_int.h"
#include "qemu/queue.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "fvd/fvd.h"

#define FVD_OPT_DATA_FILE_FMT      "data_file_fmt"
#define FVD_OPT_BLOCK_SIZE         "block_size"
#define FVD_OPT_COMPACT_IMAGE      "compact_image"
#define FVD_OPT_CHUNK_SIZE         "chunk_size"
#define FVD_OPT_STORAGE_GROW_UNIT  "storage_grow_unit"
#define FVD_OPT_JOURNAL_SIZE       "journal_size"
#define FVD_OPT_JOURNAL_UNIT       "journal_unit"
#define FVD_OPT_DETECT_SPARSE_HOLE "detect_sparse_hole"
#define FVD_OPT_COPY_ON_READ       "copy_on_read"

/* Those that an image records, for create and amend alike. */
#define FVD_FILL_OPTS                                                         \
    {                                                                         \
        .name = FVD_OPT_COPY_ON_READ,                                         \
        .type = QEMU_OPT_BOOL,                                                \
        .help = "Keep what guests read from the base image (default: off)"    \
    }, {                                                                      \
        .name = "max_outstanding_copy_on_read_data",                          \
        .type = QEMU_OPT_SIZE,                                                \
        .help = "Memory for what was read and is not stored yet"              \
    }, {                                                                      \
        .name = "prefetch_start_delay",                                       \
        .type = QEMU_OPT_NUMBER,                                              \
        .help = "Seconds from opening to the first request of prefetch "      \
                "(default: -1, no prefetch)"                                  \
    }, {                                                                      \
        .name = "num_prefetch_slots",                                         \
        .type = QEMU_OPT_NUMBER,                                              \
        .help = "Requests of prefetch in flight, at most"                     \
    }, {                                                                      \
        .name = "bytes_per_prefetch",                                         \
        .type = QEMU_OPT_SIZE,                                                \
        .help = "Largest request of prefetch"                                 \
    }, {                                                                      \
        .name = "prefetch_min_read_throughput",                               \
        .type = QEMU_OPT_NUMBER,                                              \
        .help = "KiB/s; below it prefetch pauses"                             \
    }, {                                                                      \
        .name = "prefetch_max_read_throughput",                               \
        .type = QEMU_OPT_NUMBER,                                              \
        .help = "KiB/s that prefetch reads, at most"                          \
    }, {                                                                      \
        .name = "prefetch_min_write_throughput",                              \
        .type = QEMU_OPT_NUMBER,                                              \
        .help = "KiB/s; below it prefetch pauses, too"                        \
    }, {                                                                      \
        .name = "prefetch_max_write_throughput",                              \
        .type = QEMU_OPT_NUMBER,                                              \
        .help = "KiB/s that prefetch stores, at most"                         \
    }, {                                                                      \
        .name = "prefetch_throttle_time",                                     \
        .type = QEMU_OPT_NUMBER,                                              \
        .help = "Milliseconds of the longest of these pauses"                 \
    }, {                                                                      \
        .name = "prefetch_read_throughput_measure_time",                      \
        .type = QEMU_OPT_NUMBER,                                              \
        .help = "Milliseconds of a measurement of the base image"             \
    }, {                                                                      \
        .name = "prefetch_write_throughput_measure_time",                     \
        .type = QEMU_OPT_NUMBER,                                              \
        .help = "Milliseconds of a measurement of storing"                    \
    }

typedef struct FvdParkedTask FvdParkedTask;

/*
 * The core's mutex and the tasks that sleep until another task wakes them.
 * First member of everything that is handed to the core as its host.
 */
typedef struct FvdTasks {
    QemuMutex lock;
    QTAILQ_HEAD(, FvdParkedTask) parked;
} FvdTasks;

void fvd_tasks_init(FvdTasks *tasks);
void fvd_tasks_destroy(FvdTasks *tasks);

/* The part of fvd_host_ops that needs no files. */
void fvd_tasks_lock(void *host);
void fvd_tasks_unlock(void *host);
void *fvd_tasks_current(void *host);
void coroutine_fn fvd_tasks_park(void *host);
void fvd_tasks_wake(void *host, void *task);
void fvd_host_random(void *host, void *bytes, size_t length);
void fvd_host_release(void *host, void *memory);
void fvd_host_fill_guest_zero(void *host, void *guest, uint64_t guest_offset,
                              uint64_t length);
void fvd_host_copy_to_guest(void *host, void *guest, uint64_t guest_offset,
                            const void *memory, uint64_t length);
uint64_t fvd_host_now(void *host);

/* A list of slices as one QEMUIOVector. */
void fvd_qiov_from_slices(QEMUIOVector *qiov, const struct fvd_slice *slices,
                          size_t count);
BdrvRequestFlags fvd_flags_to_qemu(uint32_t flags);
PreallocMode fvd_prealloc_mode(enum fvd_preallocation mode);
int fvd_preallocation_from_qemu(PreallocMode mode,
                                enum fvd_preallocation *result, Error **errp);
/* What the block layer says of a piece of a file, as extent() wants it. */
int fvd_extent_from_status(int status, int64_t count, uint64_t length,
                           bool *zero, uint64_t *run);

typedef struct BDRVFvdState BDRVFvdState;

typedef struct FvdTask FvdTask;

typedef struct FvdTimer {
    BDRVFvdState *s;
    enum fvd_timer which;
    QEMUTimer *timer;
    int64_t deadline; /* in ns of FVD_CLOCK; negative: not armed */
} FvdTimer;

/*
 * The virtual clock, which stops with the VM, does not run at all in qemu-nbd
 * and qemu-storage-daemon. An image that was handed over to another process is
 * not written to all the same: inactivation leaves nothing to be committed.
 */
#define FVD_CLOCK QEMU_CLOCK_REALTIME

typedef enum FvdLife {
    FVD_LOADED,    /* the header only: qemu-img info and check */
    FVD_READ_ONLY,
    FVD_WRITABLE,
} FvdLife;

/* How the image fills itself, as far as the options of its node say. */
typedef struct FvdFillOptions {
    struct fvd_fill fill;
    bool paused;
} FvdFillOptions;

struct BDRVFvdState {
    FvdTasks tasks;
    BlockDriverState *bs;
    fvd_image *image;
    FvdLife life;

    /*
     * A data file of its own holds the guest's data, else bs->file does. It is
     * not opened for qemu-img info: that shall touch no file but the image.
     */
    bool has_data_file;
    BdrvChild *data_file;

    /* From the header, for those who ask often. */
    int64_t virtual_size;
    uint32_t block_size; /* 0: no block can come from the backing file */
    bool baseless;       /* made without a base: none can be put below it */
    bool never_writable; /* of January 2011 */
    bool compact;        /* what is not stored reads as zeros, wherever the file lies */
    bool without_base;   /* none is attached: nothing is to be kept of it */
    bool handed_over;    /* another process may use the file: nothing in the background */

    /* Guarded by tasks.lock. */
    FvdTimer timers[FVD_TIMER_COUNT];
    bool quiesced; /* armed timers wait for the end of the drained section */
    QSIMPLEQ_HEAD(, FvdTask) held_back; /* until the drained section ends */

    unsigned int coroutines; /* of our own; atomic */

    bool filled; /* the base is not needed any more, and is to be detached */
    FvdFillOptions fill_options;

    bool report_findings; /* in a check: warn() speaks to its user */
};

/* Host of an open image: its children, its AioContext. */
extern const struct fvd_host_ops fvd_node_ops;

void fvd_node_host_init(BDRVFvdState *s, BlockDriverState *bs);
void fvd_node_host_destroy(BDRVFvdState *s);
/*
 * Read or write a piece of the data file that fvd_is_here() found: requests
 * of data that is here pass with no more than this.
 */
int coroutine_fn GRAPH_RDLOCK
fvd_pass_through(BDRVFvdState *s, bool write, uint64_t data_offset,
                 uint64_t bytes, QEMUIOVector *qiov, size_t qiov_offset,
                 BdrvRequestFlags flags);
void fvd_attach_timers(BDRVFvdState *s, AioContext *context);
void fvd_detach_timers(BDRVFvdState *s);
/* Begin and end of a drained section, of which there is one at a time. */
void fvd_quiesce_host(BDRVFvdState *s);
void fvd_resume_host(BDRVFvdState *s);
/* Afterwards no coroutine of ours is left. For an image that was stopped. */
void fvd_end_tasks(BDRVFvdState *s);
/* To be called once s->image is set. */
void fvd_host_has_image(BDRVFvdState *s);

/*
 * The storage of a compact image on a device is made longer by others. Ask for
 * QEMU's write-threshold event when no more than one growth step is left.
 */
void GRAPH_RDLOCK fvd_warn_of_full_storage(BDRVFvdState *s,
                                           const struct fvd_info *info);

/* By whatever names: one file. */
bool fvd_same_file(const char *a, const char *b);
/* Is it a file that an image may name? Not a device, not a monitor's fd set. */
bool fvd_may_be_named(const char *path);

/* Run a job of the core from outside of coroutines, with the graph locked. */
typedef int coroutine_fn FvdJob(BlockDriverState *bs, void *opaque);
int fvd_call(BlockDriverState *bs, FvdJob *job, void *opaque);

/* fvd-fill.c */
void fvd_fill_init_options(void);
const char *const *fvd_fill_mutable_options(void);
int fvd_fill_from_options(QDict *options, FvdFillOptions *to, Error **errp);
int fvd_fill_apply(BDRVFvdState *s, const FvdFillOptions *options,
                   Error **errp);
void fvd_fill_from_create(const BlockdevCreateOptionsFvd *from,
                          struct fvd_fill *to);
void fvd_fill_tell(BDRVFvdState *s, ImageInfoSpecificFvd *info);
extern QemuOptsList fvd_amend_opts;
int GRAPH_RDLOCK
fvd_amend_options(BlockDriverState *bs, QemuOpts *opts,
                  BlockDriverAmendStatusCB *status_cb, void *cb_opaque,
                  bool force, Error **errp);
BlockStatsSpecific *fvd_get_specific_stats(BlockDriverState *bs);
/* In the main loop, soon; from any thread. */
void fvd_let_base_go(BDRVFvdState *s);

/* fvd-create.c */
extern QemuOptsList fvd_create_opts;

int coroutine_fn GRAPH_UNLOCKED
fvd_co_create(BlockdevCreateOptions *options, Error **errp);
int coroutine_fn GRAPH_UNLOCKED
fvd_co_create_opts(BlockDriver *drv, const char *filename, QemuOpts *opts,
                   Error **errp);
BlockMeasureInfo *fvd_measure_image(QemuOpts *opts, BlockDriverState *in_bs,
                                    Error **errp);

#endif /* BLOCK_FVD_GLUE_H */
