/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu-img create and measure, blockdev-create: options of QEMU's users to
 * those of the core, and QEMU as the host of an image that is being written.
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/qdict.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-block-core.h"
#include "qapi/qobject-input-visitor.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/memalign.h"
#include "qemu/option.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "fvd-glue.h"
#include "trace.h"

/* -------------------------------------------------------------------- host */

/* Nobody else knows the files yet, so they are reached by BlockBackends. */
typedef struct FvdCreateHost {
    FvdTasks tasks;
    BlockBackend *blk[FVD_FILE_BASE + 1];
} FvdCreateHost;

static BlockBackend *fvd_blk(void *host, enum fvd_file file)
{
    FvdCreateHost *h = host;

    if (file == FVD_FILE_DATA && !h->blk[FVD_FILE_DATA]) {
        return h->blk[FVD_FILE_IMAGE];
    }
    return h->blk[file];
}

static int coroutine_fn
fvd_blk_read(void *host, enum fvd_file file, uint64_t offset,
             const struct fvd_slice *slices, size_t count, uint32_t flags)
{
    QEMUIOVector qiov;
    int ret;

    fvd_qiov_from_slices(&qiov, slices, count);
    ret = blk_co_preadv(fvd_blk(host, file), offset, qiov.size, &qiov,
                        fvd_flags_to_qemu(flags));
    qemu_iovec_destroy(&qiov);
    return MIN(ret, 0);
}

static int coroutine_fn
fvd_blk_write(void *host, enum fvd_file file, uint64_t offset,
              const struct fvd_slice *slices, size_t count, uint32_t flags)
{
    QEMUIOVector qiov;
    int ret;

    fvd_qiov_from_slices(&qiov, slices, count);
    ret = blk_co_pwritev(fvd_blk(host, file), offset, qiov.size, &qiov,
                         fvd_flags_to_qemu(flags));
    qemu_iovec_destroy(&qiov);
    return MIN(ret, 0);
}

static int coroutine_fn
fvd_blk_write_zeroes(void *host, enum fvd_file file, uint64_t offset,
                     uint64_t length, uint32_t flags)
{
    int ret = blk_co_pwrite_zeroes(fvd_blk(host, file), offset, length,
                                   fvd_flags_to_qemu(flags));

    return MIN(ret, 0);
}

/* There is nothing yet that could be given back. */
static int coroutine_fn
fvd_blk_discard(void *host, enum fvd_file file, uint64_t offset,
                uint64_t length)
{
    return -ENOTSUP;
}

static int coroutine_fn fvd_blk_flush(void *host, enum fvd_file file)
{
    return blk_co_flush(fvd_blk(host, file));
}

static int64_t coroutine_fn fvd_blk_length(void *host, enum fvd_file file)
{
    return blk_co_getlength(fvd_blk(host, file));
}

static int coroutine_fn
fvd_blk_resize(void *host, enum fvd_file file, uint64_t length,
               enum fvd_preallocation mode)
{
    BlockBackend *blk = fvd_blk(host, file);
    int64_t old = blk_co_getlength(blk);

    if (old < 0) {
        return old;
    }
    return blk_co_truncate(blk, length, false, fvd_prealloc_mode(mode),
                           length > old ? BDRV_REQ_ZERO_WRITE : 0, NULL);
}

static int coroutine_fn
fvd_blk_extent(void *host, enum fvd_file file, uint64_t offset,
               uint64_t length, bool *zero, uint64_t *run)
{
    int64_t count = 0;
    int ret = blk_co_block_status_above(fvd_blk(host, file), NULL, offset,
                                        length, &count, NULL, NULL);

    return fvd_extent_from_status(ret, count, length, zero, run);
}

static bool coroutine_fn fvd_blk_has_zero_init(void *host, enum fvd_file file)
{
    GRAPH_RDLOCK_GUARD();
    return bdrv_has_zero_init(blk_bs(fvd_blk(host, file)));
}

