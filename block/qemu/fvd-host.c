/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QEMU as the host of an open FVD image: struct fvd_host_ops over the node's
 * children, coroutines, mutex and timers.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/coroutines.h"
#include "block/write-threshold.h"
#include "crypto/random.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/madvise.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "fvd-glue.h"
#include "trace.h"

/* ------------------------------------------------------------------- tasks */

struct FvdParkedTask {
    Coroutine *co;
    bool woken;
    QTAILQ_ENTRY(FvdParkedTask) next;
};

void fvd_tasks_init(FvdTasks *tasks)
{
    qemu_mutex_init(&tasks->lock);
    QTAILQ_INIT(&tasks->parked);
}

void fvd_tasks_destroy(FvdTasks *tasks)
{
    assert(QTAILQ_EMPTY(&tasks->parked));
    qemu_mutex_destroy(&tasks->lock);
}

void fvd_tasks_lock(void *host)
{
    FvdTasks *tasks = host;

    qemu_mutex_lock(&tasks->lock);
}

void fvd_tasks_unlock(void *host)
{
    FvdTasks *tasks = host;

    qemu_mutex_unlock(&tasks->lock);
}

void *fvd_tasks_current(void *host)
{
    return qemu_coroutine_self();
}

/*
 * A wake between our unlock and our yield is not lost: a waker in this thread
 * cannot run before we yield, and one in another thread only schedules us, in
 * the event loop of this thread. @woken makes entries for other reasons
 * harmless.
 */
void coroutine_fn fvd_tasks_park(void *host)
{
    FvdTasks *tasks = host;
    FvdParkedTask *self = g_new0(FvdParkedTask, 1);

    self->co = qemu_coroutine_self();
    QTAILQ_INSERT_TAIL(&tasks->parked, self, next);
    while (!self->woken) {
        qemu_mutex_unlock(&tasks->lock);
        qemu_coroutine_yield();
        qemu_mutex_lock(&tasks->lock);
    }
    QTAILQ_REMOVE(&tasks->parked, self, next);
    g_free(self);
}

/*
 * The mutex is held here, so the woken coroutine must not be entered: in a
 * coroutine aio_co_wake() only queues it.
 */
void fvd_tasks_wake(void *host, void *task)
{
    FvdTasks *tasks = host;
    FvdParkedTask *parked;

    assert(qemu_in_coroutine());
    QTAILQ_FOREACH(parked, &tasks->parked, next) {
        if (parked->co == task && !parked->woken) {
            parked->woken = true;
            aio_co_wake(parked->co);
            return;
        }
    }
}

/* ------------------------------------------------------------------ memory */

void fvd_host_release(void *host, void *memory)
{
    qemu_vfree(memory);
}

void fvd_host_fill_guest_zero(void *host, void *guest, uint64_t guest_offset,
                              uint64_t length)
{
    qemu_iovec_memset(guest, guest_offset, 0, length);
}

void fvd_host_copy_to_guest(void *host, void *guest, uint64_t guest_offset,
                            const void *memory, uint64_t length)
{
    qemu_iovec_from_buf(guest, guest_offset, memory, length);
}

uint64_t fvd_host_now(void *host)
{
    return qemu_clock_get_ns(FVD_CLOCK);
}

void fvd_host_random(void *host, void *bytes, size_t length)
{
    uint8_t *to = bytes;

    if (qcrypto_random_bytes(bytes, length, NULL) == 0) {
        return;
    }
    /* What it is used for wants to be unique, not secret. */
    for (size_t i = 0; i < length; i++) {
        to[i] = g_random_int_range(0, 256);
    }
}

void fvd_qiov_from_slices(QEMUIOVector *qiov, const struct fvd_slice *slices,
                          size_t count)
{
    qemu_iovec_init(qiov, count);
    for (size_t i = 0; i < count; i++) {
        if (slices[i].guest) {
            qemu_iovec_concat(qiov, slices[i].guest, slices[i].guest_offset,
                              slices[i].length);
        } else {
            qemu_iovec_add(qiov, slices[i].memory, slices[i].length);
        }
    }
}

PreallocMode fvd_prealloc_mode(enum fvd_preallocation mode)
{
    switch (mode) {
    case FVD_PREALLOC_OFF:
    case FVD_PREALLOC_METADATA: /* asks nothing of the files below */
        return PREALLOC_MODE_OFF;
    case FVD_PREALLOC_FALLOC:
        return PREALLOC_MODE_FALLOC;
    case FVD_PREALLOC_FULL:
        return PREALLOC_MODE_FULL;
    }
    g_assert_not_reached();
}

