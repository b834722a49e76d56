/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * FVD (Fast Virtual Disk) as a block driver of QEMU. The format and its
 * policy are in the core (fvd/fvd.h); what is here says the same in the
 * block layer's words.
 */

#include "qemu/osdep.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/block-gen.h"
#include "block/qdict.h"
#include "qapi/error.h"
#include "qapi/qapi-types-block-core.h"
#include "qobject/qdict.h"
#include "qobject/qstring.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/module.h"
#include "fvd-glue.h"
#include "trace.h"

#define FVD_RUNTIME_DATA_FILE "data-file"
#define FVD_NEVER_WRITABLE "FVD images of January 2011 (version 1) can only " \
                           "be opened read-only; 'qemu-img convert' makes " \
                           "an image that can be written to"

/* ------------------------------------------------ calls from the main loop */

typedef struct FvdCall {
    BdrvPollCo poll;
    BlockDriverState *bs;
    FvdJob * GRAPH_RDLOCK_PTR job;
    void *opaque;
    int ret;
} FvdCall;

static void coroutine_fn fvd_call_entry(void *opaque)
{
    FvdCall *call = opaque;

    WITH_GRAPH_RDLOCK_GUARD() {
        call->ret = call->job(call->bs, call->opaque);
    }
    call->poll.in_progress = false;
    aio_wait_kick();
}

/* The core runs in coroutines only; not all of BlockDriver does. */
int fvd_call(BlockDriverState *bs, FvdJob *job, void *opaque)
{
    FvdCall call = {
        .poll = {
            .ctx = bdrv_get_aio_context(bs),
            .in_progress = true,
        },
        .bs = bs,
        .job = job,
        .opaque = opaque,
    };

    call.poll.co = qemu_coroutine_create(fvd_call_entry, &call);
    bdrv_poll_co(&call.poll);
    return call.ret;
}

/* ---------------------------------------------------------- start and stop */

static int fvd_error_to_qemu(int ret, const struct fvd_error *error,
                             Error **errp)
{
    if (ret < 0) {
        error_setg(errp, "%s", error->text);
    }
    return ret;
}

/*
 * With BDRV_O_CHECK a damaged image must open, so that it can be judged, and
 * nothing may be repaired that was not asked for. With BDRV_O_NO_IO nobody is
 * going to read the disk, and the header says all that is asked.
 */
static FvdLife fvd_life_for_flags(int flags)
{
    if (flags & (BDRV_O_CHECK | BDRV_O_NO_IO)) {
        return FVD_LOADED;
    }
    return (flags & BDRV_O_RDWR) && !(flags & BDRV_O_INACTIVE) ? FVD_WRITABLE
                                                               : FVD_READ_ONLY;
}

/* A change of these is a change of the file below, by another program. */
static void fvd_take_over_info(BlockDriverState *bs,
                               const struct fvd_info *info)
{
    BDRVFvdState *s = bs->opaque;
    const char *base = info->base_fully_prefetched ? "" : info->base_img;

    s->virtual_size = info->virtual_size;
    /* It bounds requests that change the image. */
    s->block_size = info->bitmap_size && !info->base_fully_prefetched &&
                    !info->never_writable ? info->block_size : 0;
    s->baseless = info->bitmap_size == 0 && !info->base_img[0];
    s->compact = info->table_size != 0;
    bs->total_sectors = info->virtual_size / BDRV_SECTOR_SIZE;

    if (!g_str_equal(base, bs->backing_file)) {
        pstrcpy(bs->backing_file, sizeof(bs->backing_file), base);
        pstrcpy(bs->auto_backing_file, sizeof(bs->auto_backing_file), base);
    }
    if (base[0]) {
        pstrcpy(bs->backing_format, sizeof(bs->backing_format),
                info->base_img_fmt[0] ? info->base_img_fmt : "raw");
    }
}

/*
 * A process that was killed may have left writes in the host's cache. The core
 * flushes before it relies on what it reads, but the block layer passes no
 * flush down where nobody has written through its nodes.
 */
static void GRAPH_RDLOCK fvd_expect_foreign_writes(BlockDriverState *bs)
{
    BlockDriverState *node;

    for (node = bs->file->bs; node; node = bdrv_primary_bs(node)) {
        qatomic_inc(&node->write_gen);
    }
}