static void *fvd_blk_allocate(void *host, size_t size)
{
    FvdCreateHost *h = host;
    size_t alignment = 4096;

    for (int file = FVD_FILE_IMAGE; file <= FVD_FILE_BASE; file++) {
        if (h->blk[file]) {
            alignment = MAX(alignment,
                            bdrv_opt_mem_align(blk_bs(h->blk[file])));
        }
    }
    return qemu_try_memalign(alignment, MAX(size, 1));
}

static void fvd_blk_start_task(void *host, void (*run)(void *opaque),
                               void *opaque)
{
    g_assert_not_reached(); /* nothing goes on in the background */
}

static void fvd_blk_arm_timer(void *host, enum fvd_timer timer,
                              uint64_t delay_ns)
{
    g_assert_not_reached(); /* nothing is in use that could become due */
}

static void fvd_blk_cancel_timer(void *host, enum fvd_timer timer)
{
}

static void fvd_blk_announce(void *host, enum fvd_event event)
{
}

static void fvd_blk_warn(void *host, const char *sentence)
{
    warn_report("fvd: %s", sentence);
}

static const struct fvd_host_ops fvd_blk_ops = {
    .read = fvd_blk_read,
    .write = fvd_blk_write,
    .write_zeroes = fvd_blk_write_zeroes,
    .discard = fvd_blk_discard,
    .flush = fvd_blk_flush,
    .length = fvd_blk_length,
    .resize = fvd_blk_resize,
    .extent = fvd_blk_extent,
    .has_zero_init = fvd_blk_has_zero_init,
    .allocate = fvd_blk_allocate,
    .release = fvd_host_release,
    .fill_guest_zero = fvd_host_fill_guest_zero,
    .copy_to_guest = fvd_host_copy_to_guest,
    .lock = fvd_tasks_lock,
    .unlock = fvd_tasks_unlock,
    .current_task = fvd_tasks_current,
    .park = fvd_tasks_park,
    .wake = fvd_tasks_wake,
    .start_task = fvd_blk_start_task,
    .now = fvd_host_now,
    .arm_timer = fvd_blk_arm_timer,
    .cancel_timer = fvd_blk_cancel_timer,
    .announce = fvd_blk_announce,
    .warn = fvd_blk_warn,
    .random = fvd_host_random,
};

/* -------------------------------------------------------------------- base */

/*
 * Does somebody in this process write to the file? It is locked then, too, but
 * locks can be switched off.
 */
static bool fvd_is_written_to(const char *path)
{
    BlockDriverState *bs = NULL;

    GLOBAL_STATE_CODE();
    while ((bs = bdrv_next_node(bs))) {
        if (g_str_equal(bs->exact_filename, path) && !bdrv_is_read_only(bs)) {
            return true;
        }
    }
    return false;
}

/*
 * The base, if it can be opened and nobody writes to it. What is zero in it now
 * is zero for good only then, and what it will be when this image is used is
 * not known: the live disk under a snapshot that is about to be taken, or a
 * file that will only come to be, are valid bases and left alone.
 */
static BlockBackend * coroutine_fn GRAPH_UNLOCKED
fvd_open_quiet_base(const char *image, const char *base, const char *format)
{
    g_autofree char *path =
        bdrv_get_full_backing_filename_from_filename(image, base, NULL);
    QDict *options;

    if (!path || fvd_is_written_to(path)) {
        return NULL;
    }
    options = qdict_new();
    qdict_put_str(options, "driver", format);
    return blk_co_new_open(path, NULL, options, BDRV_O_NO_SHARE, NULL);
}

/* ------------------------------------------------------------ format layer */

int fvd_preallocation_from_qemu(PreallocMode mode,
                                enum fvd_preallocation *result, Error **errp)
{
    switch (mode) {
    case PREALLOC_MODE_OFF:
        *result = FVD_PREALLOC_OFF;
        return 0;
    case PREALLOC_MODE_METADATA:
        *result = FVD_PREALLOC_METADATA;
        return 0;
    case PREALLOC_MODE_FALLOC:
        *result = FVD_PREALLOC_FALLOC;
        return 0;
    case PREALLOC_MODE_FULL:
        *result = FVD_PREALLOC_FULL;
        return 0;
    default:
        error_setg(errp, "preallocation '%s' is not one of off, metadata, "
                   "falloc, full", PreallocMode_str(mode));
        return -EINVAL;
    }
}