int fvd_extent_from_status(int status, int64_t count, uint64_t length,
                           bool *zero, uint64_t *run)
{
    if (status < 0) {
        return status;
    }
    /* Nothing is counted past the end, and it reads as zeros. */
    *zero = (status & BDRV_BLOCK_ZERO) || count == 0;
    *run = count ?: length;
    return 0;
}

/*
 * FVD_REQ_WRITE_UNCHANGED ends here: what leaves the guest's view unchanged
 * still changes the file below, e.g. when copied blocks are written.
 */
BdrvRequestFlags fvd_flags_to_qemu(uint32_t flags)
{
    BdrvRequestFlags result = 0;

    if (flags & FVD_REQ_FUA) {
        result |= BDRV_REQ_FUA;
    }
    if (flags & FVD_REQ_MAY_UNMAP) {
        result |= BDRV_REQ_MAY_UNMAP;
    }
    if (flags & FVD_REQ_NO_FALLBACK) {
        result |= BDRV_REQ_NO_FALLBACK;
    }
    if (flags & FVD_REQ_REGISTERED_BUF) {
        result |= BDRV_REQ_REGISTERED_BUF;
    }
    return result;
}

/* NULL for a base where there is none, and for a data file left alone. */
static BdrvChild * GRAPH_RDLOCK fvd_child(BDRVFvdState *s, enum fvd_file file)
{
    switch (file) {
    case FVD_FILE_IMAGE:
        return s->bs->file;
    case FVD_FILE_DATA:
        return s->has_data_file ? s->data_file : s->bs->file;
    case FVD_FILE_BASE:
        return s->bs->backing;
    }
    g_assert_not_reached();
}

/* The child for everything but reads and questions. */
static BdrvChild * GRAPH_RDLOCK
fvd_writable_child(BDRVFvdState *s, enum fvd_file file)
{
    assert(file != FVD_FILE_BASE);
    return fvd_child(s, file);
}

/*
 * Bitmaps and tables of large disks are gone through at open. What that costs is mostly the page
 * faults, so there should be few.
 */
#define FVD_LARGE_PAGE (2 * MiB)
#define FVD_LARGE_MEMORY (4 * MiB)

/* Aligned for all children, as a buffer may travel from one to another. */
static void * GRAPH_RDLOCK fvd_node_allocate(void *host, size_t size)
{
    BDRVFvdState *s = host;
    size_t alignment = 1;
    void *memory;

    for (int file = FVD_FILE_IMAGE; file <= FVD_FILE_BASE; file++) {
        BdrvChild *child = fvd_child(s, file);
        if (child) {
            alignment = MAX(alignment, bdrv_opt_mem_align(child->bs));
        }
    }
    if (size < FVD_LARGE_MEMORY) {
        return qemu_try_memalign(MAX(alignment, 4096), MAX(size, 1));
    }
    memory = qemu_try_memalign(MAX(alignment, FVD_LARGE_PAGE), size);
    if (memory) {
        qemu_madvise(memory, size, QEMU_MADV_HUGEPAGE);
    }
    return memory;
}

/* --------------------------------------------------------------------- I/O */

static int coroutine_fn GRAPH_RDLOCK
fvd_transfer(BdrvChild *child, bool write, uint64_t offset, QEMUIOVector *qiov,
             size_t qiov_offset, uint64_t length, BdrvRequestFlags flags)
{
    int ret;

    if (write) {
        ret = bdrv_co_pwritev_part(child, offset, length, qiov, qiov_offset,
                                   flags);
    } else {
        ret = bdrv_co_preadv_part(child, offset, length, qiov, qiov_offset,
                                  flags);
    }
    return MIN(ret, 0);
}

/*
 * A guest's buffer and ours in one request can have more elements than the
 * system's calls take.
 */