static int coroutine_fn GRAPH_RDLOCK
fvd_do_start(BlockDriverState *bs, FvdLife life, Error **errp)
{
    BDRVFvdState *s = bs->opaque;
    bool writable = life == FVD_WRITABLE;
    g_autofree struct fvd_info *info = g_new(struct fvd_info, 1);
    struct fvd_error error;
    int ret;

    assert(s->life == FVD_LOADED);
    if (life == FVD_LOADED) {
        return 0;
    }
    if (writable) {
        fvd_expect_foreign_writes(bs);
    }
    ret = fvd_start(s->image, writable ? FVD_START_WRITABLE
                                       : FVD_START_READ_ONLY, &error);
    if (ret < 0) {
        trace_fvd_start_failed(bs, writable, error.text);
        return fvd_error_to_qemu(ret, &error, errp);
    }
    s->life = life;
    fvd_get_info(s->image, info);
    fvd_take_over_info(bs, info);
    if (writable && s->compact) {
        fvd_warn_of_full_storage(s, info);
    }
    trace_fvd_start(bs, writable, info->clean_shutdown, info->journal_epoch,
                    info->blocks_here, info->blocks);
    return 0;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_do_stop(BlockDriverState *bs, void *opaque)
{
    BDRVFvdState *s = bs->opaque;
    int ret = fvd_stop(s->image);

    s->life = FVD_LOADED;
    trace_fvd_stop(bs, ret);
    return ret;
}

typedef struct FvdRestart {
    FvdLife life;
    Error **errp;
} FvdRestart;

/*
 * The node is drained, or nobody uses it.
 *
 * When not all could be written, the image stays stopped, and every request
 * fails: what a guest was told is written must not turn into what was there
 * before while it looks.
 */
static int coroutine_fn GRAPH_RDLOCK
fvd_do_restart(BlockDriverState *bs, void *opaque)
{
    FvdRestart *restart = opaque;
    int ret = fvd_do_stop(bs, NULL);

    if (ret < 0) {
        error_setg_errno(restart->errp, -ret,
                         "Could not bring the image to a clean state");
        return ret;
    }
    ret = fvd_do_start(bs, restart->life, restart->errp);
    if (ret < 0) {
        fvd_do_start(bs, FVD_READ_ONLY, NULL);
    }
    return ret;
}

/* ----------------------------------------------------------- opening: data */

bool fvd_same_file(const char *a, const char *b)
{
    struct stat stat_a, stat_b;

    return stat(a, &stat_a) == 0 && stat(b, &stat_b) == 0 &&
           stat_a.st_dev == stat_b.st_dev && stat_a.st_ino == stat_b.st_ino;
}

bool fvd_may_be_named(const char *path)
{
    struct stat status;

    return !strstart(path, "/dev/fdset/", NULL) &&
           (stat(path, &status) < 0 || S_ISREG(status.st_mode));
}

/*
 * The name comes from the image, which may be hostile: it is taken as the name
 * of a regular file in the image's directory or below the root, whatever it
 * looks like ("json:", "nbd:"), and not every file will do.
 */
static char * GRAPH_RDLOCK
fvd_data_file_path(BlockDriverState *bs, const struct fvd_info *info,
                   Error **errp)
{
    const char *image = bs->file->bs->exact_filename;
    const char *name = info->data_file;
    g_autofree char *dir = NULL;
    g_autofree char *path = NULL;
    g_autofree char *base = NULL;

    if (name[0] == '/') {
        path = g_strdup(name);
    } else {
        dir = bdrv_dirname(bs->file->bs, errp);
        if (!dir) {
            error_prepend(errp, "data_file '%s' is relative to the image: ",
                          name);
            return NULL;
        }
        path = g_strconcat(dir, name, NULL);
    }

    if (!fvd_may_be_named(path)) {
        error_setg(errp, "data_file '%s' is not a regular file; only the "
                   "option '" FVD_RUNTIME_DATA_FILE "' can name others", name);
        return NULL;
    }
    if (fvd_same_file(path, image)) {
        error_setg(errp, "data_file '%s' is the image itself", name);
        return NULL;
    }
    base = bdrv_get_full_backing_filename_from_filename(image, info->base_img,
                                                        NULL);
    if (base && fvd_same_file(path, base)) {
        error_setg(errp, "data_file '%s' is the base image, too", name);
        return NULL;
    }
    return g_steal_pointer(&path);
}

/* Options to open the data file that the image names. */
static int GRAPH_RDLOCK
fvd_name_data_file(BlockDriverState *bs, const struct fvd_info *info,
                   QDict *options, Error **errp)
{
    const char *format = info->data_file_fmt;
    g_autofree char *path = fvd_data_file_path(bs, info, errp);
    BlockDriver *drv;

    if (!path) {
        return -EINVAL;
    }
    if (format[0] == '\0' || g_str_equal(format, "raw")) {
        qdict_put_str(options, FVD_RUNTIME_DATA_FILE ".driver", "file");
        qdict_put_str(options, FVD_RUNTIME_DATA_FILE ".filename", path);
        return 0;
    }

    drv = bdrv_find_format(format);
    if (!drv || !drv->is_format || drv == bs->drv) {
        error_setg(errp, "data_file_fmt '%s' is not a format for a data file",
                   format);
        return -EINVAL;
    }
    qdict_put_str(options, FVD_RUNTIME_DATA_FILE ".driver", format);
    qdict_put_str(options, FVD_RUNTIME_DATA_FILE ".file.driver", "file");
    qdict_put_str(options, FVD_RUNTIME_DATA_FILE ".file.filename", path);
    return 0;
}

static bool fvd_has_child_option(const QDict *options, const char *child)
{
    const QDictEntry *entry;

    for (entry = qdict_first(options); entry;
         entry = qdict_next(options, entry)) {
        const char *rest;
        if (strstart(qdict_entry_key(entry), child, &rest) &&
            (*rest == '\0' || *rest == '.')) {
            return true;
        }
    }
    return false;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_open_data_file(BlockDriverState *bs, const struct fvd_info *info,
                   QDict *options, int flags, Error **errp)
{
    BDRVFvdState *s = bs->opaque;
    bool given = fvd_has_child_option(options, FVD_RUNTIME_DATA_FILE);
    int ret;

    s->has_data_file = info->data_file[0] != '\0';
    if (flags & BDRV_O_NO_IO) {
        qdict_extract_subqdict(options, NULL, FVD_RUNTIME_DATA_FILE ".");
        qdict_del(options, FVD_RUNTIME_DATA_FILE);
        return 0;
    }
    if (!s->has_data_file) {
        if (given) {
            error_setg(errp, "'" FVD_RUNTIME_DATA_FILE "' can only be set for "
                       "images that were created with a data file");
            return -EINVAL;
        }
        return 0;
    }
    if (!given) {
        ret = fvd_name_data_file(bs, info, options, errp);
        if (ret < 0) {
            return ret;
        }
    }

    bdrv_graph_co_rdunlock();
    s->data_file = bdrv_co_open_child(NULL, options, FVD_RUNTIME_DATA_FILE, bs,
                                      &child_of_bds, BDRV_CHILD_DATA, false,
                                      errp);
    bdrv_graph_co_rdlock();
    if (!s->data_file) {
        error_prepend(errp, "Could not open the data file '%s': ",
                      info->data_file);
        return -EINVAL;
    }

    /* It holds nothing but metadata now; to ask for less cannot fail. */
    bs->file->role &= ~BDRV_CHILD_DATA;
    bdrv_child_refresh_perms(bs, bs->file, &error_abort);
    return 0;
}

/* ----------------------------------------------------------------- opening */

static int fvd_bdrv_probe(const uint8_t *buf, int buf_size,
                          const char *filename)
{
    return fvd_probe(buf, buf_size);
}

static void GRAPH_RDLOCK fvd_warn_of_header(BlockDriverState *bs,
                                            const struct fvd_info *info)
{
    const char *name = bs->file->bs->filename;

    if (info->add_storage_cmd[0]) {
        warn_report("fvd image '%s' names a command that adds storage "
                    "(add_storage_cmd); it is ignored", name);
    }
    if (info->base_img[0] && !info->base_img_fmt[0] &&
        !info->base_fully_prefetched) {
        warn_report("fvd image '%s' does not say the format of its backing "
                    "file; it is taken for 'raw' unless the option "
                    "'backing.driver' names another", name);
    }
}

/* QEMU would open the image as its own base until the stack is full. */
static int GRAPH_RDLOCK
fvd_check_base(BlockDriverState *bs, const QDict *options, Error **errp)
{
    const char *image = bs->file->bs->exact_filename;
    g_autofree char *base =
        bdrv_get_full_backing_filename_from_filename(image, bs->backing_file,
                                                     NULL);

    if (base && !(bs->open_flags & (BDRV_O_NO_BACKING | BDRV_O_NO_IO)) &&
        !fvd_has_child_option(options, "backing") &&
        fvd_same_file(base, image)) {
        error_setg(errp, "the backing file '%s' is the image itself",
                   bs->backing_file);
        return -EINVAL;
    }
    return 0;
}

/* Where a writable image was asked for, read-only will do if it may. */
static int GRAPH_RDLOCK
fvd_refuse_to_write(BlockDriverState *bs, int *flags, Error **errp)
{
    int ret;

    if (!(*flags & BDRV_O_RDWR) || *flags & (BDRV_O_CHECK | BDRV_O_NO_IO)) {
        return 0;
    }
    ret = bdrv_apply_auto_read_only(bs, FVD_NEVER_WRITABLE, errp);
    if (ret == 0) {
        *flags &= ~BDRV_O_RDWR;
        bdrv_child_refresh_perms(bs, bs->file, &error_abort);
    }
    return ret;
}

typedef struct FvdOpen {
    QDict *options;
    int flags;
    Error **errp;
} FvdOpen;

static int coroutine_fn GRAPH_RDLOCK
fvd_do_open(BlockDriverState *bs, void *opaque)
{
    BDRVFvdState *s = bs->opaque;
    FvdOpen *open = opaque;
    g_autofree struct fvd_info *info = g_new(struct fvd_info, 1);
    FvdFillOptions fill;
    struct fvd_error error;
    int ret;

    ret = fvd_load(&fvd_node_ops, s, &s->image, &error);
    if (ret < 0) {
        return fvd_error_to_qemu(ret, &error, open->errp);
    }
    fvd_host_has_image(s);
    s->without_base = true;
    fvd_quiesce(s->image, true);
    fvd_get_info(s->image, info);
    trace_fvd_load(bs, info->virtual_size, info->base_size, info->block_size,
                   info->base_img, info->data_file);
    fvd_warn_of_header(bs, info);
    fvd_take_over_info(bs, info);

    s->never_writable = info->never_writable;
    ret = fvd_fill_from_options(open->options, &fill, open->errp);
    if (ret == 0) {
        ret = fvd_fill_apply(s, &fill, open->errp);
    }
    if (ret == 0 && info->never_writable) {
        ret = fvd_refuse_to_write(bs, &open->flags, open->errp);
    }
    if (ret == 0) {
        ret = fvd_check_base(bs, open->options, open->errp);
    }
    if (ret == 0) {
        ret = fvd_open_data_file(bs, info, open->options, open->flags,
                                 open->errp);
    }
    if (ret == 0) {
        ret = fvd_do_start(bs, fvd_life_for_flags(open->flags), open->errp);
    }
    if (ret < 0) {
        if (s->data_file) {
            bdrv_graph_co_rdunlock();
            bdrv_co_unref_child(bs, s->data_file);
            bdrv_graph_co_rdlock();
            s->data_file = NULL;
        }
    }
    return ret;
}

static void fvd_end_image(BDRVFvdState *s)
{
    fvd_end_tasks(s);
    if (s->image) {
        fvd_free(s->image);
        s->image = NULL;
    }
}

static int GRAPH_UNLOCKED
fvd_open(BlockDriverState *bs, QDict *options, int flags, Error **errp)
{
    BDRVFvdState *s = bs->opaque;
    FvdOpen open = { .options = options, .flags = flags, .errp = errp };
    int ret;

    /* First: to attach a child drains, and that reaches us already. */
    fvd_node_host_init(s, bs);
    ret = bdrv_open_file_child(NULL, options, "file", bs, errp);
    if (ret == 0) {
        ret = fvd_call(bs, fvd_do_open, &open);
    }
    if (ret < 0) {
        fvd_end_image(s);
        fvd_node_host_destroy(s);
        return ret;
    }
    bs->supported_write_flags = BDRV_REQ_FUA | BDRV_REQ_WRITE_UNCHANGED;
    bs->supported_zero_flags = BDRV_REQ_FUA | BDRV_REQ_WRITE_UNCHANGED |
                               BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK;
    bs->supported_truncate_flags = BDRV_REQ_ZERO_WRITE;
    return 0;
}

static void GRAPH_UNLOCKED fvd_close(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;
    int ret;

    GLOBAL_STATE_CODE();

    ret = fvd_call(bs, fvd_do_stop, NULL);
    if (ret < 0) {
        error_report("fvd image '%s' could not be closed cleanly (%s); it is "
                     "recovered when it is opened again", bs->filename,
                     strerror(-ret));
    }
    fvd_end_image(s);
    if (s->data_file) {
        bdrv_graph_wrlock();
        bdrv_unref_child(bs, s->data_file);
        bdrv_graph_wrunlock();
        s->data_file = NULL;
    }
    fvd_node_host_destroy(s);
}

/* --------------------------------------------- reopening, hand-over, drain */

static int GRAPH_UNLOCKED
fvd_reopen_prepare(BDRVReopenState *state, BlockReopenQueue *queue,
                   Error **errp)
{
    BDRVFvdState *s = state->bs->opaque;
    FvdRestart restart = { .life = FVD_READ_ONLY, .errp = errp };
    FvdFillOptions fill;

    if (fvd_fill_from_options(state->options, &fill, errp) < 0) {
        return -EINVAL;
    }
    if (s->never_writable && state->flags & BDRV_O_RDWR) {
        error_setg(errp, "%s", FVD_NEVER_WRITABLE);
        return -EROFS;
    }
    /* What fills the image changes now; an abort takes it back. */
    state->opaque = g_memdup2(&s->fill_options, sizeof(s->fill_options));
    if (fvd_fill_apply(s, &fill, errp) < 0) {
        g_free(state->opaque);
        return -EINVAL;
    }
    /* Everything that has to be written is written while that is allowed. */
    if (s->life == FVD_WRITABLE && !(state->flags & BDRV_O_RDWR) &&
        fvd_call(state->bs, fvd_do_restart, &restart) < 0) {
        fvd_fill_apply(s, state->opaque, NULL);
        g_free(state->opaque);
        return -EIO;
    }
    return 0;
}

static void fvd_reopen_commit(BDRVReopenState *state)
{
    g_free(state->opaque);
}

/* Back to what the flags of the node say. */
static void fvd_reopen_finish(BDRVReopenState *state)
{
    BlockDriverState *bs = state->bs;
    BDRVFvdState *s = bs->opaque;
    Error *local_err = NULL;
    FvdRestart restart = {
        .life = fvd_life_for_flags(bs->open_flags),
        .errp = &local_err,
    };

    if (s->life == restart.life) {
        return;
    }
    if (fvd_call(bs, fvd_do_restart, &restart) < 0) {
        error_reportf_err(local_err, "fvd image '%s' stays read-only: ",
                          bs->filename);
    }
}

static void GRAPH_UNLOCKED fvd_reopen_commit_post(BDRVReopenState *state)
{
    fvd_reopen_finish(state);
}

static void GRAPH_UNLOCKED fvd_reopen_abort(BDRVReopenState *state)
{
    BDRVFvdState *s = state->bs->opaque;

    fvd_fill_apply(s, state->opaque, NULL);
    g_free(state->opaque);
    fvd_reopen_finish(state);
}

/*
 * The image is left clean for whoever takes it over. It stays started, as it
 * can happen that the hand-over fails after this and the guest goes on here;
 * a started image is not written to before the next guest write.
 */
static int GRAPH_RDLOCK fvd_inactivate(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;
    Error *local_err = NULL;
    FvdRestart restart = { .life = s->life, .errp = &local_err };
    int ret;

    if (s->life != FVD_WRITABLE) {
        return 0;
    }
    bdrv_drained_begin(bs);
    if (!s->handed_over) {
        s->handed_over = true;
        fvd_quiesce(s->image, true);
    }
    ret = fvd_call(bs, fvd_do_restart, &restart);
    bdrv_drained_end(bs);
    if (ret < 0) {
        error_report_err(local_err);
    }
    return ret;
}

static void coroutine_fn GRAPH_RDLOCK
fvd_co_invalidate_cache(BlockDriverState *bs, Error **errp)
{
    BDRVFvdState *s = bs->opaque;
    FvdRestart restart = {
        .life = fvd_life_for_flags(bs->open_flags),
        .errp = errp,
    };
    struct fvd_progress progress;

    fvd_do_restart(bs, &restart);
    if (s->handed_over) {
        s->handed_over = false;
        fvd_quiesce(s->image, false);
    }
    fvd_get_progress(s->image, &progress);
    if (s->life == FVD_WRITABLE && progress.filled) {
        fvd_let_base_go(s); /* others have brought the last block */
    }
}

static void fvd_attach_aio_context(BlockDriverState *bs,
                                   AioContext *new_context)
{
    fvd_attach_timers(bs->opaque, new_context);
}

static void fvd_detach_aio_context(BlockDriverState *bs)
{
    fvd_detach_timers(bs->opaque);
}

/*
 * A background commit that is due waits for the end of the section. Nothing is
 * lost by that, and a drain need not wait for two flushes.
 */
static void fvd_drain_begin(BlockDriverState *bs)
{
    fvd_quiesce_host(bs->opaque);
}

static void fvd_drain_end(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;

    fvd_resume_host(s);
    if (qatomic_read(&s->filled)) {
        fvd_let_base_go(s); /* whoever was in its way may have gone */
    }
}

/* ---------------------------------------------------------- guest requests */

static uint32_t fvd_flags_from_qemu(BdrvRequestFlags flags)
{
    uint32_t result = 0;

    if (flags & BDRV_REQ_FUA) {
        result |= FVD_REQ_FUA;
    }
    if (flags & BDRV_REQ_MAY_UNMAP) {
        result |= FVD_REQ_MAY_UNMAP;
    }
    if (flags & BDRV_REQ_NO_FALLBACK) {
        result |= FVD_REQ_NO_FALLBACK;
    }
    if (flags & BDRV_REQ_WRITE_UNCHANGED) {
        result |= FVD_REQ_WRITE_UNCHANGED;
    }
    if (flags & BDRV_REQ_REGISTERED_BUF) {
        result |= FVD_REQ_REGISTERED_BUF;
    }
    return result;
}

/* A parent that may resize us could write past the end. */
static int fvd_check_write(BDRVFvdState *s, int64_t offset, int64_t bytes)
{
    if (s->life != FVD_WRITABLE) {
        return -EIO;
    }
    return offset > s->virtual_size - bytes ? -ENOSPC : 0;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_co_preadv_part(BlockDriverState *bs, int64_t offset, int64_t bytes,
                   QEMUIOVector *qiov, size_t qiov_offset,
                   BdrvRequestFlags flags)
{
    BDRVFvdState *s = bs->opaque;
    uint64_t data_offset;

    if (s->life == FVD_LOADED) {
        return -EIO;
    }
    if (fvd_is_here(s->image, offset, bytes, &data_offset)) {
        return fvd_pass_through(s, false, data_offset, bytes, qiov,
                                qiov_offset, flags);
    }
    return fvd_read(s->image, offset, bytes, qiov, qiov_offset,
                    fvd_flags_from_qemu(flags));
}

static int coroutine_fn GRAPH_RDLOCK
fvd_co_pwritev_part(BlockDriverState *bs, int64_t offset, int64_t bytes,
                    QEMUIOVector *qiov, size_t qiov_offset,
                    BdrvRequestFlags flags)
{
    BDRVFvdState *s = bs->opaque;
    int ret = fvd_check_write(s, offset, bytes);
    uint64_t data_offset;

    if (ret < 0) {
        return ret;
    }
    if (!(flags & BDRV_REQ_FUA) &&
        fvd_is_here(s->image, offset, bytes, &data_offset)) {
        return fvd_pass_through(s, true, data_offset, bytes, qiov, qiov_offset,
                                flags);
    }
    return fvd_write(s->image, offset, bytes, qiov, qiov_offset,
                     fvd_flags_from_qemu(flags));
}

static int coroutine_fn GRAPH_RDLOCK
fvd_co_pwrite_zeroes(BlockDriverState *bs, int64_t offset, int64_t bytes,
                     BdrvRequestFlags flags)
{
    BDRVFvdState *s = bs->opaque;
    int ret = fvd_check_write(s, offset, bytes);

    return ret ?: fvd_write_zeroes(s->image, offset, bytes,
                                   fvd_flags_from_qemu(flags));
}

static int coroutine_fn GRAPH_RDLOCK
fvd_co_pdiscard(BlockDriverState *bs, int64_t offset, int64_t bytes)
{
    BDRVFvdState *s = bs->opaque;
    int ret = fvd_check_write(s, offset, bytes);

    return ret ?: fvd_discard(s->image, offset, bytes);
}

/*
 * All layers with one function: the core alone knows which file has to be
 * flushed before which. As for other formats, nothing is to be done where
 * nothing was written since a flush that succeeded.
 */
static int coroutine_fn GRAPH_RDLOCK fvd_co_flush(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;

    BLKDBG_CO_EVENT(bs->file, BLKDBG_FLUSH_TO_OS);
    if (s->life != FVD_WRITABLE ||
        bs->flushed_gen == qatomic_read(&bs->write_gen)) {
        return 0;
    }
    return fvd_flush(s->image);
}

static int coroutine_fn GRAPH_RDLOCK
fvd_co_block_status(BlockDriverState *bs, bool want_zero, int64_t offset,
                    int64_t bytes, int64_t *pnum, int64_t *map,
                    BlockDriverState **file)
{
    BDRVFvdState *s = bs->opaque;
    enum fvd_place place;
    uint64_t run, data_offset;

    if (s->life == FVD_LOADED) {
        return -EIO;
    }
    fvd_where(s->image, offset, bytes, &place, &run, &data_offset);
    *pnum = run;
    if (place == FVD_PLACE_BASE) {
        return 0;
    }
    if (place == FVD_PLACE_ZERO) {
        return BDRV_BLOCK_ZERO;
    }
    *map = data_offset;
    *file = s->has_data_file ? s->data_file->bs : bs->file->bs;
    /* Holes in the data read as zeros; the file below knows where they are. */
    return BDRV_BLOCK_DATA | BDRV_BLOCK_OFFSET_VALID | BDRV_BLOCK_RECURSE;
}

/* -------------------------------------------------------------- properties */

/*
 * What a base that is not there reads as, zeros, is for the guest to see and
 * not to be kept. A node is open before its base is attached, and the base can
 * be taken away.
 */
static void GRAPH_RDLOCK fvd_follow_base(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;
    bool without_base = bs->backing == NULL;

    if (s->image && s->without_base != without_base) {
        s->without_base = without_base;
        fvd_quiesce(s->image, without_base);
    }
}

/* Called, too, whenever a base is attached or detached. */
static void GRAPH_RDLOCK fvd_refresh_limits(BlockDriverState *bs, Error **errp)
{
    BDRVFvdState *s = bs->opaque;

    fvd_follow_base(bs);
    if (s->block_size == 0) {
        return;
    }
    bs->bl.pwrite_zeroes_alignment = s->block_size;
    bs->bl.pdiscard_alignment = s->block_size;
    /*
     * A first write also writes what it copies of its first and last block,
     * in one request, which must not become too long for the layer below.
     */
    bs->bl.max_transfer =
        MIN_NON_ZERO(bs->bl.max_transfer,
                     QEMU_ALIGN_DOWN(BDRV_REQUEST_MAX_BYTES, s->block_size) -
                     2 * s->block_size);
}

/*
 * What stands where in the data file of a compact image is the image's own
 * business, as with metadata: space of freed slots goes back when the image is
 * closed, and no guest asks for that any more. An image that may fill itself
 * writes to its data file when nobody else wants to.
 */
static void fvd_child_perm(BlockDriverState *bs, BdrvChild *child,
                           BdrvChildRole role, BlockReopenQueue *queue,
                           uint64_t perm, uint64_t shared,
                           uint64_t *child_perm, uint64_t *child_shared)
{
    BDRVFvdState *s = bs->opaque;

    if ((s->compact || s->block_size) && role & BDRV_CHILD_DATA) {
        role |= BDRV_CHILD_METADATA;
    }
    bdrv_default_perms(bs, child, role, queue, perm, shared, child_perm,
                       child_shared);
}

/*
 * An image that was made without a base has nowhere to note what a base could
 * serve. To put one below it would have no effect where the user expects the
 * base's data.
 */
static int GRAPH_RDLOCK fvd_check_perm(BlockDriverState *bs, uint64_t perm,
                                       uint64_t shared, Error **errp)
{
    BDRVFvdState *s = bs->opaque;

    if (bs->backing && s->baseless) {
        error_setg(errp, "fvd image '%s' was created without a backing file "
                   "and cannot get one", bs->filename);
        return -ENOTSUP;
    }
    return 0;
}

/*
 * What was never written reads as zeros exactly where the data lies so. In a
 * compact image it has no place, or one that create made zeros.
 */
static int GRAPH_RDLOCK fvd_has_zero_init(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;

    if (s->compact) {
        return 1;
    }
    if (s->has_data_file) {
        return s->data_file ? bdrv_has_zero_init(s->data_file->bs) : 0;
    }
    return bdrv_has_zero_init(bs->file->bs);
}

/*
 * Asked before each request. A base that is gone is no reason to fail those
 * that do not need it.
 */
static bool coroutine_fn GRAPH_RDLOCK fvd_co_is_inserted(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;

    return bdrv_co_is_inserted(bs->file->bs) &&
           (!s->data_file || bdrv_co_is_inserted(s->data_file->bs));
}

static int64_t coroutine_fn fvd_co_getlength(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;

    return s->virtual_size;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_co_truncate(BlockDriverState *bs, int64_t offset, bool exact,
                PreallocMode prealloc, BdrvRequestFlags flags, Error **errp)
{
    BDRVFvdState *s = bs->opaque;
    g_autofree struct fvd_info *info = NULL;
    enum fvd_preallocation mode;
    struct fvd_error error;
    int ret = fvd_preallocation_from_qemu(prealloc, &mode, errp);

    if (ret < 0 || offset == s->virtual_size) {
        return ret;
    }
    if (s->life != FVD_WRITABLE) {
        error_setg(errp, "The image is not open for writing");
        return -EACCES;
    }
    ret = fvd_resize(s->image, offset, mode, &error);
    /* One that failed may have been impossible to undo. */
    info = g_new(struct fvd_info, 1);
    fvd_get_info(s->image, info);
    s->virtual_size = info->virtual_size;
    bs->total_sectors = s->virtual_size / BDRV_SECTOR_SIZE;
    return fvd_error_to_qemu(ret, &error, errp);
}

/* The block layer calculates with powers of two where it asks for clusters. */
static int coroutine_fn GRAPH_RDLOCK
fvd_co_get_info(BlockDriverState *bs, BlockDriverInfo *bdi)
{
    BDRVFvdState *s = bs->opaque;

    bdi->cluster_size = is_power_of_2(s->block_size) ? s->block_size : 0;
    bdi->is_dirty = !fvd_is_clean(s->image);
    return 0;
}

static char *fvd_hex(const uint8_t *bytes, size_t length)
{
    GString *hex = g_string_new(NULL);

    for (size_t i = 0; i < length; i++) {
        g_string_append_printf(hex, "%02x", bytes[i]);
    }
    return g_string_free(hex, false);
}

static char *fvd_text_or_null(const char *text)
{
    return text[0] ? g_strdup(text) : NULL;
}

static ImageInfoSpecific * GRAPH_RDLOCK
fvd_get_specific_info(BlockDriverState *bs, Error **errp)
{
    BDRVFvdState *s = bs->opaque;
    g_autofree struct fvd_info *info = g_new(struct fvd_info, 1);
    ImageInfoSpecificFvd *fvd = g_new0(ImageInfoSpecificFvd, 1);
    ImageInfoSpecific *result = g_new0(ImageInfoSpecific, 1);

    fvd_get_info(s->image, info);
    *fvd = (ImageInfoSpecificFvd) { /* the rest: fvd_fill_tell() */
        .format_version = info->format_version,
        .block_size = info->block_size,
        .base_size = info->base_size,
        .data_file = fvd_text_or_null(info->data_file),
        .data_offset = info->data_offset,
        .has_chunk_size = info->table_size != 0,
        .chunk_size = info->chunk_size,
        .has_storage_grow_unit = info->table_size != 0,
        .storage_grow_unit = info->storage_grow_unit,
        .has_chunks = info->started && info->table_size != 0,
        .chunks = info->chunks,
        .has_chunks_stored = info->started && info->table_size != 0,
        .chunks_stored = info->chunks_stored,
        .journal_size = info->journal_size,
        .journal_unit = info->journal_unit,
        .journal_epoch = info->journal_epoch,
        .clean_shutdown = info->clean_shutdown,
        .base_fully_prefetched = info->base_fully_prefetched,
        .has_blocks_in_image = info->started && info->blocks != 0,
        .blocks_in_image = info->blocks_here,
        .has_blocks_in_base = info->started && info->blocks != 0,
        .blocks_in_base = info->blocks - info->blocks_here,
        .image_id = fvd_hex(info->image_id, sizeof(info->image_id)),
        .add_storage_cmd = fvd_text_or_null(info->add_storage_cmd),
        .incompatible_features = info->incompatible_features,
        .compatible_features = info->compatible_features,
        .autoclear_features = info->autoclear_features,
        .condition = info->condition == FVD_CONDITION_FAILED
                     ? FVD_IMAGE_CONDITION_FAILED
                     : FVD_IMAGE_CONDITION_HEALTHY,
    };
    if (fvd->data_file) {
        fvd->data_file_format = g_strdup(info->data_file_fmt[0]
                                         ? info->data_file_fmt : "raw");
    }
    fvd_fill_tell(s, fvd);
    result->type = IMAGE_INFO_SPECIFIC_KIND_FVD;
    result->u.fvd.data = fvd;
    return result;
}

/* -------------------------------------------------------------- management */

static int coroutine_fn GRAPH_RDLOCK
fvd_do_make_empty(BlockDriverState *bs, void *opaque)
{
    BDRVFvdState *s = bs->opaque;

    return s->life == FVD_WRITABLE ? fvd_make_empty(s->image) : -EPERM;
}

static int GRAPH_RDLOCK fvd_bdrv_make_empty(BlockDriverState *bs)
{
    int ret;

    bdrv_drained_begin(bs);
    ret = fvd_call(bs, fvd_do_make_empty, NULL);
    bdrv_drained_end(bs);
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
fvd_co_change_backing_file(BlockDriverState *bs, const char *backing_file,
                           const char *backing_fmt)
{
    BDRVFvdState *s = bs->opaque;
    struct fvd_error error;
    int ret;

    if (s->life != FVD_WRITABLE) {
        return -EPERM;
    }
    ret = fvd_set_base(s->image, backing_file ?: "", backing_fmt ?: "", &error);
    if (ret < 0) {
        error_report("fvd image '%s': %s", bs->filename, error.text);
    }
    return ret;
}

/* Findings are told to the user of the check, one sentence each. */
static int coroutine_fn GRAPH_RDLOCK
fvd_do_check(BlockDriverState *bs, BdrvCheckResult *result, BdrvCheckMode fix)
{
    BDRVFvdState *s = bs->opaque;
    struct fvd_check_result found = { 0 };
    struct fvd_error error;
    int ret;

    if (fix) {
        fvd_expect_foreign_writes(bs);
    }
    s->report_findings = true;
    ret = fvd_check(&fvd_node_ops, s,
                    (fix & BDRV_FIX_LEAKS ? FVD_FIX_LEAKS : 0) |
                    (fix & BDRV_FIX_ERRORS ? FVD_FIX_ERRORS : 0),
                    &found, &error);
    s->report_findings = false;
    if (ret < 0) {
        error_report("%s", error.text);
    }
    result->corruptions = found.corruptions;
    result->leaks = found.leaks;
    result->check_errors = found.check_errors;
    result->corruptions_fixed = found.corruptions_fixed;
    result->leaks_fixed = found.leaks_fixed;
    result->image_end_offset = found.image_end_offset;
    if (found.chunks) {
        result->bfi.total_clusters = found.chunks;
        result->bfi.allocated_clusters = found.chunks_stored;
        result->bfi.fragmented_clusters = found.chunks_fragmented;
    } else {
        result->bfi.total_clusters = found.blocks;
        result->bfi.allocated_clusters = found.blocks_here;
    }
    return ret;
}

/* Judged is what is on disk, so an image that is in use is stopped for it. */
static int coroutine_fn GRAPH_RDLOCK
fvd_co_check(BlockDriverState *bs, BdrvCheckResult *result, BdrvCheckMode fix)
{
    BDRVFvdState *s = bs->opaque;
    FvdLife life = s->life;
    Error *local_err = NULL;
    int ret;

    if (life == FVD_LOADED) {
        return fvd_do_check(bs, result, fix);
    }
    bdrv_drained_begin(bs);
    ret = fvd_do_stop(bs, NULL);
    if (ret == 0) {
        ret = fvd_do_check(bs, result, fix);
        if (fvd_do_start(bs, life, &local_err) < 0) {
            error_report_err(local_err);
        }
    }
    bdrv_drained_end(bs);
    return ret;
}

/* ------------------------------------------------------------------ driver */

/*
 * There are no internal snapshots. Without this, QEMU would look for them in
 * the file below, and call the driver back between closing and opening it.
 */
static int GRAPH_UNLOCKED fvd_snapshot_goto(BlockDriverState *bs,
                                            const char *snapshot_id)
{
    return -ENOTSUP;
}

static BlockDriver bdrv_fvd = {
    .format_name                = "fvd",
    .instance_size              = sizeof(BDRVFvdState),
    .is_format                  = true,
    .supports_backing           = true,
    .create_opts                = &fvd_create_opts,
    .amend_opts                 = &fvd_amend_opts,

    .bdrv_probe                 = fvd_bdrv_probe,
    .bdrv_open                  = fvd_open,
    .bdrv_close                 = fvd_close,
    .bdrv_reopen_prepare        = fvd_reopen_prepare,
    .bdrv_reopen_commit         = fvd_reopen_commit,
    .bdrv_reopen_commit_post    = fvd_reopen_commit_post,
    .bdrv_reopen_abort          = fvd_reopen_abort,
    .bdrv_child_perm            = fvd_child_perm,
    .bdrv_check_perm            = fvd_check_perm,
    .bdrv_inactivate            = fvd_inactivate,
    .bdrv_co_invalidate_cache   = fvd_co_invalidate_cache,
    .bdrv_attach_aio_context    = fvd_attach_aio_context,
    .bdrv_detach_aio_context    = fvd_detach_aio_context,
    .bdrv_drain_begin           = fvd_drain_begin,
    .bdrv_drain_end             = fvd_drain_end,

    .bdrv_co_preadv_part        = fvd_co_preadv_part,
    .bdrv_co_pwritev_part       = fvd_co_pwritev_part,
    .bdrv_co_pwrite_zeroes      = fvd_co_pwrite_zeroes,
    .bdrv_co_pdiscard           = fvd_co_pdiscard,
    .bdrv_co_flush              = fvd_co_flush,
    .bdrv_co_block_status       = fvd_co_block_status,

    .bdrv_refresh_limits        = fvd_refresh_limits,
    .bdrv_has_zero_init         = fvd_has_zero_init,
    .bdrv_co_is_inserted        = fvd_co_is_inserted,
    .bdrv_co_getlength          = fvd_co_getlength,
    .bdrv_co_truncate           = fvd_co_truncate,
    .bdrv_co_get_info           = fvd_co_get_info,
    .bdrv_get_specific_info     = fvd_get_specific_info,
    .bdrv_get_specific_stats    = fvd_get_specific_stats,

    .bdrv_snapshot_goto         = fvd_snapshot_goto,
    .bdrv_make_empty            = fvd_bdrv_make_empty,
    .bdrv_co_change_backing_file = fvd_co_change_backing_file,
    .bdrv_co_check              = fvd_co_check,
    .bdrv_co_create             = fvd_co_create,
    .bdrv_co_create_opts        = fvd_co_create_opts,
    .bdrv_amend_options         = fvd_amend_options,
    .bdrv_measure               = fvd_measure_image,
};

static void bdrv_fvd_init(void)
{
    /* The data file cannot be changed by a reopen, everything else can. */
    fvd_fill_init_options();
    bdrv_fvd.mutable_opts = fvd_fill_mutable_options();
    bdrv_register(&bdrv_fvd);
}

block_init(bdrv_fvd_init);