static int fvd_options_from_qapi(const BlockdevCreateOptionsFvd *from,
                                 struct fvd_create_options *to,
                                 struct fvd_fill *fill, Error **errp)
{
    fvd_fill_from_create(from, fill);
    if (from->journal_unit > UINT32_MAX) {
        error_setg(errp, "journal_unit is %" PRIu64 "; must be 512 or 4096",
                   from->journal_unit);
        return -EINVAL;
    }
    *to = (struct fvd_create_options) {
        .virtual_size = from->size,
        .base_img = from->backing_file,
        .base_img_fmt = from->has_backing_fmt
                        ? BlockdevDriver_str(from->backing_fmt) : NULL,
        .block_size = from->block_size,
        .compact_image = from->compact_image,
        .chunk_size = from->chunk_size,
        .storage_grow_unit = from->storage_grow_unit,
        .journal_size = from->journal_size,
        .journal_unit = from->journal_unit,
        .detect_sparse_hole = from->detect_sparse_hole,
        .fill = fill,
    };
    if (to->base_img_fmt && !to->base_img) {
        error_setg(errp, "backing_fmt is '%s', but there is no backing_file",
                   to->base_img_fmt);
        return -EINVAL;
    }
    return fvd_preallocation_from_qemu(from->preallocation,
                                       &to->preallocation, errp);
}

static int coroutine_fn GRAPH_UNLOCKED
fvd_open_for_create(FvdCreateHost *host, enum fvd_file file, BlockdevRef *ref,
                    Error **errp)
{
    BlockDriverState *bs = bdrv_co_open_blockdev_ref(ref, errp);

    if (!bs) {
        return -EIO;
    }
    host->blk[file] = blk_co_new_with_bs(bs, BLK_PERM_CONSISTENT_READ |
                                         BLK_PERM_WRITE | BLK_PERM_RESIZE,
                                         BLK_PERM_ALL, errp);
    bdrv_co_unref(bs);
    if (!host->blk[file]) {
        return -EPERM;
    }
    blk_set_allow_write_beyond_eof(host->blk[file], true);
    return 0;
}

/*
 * The name by which the image is to find its data file. Names are relative to
 * the image, and this one is at most relative to where we are.
 */
static char *fvd_recorded_name(BlockDriverState *bs)
{
    const char *name = bs->exact_filename[0] ? bs->exact_filename
                                             : bs->filename;

    return path_has_protocol(name) ? g_strdup(name)
                                   : g_canonicalize_filename(name, NULL);
}

static const char *fvd_recorded_format(BlockDriverState *bs)
{
    return bs->drv->is_format ? bs->drv->format_name : "raw";
}

/*
 * @data_name is the name of the data file as the user wants it to be recorded,
 * or NULL: that of its node.
 */