static int coroutine_fn GRAPH_RDLOCK
fvd_transfer_bounced(BdrvChild *child, bool write, uint64_t offset,
                     QEMUIOVector *qiov, BdrvRequestFlags flags)
{
    QEMUIOVector bounced;
    void *memory = qemu_try_blockalign(child->bs, qiov->size);
    int ret;

    if (!memory) {
        return -ENOMEM;
    }
    qemu_iovec_init_buf(&bounced, memory, qiov->size);
    if (write) {
        qemu_iovec_to_buf(qiov, 0, memory, qiov->size);
    }
    ret = fvd_transfer(child, write, offset, &bounced, 0, bounced.size, flags);
    if (ret == 0 && !write) {
        qemu_iovec_from_buf(qiov, 0, memory, qiov->size);
    }
    qemu_vfree(memory);
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_transfer_slices(BdrvChild *child, bool write, uint64_t offset,
                    const struct fvd_slice *slices, size_t count,
                    uint32_t core_flags)
{
    BdrvRequestFlags flags = fvd_flags_to_qemu(core_flags);
    QEMUIOVector qiov;
    int ret;

    if (count == 1 && slices->guest) {
        return fvd_transfer(child, write, offset, slices->guest,
                            slices->guest_offset, slices->length, flags);
    }

    flags &= ~BDRV_REQ_REGISTERED_BUF; /* the core's memory is not */
    if (count == 1) {
        qemu_iovec_init_buf(&qiov, slices->memory, slices->length);
        return fvd_transfer(child, write, offset, &qiov, 0, slices->length,
                            flags);
    }

    fvd_qiov_from_slices(&qiov, slices, count);
    if (qiov.niov > IOV_MAX) {
        ret = fvd_transfer_bounced(child, write, offset, &qiov, flags);
    } else {
        ret = fvd_transfer(child, write, offset, &qiov, 0, qiov.size, flags);
    }
    qemu_iovec_destroy(&qiov);
    return ret;
}

static void fvd_zero_slices(const struct fvd_slice *slices, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (slices[i].guest) {
            qemu_iovec_memset(slices[i].guest, slices[i].guest_offset, 0,
                              slices[i].length);
        } else {
            memset(slices[i].memory, 0, slices[i].length);
        }
    }
}