static int coroutine_fn GRAPH_UNLOCKED
fvd_do_create(const BlockdevCreateOptionsFvd *fvd, const char *data_name,
              Error **errp)
{
    FvdCreateHost host = { 0 };
    struct fvd_create_options options;
    struct fvd_fill fill;
    struct fvd_error error;
    g_autofree char *recorded = NULL;
    int ret;

    ret = fvd_options_from_qapi(fvd, &options, &fill, errp);
    if (ret < 0) {
        return ret;
    }
    fvd_tasks_init(&host.tasks);
    ret = fvd_open_for_create(&host, FVD_FILE_IMAGE, fvd->file, errp);
    if (ret < 0) {
        goto out;
    }
    if (fvd->data_file) {
        ret = fvd_open_for_create(&host, FVD_FILE_DATA, fvd->data_file, errp);
        if (ret < 0) {
            goto out;
        }
        if (blk_bs(host.blk[FVD_FILE_DATA]) ==
            blk_bs(host.blk[FVD_FILE_IMAGE])) {
            error_setg(errp, "'file' and 'data-file' are one node");
            ret = -EINVAL;
            goto out;
        }
        recorded = fvd_recorded_name(blk_bs(host.blk[FVD_FILE_DATA]));
        options.data_file = data_name ?: recorded;
        options.data_file_fmt =
            fvd_recorded_format(blk_bs(host.blk[FVD_FILE_DATA]));
    }
    if (options.base_img && options.base_img_fmt) {
        BlockBackend *base =
            fvd_open_quiet_base(blk_bs(host.blk[FVD_FILE_IMAGE])->filename,
                                options.base_img, options.base_img_fmt);
        int64_t length = base ? blk_co_getlength(base) : -1;

        host.blk[FVD_FILE_BASE] = base;
        options.presets = length > 0;
        options.base_size = MAX(length, 0);
        trace_fvd_create_base(options.base_img, options.presets,
                              options.base_size);
    }

    ret = fvd_create(&fvd_blk_ops, &host, &options, &error);
    if (ret < 0) {
        error_setg(errp, "%s", error.text);
        /* QEMU has a text of its own for EFBIG, and ours says more. */
        ret = ret == -EFBIG ? -EINVAL : ret;
    }
out:
    for (int file = FVD_FILE_IMAGE; file <= FVD_FILE_BASE; file++) {
        blk_co_unref(host.blk[file]);
    }
    fvd_tasks_destroy(&host.tasks);
    return ret;
}

int coroutine_fn fvd_co_create(BlockdevCreateOptions *options, Error **errp)
{
    assert(options->driver == BLOCKDEV_DRIVER_FVD);
    return fvd_do_create(&options->u.fvd, NULL, errp);
}

/* ---------------------------------------------------------- protocol layer */

/*
 * A data file that is being created is relative to the image, as a base is. It
 * is about to be emptied, so it had better be none of the others.
 */
static char *fvd_new_data_file_path(const char *image, const char *name,
                                    const char *base, Error **errp)
{
    g_autofree char *path = NULL;
    g_autofree char *base_path = NULL;

    if (path_has_protocol(name)) {
        error_setg(errp, "data_file '%s' must be a plain file name: what an "
                   "image says is never taken for a protocol", name);
        return NULL;
    }
    path = bdrv_get_full_backing_filename_from_filename(image, name, errp);
    if (!path) {
        return NULL;
    }
    if (fvd_same_file(path, image)) {
        error_setg(errp, "data_file '%s' is the image itself", name);
        return NULL;
    }
    base_path = bdrv_get_full_backing_filename_from_filename(image, base, NULL);
    if (base_path && fvd_same_file(path, base_path)) {
        error_setg(errp, "data_file '%s' is the base image, too", name);
        return NULL;
    }
    return g_steal_pointer(&path);
}

/*
 * Takes the options for the data file out of @qdict, and puts the node of the
 * opened file in their place. Raw files are created, others have to exist.
 */
static BlockDriverState * coroutine_fn GRAPH_UNLOCKED
fvd_co_create_data_file(const char *image, const char *name, QDict *qdict,
                        QemuOpts *opts, bool *created, Error **errp)
{
    g_autofree char *format =
        g_strdup(qdict_get_try_str(qdict, FVD_OPT_DATA_FILE_FMT) ?: "raw");
    const char *base = qdict_get_try_str(qdict, BLOCK_OPT_BACKING_FILE) ?: "";
    g_autofree char *path = fvd_new_data_file_path(image, name, base, errp);
    bool raw = g_str_equal(format, "raw");
    QDict *open_options = NULL;
    BlockDriverState *bs;

    *created = false;
    qdict_del(qdict, FVD_OPT_DATA_FILE_FMT);
    if (!path) {
        return NULL;
    }
    if (raw && bdrv_co_create_file(path, opts, errp) < 0) {
        return NULL;
    }
    *created = raw;
    if (!raw) {
        open_options = qdict_new();
        qdict_put_str(open_options, "driver", format);
    }
    bs = bdrv_co_open(path, NULL, open_options, BDRV_O_RDWR | BDRV_O_RESIZE |
                      (raw ? BDRV_O_PROTOCOL : 0), errp);
    if (!bs) {
        error_prepend(errp, "data_file '%s': ", name);
        return NULL;
    }
    if (!fvd_may_be_named(path)) {
        warn_report("data_file '%s' is not a regular file, which no image "
                    "opens by itself: whoever opens this one has to name it "
                    "with the option 'data-file'", name);
    }
    qdict_del(qdict, BLOCK_OPT_DATA_FILE);
    qdict_put_str(qdict, "data-file", bs->node_name);
    return bs;
}

static BlockdevCreateOptions *fvd_create_options_from_qdict(QDict *qdict,
                                                            Error **errp)
{
    static const QDictRenames renames[] = {
        { BLOCK_OPT_BACKING_FILE,       "backing-file" },
        { BLOCK_OPT_BACKING_FMT,        "backing-fmt" },
        { FVD_OPT_BLOCK_SIZE,           "block-size" },
        { FVD_OPT_COMPACT_IMAGE,        "compact-image" },
        { FVD_OPT_CHUNK_SIZE,           "chunk-size" },
        { FVD_OPT_STORAGE_GROW_UNIT,    "storage-grow-unit" },
        { FVD_OPT_JOURNAL_SIZE,         "journal-size" },
        { FVD_OPT_JOURNAL_UNIT,         "journal-unit" },
        { FVD_OPT_DETECT_SPARSE_HOLE,   "detect-sparse-hole" },
        { FVD_OPT_COPY_ON_READ,         "copy-on-read" },
        { "max_outstanding_copy_on_read_data",
          "max-outstanding-copy-on-read-data" },
        { "prefetch_start_delay", "prefetch-start-delay" },
        { "num_prefetch_slots", "num-prefetch-slots" },
        { "bytes_per_prefetch", "bytes-per-prefetch" },
        { "prefetch_min_read_throughput",
          "prefetch-min-read-throughput" },
        { "prefetch_max_read_throughput",
          "prefetch-max-read-throughput" },
        { "prefetch_min_write_throughput",
          "prefetch-min-write-throughput" },
        { "prefetch_max_write_throughput",
          "prefetch-max-write-throughput" },
        { "prefetch_throttle_time", "prefetch-throttle-time" },
        { "prefetch_read_throughput_measure_time",
          "prefetch-read-throughput-measure-time" },
        { "prefetch_write_throughput_measure_time",
          "prefetch-write-throughput-measure-time" },
        { NULL, NULL },
    };
    BlockdevCreateOptions *options = NULL;
    Visitor *v;

    if (!qdict_rename_keys(qdict, renames, errp)) {
        return NULL;
    }
    v = qobject_input_visitor_new_flat_confused(qdict, errp);
    if (!v) {
        return NULL;
    }
    visit_type_BlockdevCreateOptions(v, NULL, &options, errp);
    visit_free(v);
    return options;
}

int coroutine_fn
fvd_co_create_opts(BlockDriver *drv, const char *filename, QemuOpts *opts,
                   Error **errp)
{
    g_autoptr(BlockdevCreateOptions) options = NULL;
    g_autoptr(QDict) qdict =
        qemu_opts_to_qdict_filtered(opts, NULL, &fvd_create_opts, true);
    g_autofree char *data_name =
        g_strdup(qdict_get_try_str(qdict, BLOCK_OPT_DATA_FILE));
    BlockDriverState *bs = NULL;
    BlockDriverState *data_bs = NULL;
    bool data_created = false;
    int ret;

    if (!data_name && qdict_haskey(qdict, FVD_OPT_DATA_FILE_FMT)) {
        error_setg(errp, "data_file_fmt is '%s', but there is no data_file",
                   qdict_get_str(qdict, FVD_OPT_DATA_FILE_FMT));
        return -EINVAL;
    }
    ret = bdrv_co_create_file(filename, opts, errp);
    if (ret < 0) {
        return ret;
    }
    bs = bdrv_co_open(filename, NULL, NULL,
                      BDRV_O_RDWR | BDRV_O_RESIZE | BDRV_O_PROTOCOL, errp);
    if (!bs) {
        return -EIO;
    }
    ret = -EINVAL;
    if (data_name) {
        data_bs = fvd_co_create_data_file(filename, data_name, qdict, opts,
                                          &data_created, errp);
        if (!data_bs) {
            goto out;
        }
    }

    qdict_put_str(qdict, "driver", drv->format_name);
    qdict_put_str(qdict, "file", bs->node_name);
    options = fvd_create_options_from_qdict(qdict, errp);
    if (!options) {
        goto out;
    }
    /* A size that is no multiple of the sector size is silently rounded up. */
    options->u.fvd.size = ROUND_UP(options->u.fvd.size, BDRV_SECTOR_SIZE);
    ret = fvd_do_create(&options->u.fvd, data_name, errp);

out:
    if (ret < 0) {
        bdrv_graph_co_rdlock();
        bdrv_co_delete_file_noerr(bs);
        if (data_created) {
            bdrv_co_delete_file_noerr(data_bs);
        }
        bdrv_graph_co_rdunlock();
    }
    bdrv_co_unref(bs);
    bdrv_co_unref(data_bs);
    return ret;
}