static int coroutine_fn GRAPH_RDLOCK
fvd_node_read(void *host, enum fvd_file file, uint64_t offset,
              const struct fvd_slice *slices, size_t count, uint32_t flags)
{
    BdrvChild *child = fvd_child(host, file);

    if (child) {
        /* The block layer reads zeros past the end of a file. */
        return fvd_transfer_slices(child, false, offset, slices, count, flags);
    }
    if (file != FVD_FILE_BASE) {
        return -ENOMEDIUM;
    }
    fvd_zero_slices(slices, count);
    return 0;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_node_write(void *host, enum fvd_file file, uint64_t offset,
               const struct fvd_slice *slices, size_t count, uint32_t flags)
{
    BdrvChild *child = fvd_writable_child(host, file);

    return child ? fvd_transfer_slices(child, true, offset, slices, count,
                                       flags) : -ENOMEDIUM;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_node_write_zeroes(void *host, enum fvd_file file, uint64_t offset,
                      uint64_t length, uint32_t flags)
{
    BdrvChild *child = fvd_writable_child(host, file);
    int ret;

    if (!child) {
        return -ENOMEDIUM;
    }
    ret = bdrv_co_pwrite_zeroes(child, offset, length,
                                fvd_flags_to_qemu(flags));
    return MIN(ret, 0);
}

static int coroutine_fn GRAPH_RDLOCK
fvd_node_discard(void *host, enum fvd_file file, uint64_t offset,
                 uint64_t length)
{
    BdrvChild *child = fvd_writable_child(host, file);

    return child ? bdrv_co_pdiscard(child, offset, length) : -ENOMEDIUM;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_node_flush(void *host, enum fvd_file file)
{
    BdrvChild *child = fvd_writable_child(host, file);

    return child ? bdrv_co_flush(child->bs) : 0;
}

static int64_t coroutine_fn GRAPH_RDLOCK
fvd_node_length(void *host, enum fvd_file file)
{
    BdrvChild *child = fvd_child(host, file);

    return child ? bdrv_co_getlength(child->bs) : -ENOMEDIUM;
}

/* A threshold that somebody else set is not ours to move. */
void fvd_warn_of_full_storage(BDRVFvdState *s, const struct fvd_info *info)
{
    BdrvChild *child = fvd_child(s, FVD_FILE_DATA);
    int64_t length = bdrv_co_getlength(child->bs);
    uint64_t all = info->data_offset + /* room for every chunk */
                   QEMU_ALIGN_UP(info->virtual_size, info->chunk_size);

    if (child->bs->supported_truncate_flags & BDRV_REQ_ZERO_WRITE ||
        length < 0 || length >= all || bdrv_write_threshold_get(child->bs)) {
        return;
    }
    /* At 0 it would be off. */
    bdrv_write_threshold_set(child->bs,
                             MAX(length - (int64_t)info->storage_grow_unit, 1));
}

static int coroutine_fn GRAPH_RDLOCK
fvd_node_resize(void *host, enum fvd_file file, uint64_t length,
                enum fvd_preallocation mode)
{
    BDRVFvdState *s = host;
    BdrvChild *child = fvd_writable_child(host, file);
    int64_t old = fvd_node_length(host, file);
    int ret;

    if (old < 0) {
        return old;
    }
    ret = bdrv_co_truncate(child, length, false, fvd_prealloc_mode(mode),
                           length > old ? BDRV_REQ_ZERO_WRITE : 0, NULL);
    if (ret < 0 && length > old) {
        /* The block layer looks at the length of a device when it sets it. */
        bdrv_co_truncate(child, old, false, PREALLOC_MODE_OFF, 0, NULL);
        if (file == FVD_FILE_DATA && s->compact &&
            fvd_node_length(host, file) > old) {
            g_autofree struct fvd_info *info = g_new(struct fvd_info, 1);

            fvd_get_info(s->image, info);
            fvd_warn_of_full_storage(s, info);
        }
    }
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_node_extent(void *host, enum fvd_file file, uint64_t offset,
                uint64_t length, bool *zero, uint64_t *run)
{
    BdrvChild *child = fvd_child(host, file);
    int64_t count = 0;
    int ret = 0;

    if (child) {
        ret = bdrv_co_block_status_above(child->bs, NULL, offset, length,
                                         &count, NULL, NULL);
    }
    return fvd_extent_from_status(ret, count, length, zero, run);
}

/* It is asked for files that are being created; those are not ours. */
static bool fvd_node_has_zero_init(void *host, enum fvd_file file)
{
    return false;
}

/* ----------------------------------------------------- tasks of their own */

struct FvdTask {
    BDRVFvdState *s;
    void (*run)(void *opaque);
    void *opaque;
    QSIMPLEQ_ENTRY(FvdTask) next;
};

/*
 * With the lock held: may a task begin? In a drained section only if somebody
 * waits, for it may be what he waits for, and the section waits for him.
 */
static bool fvd_take_off(BDRVFvdState *s)
{
    if (s->quiesced && QTAILQ_EMPTY(&s->tasks.parked)) {
        return false;
    }
    bdrv_inc_in_flight(s->bs);
    return true;
}

/* The last that a coroutine of ours does with the node: it may be gone then. */
static void fvd_coroutine_ends(BDRVFvdState *s)
{
    qatomic_dec(&s->coroutines);
    aio_wait_kick();
}

/*
 * Not in flight before the graph is locked: who changes the graph drains with
 * the lock held, and would wait for us who wait for the lock.
 */
static void coroutine_fn fvd_task_entry(void *opaque)
{
    FvdTask *task = opaque;
    BDRVFvdState *s = task->s;
    bool runs;

    WITH_GRAPH_RDLOCK_GUARD() {
        WITH_QEMU_LOCK_GUARD(&s->tasks.lock) {
            runs = fvd_take_off(s);
            if (!runs) {
                QSIMPLEQ_INSERT_TAIL(&s->held_back, task, next);
            }
        }
        if (runs) {
            task->run(task->opaque);
            bdrv_dec_in_flight(s->bs);
            g_free(task);
        }
    }
    fvd_coroutine_ends(s);
}

static void fvd_schedule_task(FvdTask *task)
{
    qatomic_inc(&task->s->coroutines);
    aio_co_schedule(bdrv_get_aio_context(task->s->bs),
                    qemu_coroutine_create(fvd_task_entry, task));
}

/* With the lock held. */
static void fvd_schedule_held_back(BDRVFvdState *s)
{
    while (!QSIMPLEQ_EMPTY(&s->held_back)) {
        FvdTask *task = QSIMPLEQ_FIRST(&s->held_back);

        QSIMPLEQ_REMOVE_HEAD(&s->held_back, next);
        fvd_schedule_task(task);
    }
}

/* With the lock held, in any thread, in a coroutine or not. */
static void fvd_node_start_task(void *host, void (*run)(void *opaque),
                                void *opaque)
{
    FvdTask *task = g_new(FvdTask, 1);

    *task = (FvdTask) { .s = host, .run = run, .opaque = opaque };
    fvd_schedule_task(task);
}

/* What is held back may be what we are going to wait for. */
static void coroutine_fn fvd_node_park(void *host)
{
    fvd_schedule_held_back(host);
    fvd_tasks_park(host);
}

void fvd_end_tasks(BDRVFvdState *s)
{
    GLOBAL_STATE_CODE();
    BDRV_POLL_WHILE(s->bs, qatomic_read(&s->coroutines) > 0);
    assert(QSIMPLEQ_EMPTY(&s->held_back));
}

/* ------------------------------------------------------------------ timers */

/* With the lock held: the deadline of a drained section's timer stays. */
static bool fvd_timer_takes_off(FvdTimer *timer)
{
    if (timer->s->quiesced || timer->deadline < 0 ||
        timer->deadline > qemu_clock_get_ns(FVD_CLOCK)) {
        return false;
    }
    timer->deadline = -1;
    bdrv_inc_in_flight(timer->s->bs);
    return true;
}

static void coroutine_fn fvd_timer_entry(void *opaque)
{
    FvdTimer *timer = opaque;
    BDRVFvdState *s = timer->s;
    bool fires;

    WITH_GRAPH_RDLOCK_GUARD() {
        WITH_QEMU_LOCK_GUARD(&s->tasks.lock) {
            fires = fvd_timer_takes_off(timer);
        }
        if (fires) {
            trace_fvd_timer_fires(s->bs, timer->which);
            fvd_timer_expired(s->image, timer->which);
            bdrv_dec_in_flight(s->bs);
        }
    }
    fvd_coroutine_ends(s);
}

static void fvd_timer_cb(void *opaque)
{
    FvdTimer *timer = opaque;

    qatomic_inc(&timer->s->coroutines);
    qemu_coroutine_enter(qemu_coroutine_create(fvd_timer_entry, timer));
}

/* Far enough away, and no sum overflows. */
#define FVD_LONGEST_DELAY (1000000LL * NANOSECONDS_PER_SECOND)

/* With the lock held, in any thread. */
static void fvd_node_arm_timer(void *host, enum fvd_timer which,
                               uint64_t delay_ns)
{
    BDRVFvdState *s = host;
    FvdTimer *timer = &s->timers[which];

    timer->deadline = qemu_clock_get_ns(FVD_CLOCK) +
                      MIN(delay_ns, FVD_LONGEST_DELAY);
    if (timer->timer && !s->quiesced) {
        timer_mod(timer->timer, timer->deadline);
    }
}

static void fvd_node_cancel_timer(void *host, enum fvd_timer which)
{
    BDRVFvdState *s = host;
    FvdTimer *timer = &s->timers[which];

    timer->deadline = -1;
    if (timer->timer) {
        timer_del(timer->timer);
    }
}

static void fvd_stop_timers(BDRVFvdState *s)
{
    QEMU_LOCK_GUARD(&s->tasks.lock);

    s->quiesced = true;
    for (int i = 0; i < FVD_TIMER_COUNT; i++) {
        if (s->timers[i].timer) {
            timer_del(s->timers[i].timer);
        }
    }
}

void fvd_quiesce_host(BDRVFvdState *s)
{
    fvd_stop_timers(s);
    if (s->image) {
        fvd_quiesce(s->image, true);
    }
}

void fvd_host_has_image(BDRVFvdState *s)
{
    if (s->quiesced) {
        fvd_quiesce(s->image, true);
    }
}

/* Deadlines are kept, so drained sections do not put off a commit for ever. */
static void fvd_go_on(BDRVFvdState *s)
{
    QEMU_LOCK_GUARD(&s->tasks.lock);

    s->quiesced = false;
    for (int i = 0; i < FVD_TIMER_COUNT; i++) {
        FvdTimer *timer = &s->timers[i];
        if (timer->timer && timer->deadline >= 0) {
            timer_mod(timer->timer, timer->deadline);
        }
    }
    fvd_schedule_held_back(s);
}

/* A node that was opened while all nodes were drained never saw it begin. */
void fvd_resume_host(BDRVFvdState *s)
{
    if (!s->quiesced) {
        return;
    }
    fvd_go_on(s);
    if (s->image) {
        fvd_quiesce(s->image, false);
    }
}

/*
 * In the main loop, timers of an AioContext end with a millisecond, as glib
 * counts; the main loop's own are exact, which prefetch beside a guest needs.
 * They do not run in nested loops, so the commit timer is not one of them.
 */
static QEMUTimer *fvd_new_timer(FvdTimer *timer, AioContext *context)
{
    if (timer->which == FVD_TIMER_PREFETCH &&
        context == qemu_get_aio_context()) {
        return timer_new_ns(FVD_CLOCK, fvd_timer_cb, timer);
    }
    return aio_timer_new(context, FVD_CLOCK, SCALE_NS, fvd_timer_cb, timer);
}

void fvd_attach_timers(BDRVFvdState *s, AioContext *context)
{
    QEMU_LOCK_GUARD(&s->tasks.lock);

    for (int i = 0; i < FVD_TIMER_COUNT; i++) {
        FvdTimer *timer = &s->timers[i];

        assert(!timer->timer);
        timer->timer = fvd_new_timer(timer, context);
        if (timer->deadline >= 0 && !s->quiesced) {
            timer_mod(timer->timer, timer->deadline);
        }
    }
}

void fvd_detach_timers(BDRVFvdState *s)
{
    QEMU_LOCK_GUARD(&s->tasks.lock);

    for (int i = 0; i < FVD_TIMER_COUNT; i++) {
        timer_free(s->timers[i].timer);
        s->timers[i].timer = NULL;
    }
}

/* ----------------------------------------------------------- announcements */

/*
 * Steps of the core and the events of the blkdebug driver that stand for
 * them. Events of QEMU's own formats are reused, the ones closest in meaning;
 * each of the steps that write has one of its own.
 *
 *   core                         blkdebug
 *   READ_IMAGE                   read_aio
 *   READ_BASE                    read_backing_aio
 *   WRITE_DATA                   write_aio
 *   COW_READ                     cow_read
 *   COW_WRITE                    cow_write, then write_aio
 *   COMMIT_FLUSH                 flush_to_disk
 *   JOURNAL_WRITE                l2_update
 *   JOURNAL_FLUSH                l2_alloc_write
 *   HOME_WRITE                   refblock_update
 *   HOME_FLUSH                   refblock_alloc_hookup
 *   HEADER_COPY                  reftable_update
 *   HEADER_COPY_FLUSH            reftable_grow
 *   HEADER_PRIMARY               l1_update
 *   HEADER_PRIMARY_FLUSH         l1_grow_activate_table
 *   OPEN_READ                    l2_load
 *   FETCH_READ                   read_backing_aio
 *   FETCH_STORE                  cor_write
 *   FILLED                       none
 *
 * A guest flush also has flush_to_os, before anything else.
 */
static const struct FvdStep {
    const char *name;
    BlkdebugEvent event;
} fvd_steps[FVD_EVENT_COUNT] = {
    [FVD_EVENT_READ_IMAGE] = { "read-image", BLKDBG_READ_AIO },
    [FVD_EVENT_READ_BASE] = { "read-base", BLKDBG_READ_BACKING_AIO },
    [FVD_EVENT_WRITE_DATA] = { "write-data", BLKDBG_WRITE_AIO },
    [FVD_EVENT_COW_READ] = { "cow-read", BLKDBG_COW_READ },
    [FVD_EVENT_COW_WRITE] = { "cow-write", BLKDBG_COW_WRITE },
    [FVD_EVENT_COMMIT_FLUSH] = { "commit-flush", BLKDBG_FLUSH_TO_DISK },
    [FVD_EVENT_JOURNAL_WRITE] = { "journal-write", BLKDBG_L2_UPDATE },
    [FVD_EVENT_JOURNAL_FLUSH] = { "journal-flush", BLKDBG_L2_ALLOC_WRITE },
    [FVD_EVENT_HOME_WRITE] = { "home-write", BLKDBG_REFBLOCK_UPDATE },
    [FVD_EVENT_HOME_FLUSH] = { "home-flush", BLKDBG_REFBLOCK_ALLOC_HOOKUP },
    [FVD_EVENT_HEADER_COPY] = { "header-copy", BLKDBG_REFTABLE_UPDATE },
    [FVD_EVENT_HEADER_COPY_FLUSH] = { "header-copy-flush",
                                      BLKDBG_REFTABLE_GROW },
    [FVD_EVENT_HEADER_PRIMARY] = { "header-primary", BLKDBG_L1_UPDATE },
    [FVD_EVENT_HEADER_PRIMARY_FLUSH] = { "header-primary-flush",
                                         BLKDBG_L1_GROW_ACTIVATE_TABLE },
    [FVD_EVENT_OPEN_READ] = { "open-read", BLKDBG_L2_LOAD },
    [FVD_EVENT_FETCH_READ] = { "fetch-read", BLKDBG_READ_BACKING_AIO },
    [FVD_EVENT_FETCH_STORE] = { "fetch-store", BLKDBG_COR_WRITE },
    [FVD_EVENT_FILLED] = { "filled", BLKDBG_NONE },
};

static void coroutine_fn GRAPH_RDLOCK
fvd_node_announce(void *host, enum fvd_event event)
{
    BDRVFvdState *s = host;
    const struct FvdStep *step = &fvd_steps[event];

    trace_fvd_step(s->bs, step->name);
    if (event == FVD_EVENT_FILLED) {
        fvd_let_base_go(s);
        return; /* nothing is about to be done */
    }
    BLKDBG_CO_EVENT(s->bs->file, step->event);
    if (event == FVD_EVENT_COW_WRITE) {
        BLKDBG_CO_EVENT(s->bs->file, BLKDBG_WRITE_AIO);
    }
}

static void GRAPH_RDLOCK fvd_node_warn(void *host, const char *sentence)
{
    BDRVFvdState *s = host;

    trace_fvd_warn(s->bs, sentence);
    if (s->report_findings) {
        fprintf(stderr, "%s\n", sentence);
    } else {
        /* Our own name is not known before we are open. */
        warn_report("fvd image '%s': %s", s->bs->file->bs->filename, sentence);
    }
}

/* ------------------------------------------------------------ pass through */

int coroutine_fn GRAPH_RDLOCK
fvd_pass_through(BDRVFvdState *s, bool write, uint64_t data_offset,
                 uint64_t bytes, QEMUIOVector *qiov, size_t qiov_offset,
                 BdrvRequestFlags flags)
{
    fvd_node_announce(s, write ? FVD_EVENT_WRITE_DATA : FVD_EVENT_READ_IMAGE);
    return fvd_transfer(fvd_child(s, FVD_FILE_DATA), write, data_offset, qiov,
                        qiov_offset, bytes, flags & BDRV_REQ_REGISTERED_BUF);
}

/* ------------------------------------------------------------------- table */

void fvd_node_host_init(BDRVFvdState *s, BlockDriverState *bs)
{
    s->bs = bs;
    fvd_tasks_init(&s->tasks);
    QSIMPLEQ_INIT(&s->held_back);
    for (int i = 0; i < FVD_TIMER_COUNT; i++) {
        s->timers[i] = (FvdTimer) { .s = s, .which = i, .deadline = -1 };
    }
    fvd_attach_timers(s, bdrv_get_aio_context(bs));
}

void fvd_node_host_destroy(BDRVFvdState *s)
{
    fvd_detach_timers(s);
    fvd_tasks_destroy(&s->tasks);
}

const struct fvd_host_ops fvd_node_ops = {
    .read = fvd_node_read,
    .write = fvd_node_write,
    .write_zeroes = fvd_node_write_zeroes,
    .discard = fvd_node_discard,
    .flush = fvd_node_flush,
    .length = fvd_node_length,
    .resize = fvd_node_resize,
    .extent = fvd_node_extent,
    .has_zero_init = fvd_node_has_zero_init,
    .allocate = fvd_node_allocate,
    .release = fvd_host_release,
    .fill_guest_zero = fvd_host_fill_guest_zero,
    .copy_to_guest = fvd_host_copy_to_guest,
    .lock = fvd_tasks_lock,
    .unlock = fvd_tasks_unlock,
    .current_task = fvd_tasks_current,
    .park = fvd_node_park,
    .wake = fvd_tasks_wake,
    .start_task = fvd_node_start_task,
    .now = fvd_host_now,
    .arm_timer = fvd_node_arm_timer,
    .cancel_timer = fvd_node_cancel_timer,
    .announce = fvd_node_announce,
    .warn = fvd_node_warn,
    .random = fvd_host_random,
};