QemuOptsList fvd_create_opts = {
    .name = "fvd-create-opts",
    .head = QTAILQ_HEAD_INITIALIZER(fvd_create_opts.head),
    .desc = {
        {
            .name = BLOCK_OPT_SIZE,
            .type = QEMU_OPT_SIZE,
            .help = "Virtual disk size"
        },
        {
            .name = BLOCK_OPT_BACKING_FILE,
            .type = QEMU_OPT_STRING,
            .help = "File name of a base image"
        },
        {
            .name = BLOCK_OPT_BACKING_FMT,
            .type = QEMU_OPT_STRING,
            .help = "Image format of the base image (never guessed)"
        },
        {
            .name = BLOCK_OPT_DATA_FILE,
            .type = QEMU_OPT_STRING,
            .help = "File name of a separate file for the guest's data"
        },
        {
            .name = FVD_OPT_DATA_FILE_FMT,
            .type = QEMU_OPT_STRING,
            .help = "Format of the data file (default: raw; files of other "
                    "formats have to exist)"
        },
        {
            .name = FVD_OPT_BLOCK_SIZE,
            .type = QEMU_OPT_SIZE,
            .help = "Unit in which the image keeps track of what it holds"
        },
        {
            .name = FVD_OPT_COMPACT_IMAGE,
            .type = QEMU_OPT_BOOL,
            .help = "Allocate storage chunk by chunk, when the guest writes "
                    "(default: off)"
        },
        {
            .name = FVD_OPT_CHUNK_SIZE,
            .type = QEMU_OPT_SIZE,
            .help = "Unit of storage of a compact image"
        },
        {
            .name = FVD_OPT_STORAGE_GROW_UNIT,
            .type = QEMU_OPT_SIZE,
            .help = "Steps in which the storage of a compact image grows"
        },
        {
            .name = FVD_OPT_JOURNAL_SIZE,
            .type = QEMU_OPT_SIZE,
            .help = "Size of the journal"
        },
        {
            .name = FVD_OPT_JOURNAL_UNIT,
            .type = QEMU_OPT_SIZE,
            .help = "Unit of the journal, at least what the storage writes "
                    "atomically (512 or 4096)"
        },
        {
            .name = FVD_OPT_DETECT_SPARSE_HOLE,
            .type = QEMU_OPT_SIZE,
            .help = "Read the base image, and never again what lies in zeros "
                    "of at least this length (default: 0, do not read it)"
        },
        FVD_FILL_OPTS,
        {
            .name = BLOCK_OPT_PREALLOC,
            .type = QEMU_OPT_STRING,
            .help = "Preallocation mode (allowed values: off, metadata, "
                    "falloc, full)"
        },
        { /* end of list */ }
    }
};

/* --------------------------------------------------------------- measuring */

/* Bytes of those pieces of @granularity bytes of @bs that hold any data. */
static int64_t GRAPH_RDLOCK fvd_count_data(BlockDriverState *bs, int64_t size,
                                           int64_t granularity, Error **errp)
{
    int64_t data = 0;
    int64_t counted = 0; /* where the last piece ends that was counted */
    int64_t run;

    for (int64_t offset = 0; offset < size; offset += run) {
        int ret = bdrv_block_status_above(bs, NULL, offset, size - offset,
                                          &run, NULL, NULL);
        if (ret < 0) {
            error_setg_errno(errp, -ret, "Unable to get block status");
            return ret;
        }
        if (!(ret & BDRV_BLOCK_ZERO) && offset + run > counted) {
            int64_t begin = MAX(counted,
                                QEMU_ALIGN_DOWN(offset, granularity));

            counted = QEMU_ALIGN_UP(offset + run, granularity);
            data += counted - begin;
        }
    }
    return data;
}

static int fvd_measure_options(QemuOpts *opts, struct fvd_create_options *to,
                               Error **errp)
{
    g_autofree char *prealloc = qemu_opt_get_del(opts, BLOCK_OPT_PREALLOC);
    int mode = PREALLOC_MODE_OFF;

    to->virtual_size = qemu_opt_get_size_del(opts, BLOCK_OPT_SIZE, 0);
    to->block_size = qemu_opt_get_size_del(opts, FVD_OPT_BLOCK_SIZE, 0);
    to->journal_size = qemu_opt_get_size_del(opts, FVD_OPT_JOURNAL_SIZE, 0);
    to->journal_unit = qemu_opt_get_size_del(opts, FVD_OPT_JOURNAL_UNIT, 0);
    to->compact_image = qemu_opt_get_bool_del(opts, FVD_OPT_COMPACT_IMAGE,
                                              false);
    to->chunk_size = qemu_opt_get_size_del(opts, FVD_OPT_CHUNK_SIZE, 0);
    to->storage_grow_unit =
        qemu_opt_get_size_del(opts, FVD_OPT_STORAGE_GROW_UNIT, 0);
    if (prealloc) {
        mode = qapi_enum_parse(&PreallocMode_lookup, prealloc, -1, errp);
    }
    return mode < 0 ? -EINVAL
                    : fvd_preallocation_from_qemu(mode, &to->preallocation,
                                                  errp);
}

BlockMeasureInfo *fvd_measure_image(QemuOpts *opts, BlockDriverState *in_bs,
                                    Error **errp)
{
    g_autofree char *base = qemu_opt_get_del(opts, BLOCK_OPT_BACKING_FILE);
    g_autofree char *base_fmt = qemu_opt_get_del(opts, BLOCK_OPT_BACKING_FMT);
    g_autofree char *data_file = qemu_opt_get_del(opts, BLOCK_OPT_DATA_FILE);
    struct fvd_create_options options = {
        .base_img = base,
        .base_img_fmt = base_fmt,
        .data_file = data_file,
    };
    struct fvd_measure_result measured;
    struct fvd_error error;
    BlockMeasureInfo *info;
    int64_t size = 0;
    int64_t data = 0;

    if (fvd_measure_options(opts, &options, errp) < 0) {
        return NULL;
    }
    if (in_bs) {
        size = bdrv_getlength(in_bs);
        if (size < 0) {
            error_setg_errno(errp, -size, "Unable to get image virtual_size");
            return NULL;
        }
        options.virtual_size = size;
    }
    options.virtual_size = ROUND_UP(options.virtual_size, BDRV_SECTOR_SIZE);
    /* The first answer says in which pieces data is to be counted. */
    if (fvd_measure(&options, 0, &measured, &error) < 0) {
        error_setg(errp, "%s", error.text);
        return NULL;
    }
    if (in_bs) {
        GRAPH_RDLOCK_GUARD_MAINLOOP();
        data = fvd_count_data(in_bs, size, measured.granularity, errp);
    }
    if (data < 0) {
        return NULL;
    }
    if (fvd_measure(&options, data, &measured, &error) < 0) {
        error_setg(errp, "%s", error.text);
        return NULL;
    }
    info = g_new0(BlockMeasureInfo, 1);
    info->required = measured.required;
    info->fully_allocated = measured.fully_allocated;
    return info;
}
