/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How an image fills itself from its base, as QEMU's users say and see it:
 * options at create, amend, open and reopen, statistics, and the base taken
 * out of the graph when nothing is in it alone.
 */

#include "qemu/osdep.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qapi/error.h"
#include "qapi/qapi-types-block-core.h"
#include "qemu/error-report.h"
#include "qemu/option.h"
#include "qobject/qdict.h"
#include "fvd-glue.h"
#include "trace.h"

#define FVD_RUNTIME_COPY_ON_READ "copy-on-read"
#define FVD_RUNTIME_PREFETCH     "prefetch"

/* ------------------------------------------------------------ option names */

static void fvd_dashes(char *name)
{
    for (; *name; name++) {
        *name = *name == '_' ? '-' : *name;
    }
}

static int64_t *fvd_fill_number(struct fvd_fill *fill,
                                const struct fvd_fill_parameter *parameter)
{
    return (int64_t *)((char *)fill + parameter->offset);
}

/* Sizes may have suffixes. */
static enum QemuOptType
fvd_fill_option_type(const struct fvd_fill_parameter *parameter)
{
    return g_str_equal(parameter->unit, "bytes") ? QEMU_OPT_SIZE
                                                 : QEMU_OPT_NUMBER;
}

/* The core's table as QEMU's. */
static QemuOptsList *fvd_runtime_list;

/* A name each, and NULL: what a reopen may leave out. */
static const char **fvd_runtime_names;

const char *const *fvd_fill_mutable_options(void)
{
    return fvd_runtime_names;
}

void fvd_fill_init_options(void)
{
    size_t count;
    const struct fvd_fill_parameter *parameters = fvd_fill_parameters(&count);
    QemuOptDesc *desc;

    fvd_runtime_list = g_malloc0(sizeof(*fvd_runtime_list) +
                                 (count + 3) * sizeof(QemuOptDesc));
    fvd_runtime_list->name = "fvd-fill";
    QTAILQ_INIT(&fvd_runtime_list->head);
    fvd_runtime_names = g_new0(const char *, count + 3);
    desc = fvd_runtime_list->desc;
    desc[0] = (QemuOptDesc) { .name = FVD_RUNTIME_COPY_ON_READ,
                              .type = QEMU_OPT_BOOL };
    desc[1] = (QemuOptDesc) { .name = FVD_RUNTIME_PREFETCH,
                              .type = QEMU_OPT_STRING };
    for (size_t i = 0; i < count; i++) {
        char *name = g_strdup(parameters[i].name);

        fvd_dashes(name);
        desc[i + 2] = (QemuOptDesc) {
            .name = name,
            .type = fvd_fill_option_type(&parameters[i]),
        };
    }
    for (size_t i = 0; i < count + 2; i++) {
        fvd_runtime_names[i] = desc[i].name;
    }
}

/*
 * QEMU reads numbers into 64 bits without a sign. What no int64_t holds is out
 * of every range, and must not turn into one that is legal, or into the one
 * that says that nothing was given.
 */
static int64_t fvd_fill_value(QemuOpts *opts, const char *name, bool size)
{
    uint64_t value = size ? qemu_opt_get_size(opts, name, 0)
                          : qemu_opt_get_number(opts, name, 0);

    if (value == 0 || !strchr(qemu_opt_get(opts, name), '-')) {
        return MIN(value, INT64_MAX);
    }
    return value > INT64_MAX ? MAX((int64_t)value, -INT64_MAX) : -INT64_MAX;
}

/*
 * What is given of copy-on-read and of the numbers. A header's are named with
 * underscores, and are not all of them; those of a process with dashes.
 */
static void fvd_fill_from_opts(QemuOpts *opts, bool header, struct fvd_fill *to)
{
    size_t count;
    const struct fvd_fill_parameter *parameters = fvd_fill_parameters(&count);
    const char *copy_on_read = header ? FVD_OPT_COPY_ON_READ
                                      : FVD_RUNTIME_COPY_ON_READ;

    fvd_fill_init(to);
    if (qemu_opt_get(opts, copy_on_read)) {
        to->copy_on_read = qemu_opt_get_bool(opts, copy_on_read, false)
                           ? FVD_ON : FVD_OFF;
    }
    for (size_t i = 0; i < count; i++) {
        const char *name = header ? parameters[i].name
                                  : fvd_runtime_list->desc[i + 2].name;

        if ((!header || parameters[i].in_header) && qemu_opt_get(opts, name)) {
            *fvd_fill_number(to, &parameters[i]) = fvd_fill_value(
                opts, name,
                fvd_fill_option_type(&parameters[i]) == QEMU_OPT_SIZE);
        }
    }
}

/* ------------------------------------------------------------ open, reopen */

static int fvd_parse_prefetch(const char *word, FvdFillOptions *to,
                              Error **errp)
{
    int mode = qapi_enum_parse(&FvdPrefetch_lookup, word, FVD_PREFETCH_AUTO,
                               errp);

    if (mode < 0) {
        return -EINVAL;
    }
    to->paused = mode == FVD_PREFETCH_PAUSED;
    to->fill.prefetch = mode == FVD_PREFETCH_AUTO ? FVD_AUTO
                        : mode == FVD_PREFETCH_OFF ? FVD_OFF : FVD_ON;
    return 0;
}

/* Takes what is ours out of @options. */
int fvd_fill_from_options(QDict *options, FvdFillOptions *to, Error **errp)
{
    QemuOpts *opts = qemu_opts_create(fvd_runtime_list, NULL, 0, &error_abort);
    int ret = -EINVAL;

    *to = (FvdFillOptions) { 0 };
    if (!qemu_opts_absorb_qdict(opts, options, errp)) {
        goto out;
    }
    fvd_fill_from_opts(opts, false, &to->fill);
    ret = fvd_parse_prefetch(qemu_opt_get(opts, FVD_RUNTIME_PREFETCH), to,
                             errp);
out:
    qemu_opts_del(opts);
    return ret;
}

int fvd_fill_apply(BDRVFvdState *s, const FvdFillOptions *options, Error **errp)
{
    struct fvd_error error;

    if (fvd_set_fill(s->image, &options->fill, &error) < 0) {
        error_setg(errp, "%s", error.text);
        return -EINVAL;
    }
    if (options->paused != s->fill_options.paused) {
        fvd_prefetch_pause(s->image, options->paused);
    }
    s->fill_options = *options;
    return 0;
}

/* ------------------------------------------------------ create, info, amend */

/* Numbers that are in the header, in QEMU's structures and in the core's. */
typedef struct FvdHeaderNumber {
    size_t has_created, created; /* in BlockdevCreateOptionsFvd */
    size_t has_told, told;       /* in ImageInfoSpecificFvd */
    size_t fill;                 /* in struct fvd_fill */
    bool size;                   /* a size of QAPI's, which has no sign */
} FvdHeaderNumber;

#define FVD_HEADER_NUMBER(member) {                                           \
    .has_created = offsetof(BlockdevCreateOptionsFvd, has_##member),          \
    .created = offsetof(BlockdevCreateOptionsFvd, member),                    \
    .has_told = offsetof(ImageInfoSpecificFvd, has_##member),                 \
    .told = offsetof(ImageInfoSpecificFvd, member),                           \
    .fill = offsetof(struct fvd_fill, member),                                \
    .size = __builtin_types_compatible_p(                                     \
        typeof(((BlockdevCreateOptionsFvd *)NULL)->member), uint64_t),        \
}

static const FvdHeaderNumber fvd_header_numbers[] = {
    FVD_HEADER_NUMBER(max_outstanding_copy_on_read_data),
    FVD_HEADER_NUMBER(prefetch_start_delay),
    FVD_HEADER_NUMBER(num_prefetch_slots),
    FVD_HEADER_NUMBER(bytes_per_prefetch),
    FVD_HEADER_NUMBER(prefetch_min_read_throughput),
    FVD_HEADER_NUMBER(prefetch_max_read_throughput),
    FVD_HEADER_NUMBER(prefetch_min_write_throughput),
    FVD_HEADER_NUMBER(prefetch_max_write_throughput),
    FVD_HEADER_NUMBER(prefetch_throttle_time),
    FVD_HEADER_NUMBER(prefetch_read_throughput_measure_time),
    FVD_HEADER_NUMBER(prefetch_write_throughput_measure_time),
};

void fvd_fill_from_create(const BlockdevCreateOptionsFvd *from,
                          struct fvd_fill *to)
{
    fvd_fill_init(to);
    if (from->has_copy_on_read) {
        to->copy_on_read = from->copy_on_read ? FVD_ON : FVD_OFF;
    }
    for (size_t i = 0; i < ARRAY_SIZE(fvd_header_numbers); i++) {
        const FvdHeaderNumber *number = &fvd_header_numbers[i];

        if (*(const bool *)((const char *)from + number->has_created)) {
            int64_t value = *(const int64_t *)((const char *)from +
                                               number->created);

            /* The one below stands for a number that was not given. */
            *(int64_t *)((char *)to + number->fill) =
                number->size && value < 0 ? INT64_MAX : MAX(value, -INT64_MAX);
        }
    }
}

/* What stands for what is usual is not worth telling. */
void fvd_fill_tell(BDRVFvdState *s, ImageInfoSpecificFvd *info)
{
    struct fvd_fill fill;

    fvd_get_fill(s->image, true, &fill);
    info->copy_on_read = fill.copy_on_read == FVD_ON;
    for (size_t i = 0; i < ARRAY_SIZE(fvd_header_numbers); i++) {
        const FvdHeaderNumber *number = &fvd_header_numbers[i];
        int64_t value = *(int64_t *)((char *)&fill + number->fill);
        bool always = number->fill == offsetof(struct fvd_fill,
                                               prefetch_start_delay);

        *(bool *)((char *)info + number->has_told) = always || value != 0;
        *(int64_t *)((char *)info + number->told) = value;
    }
}

typedef struct FvdAmend {
    struct fvd_fill fill;
    Error **errp;
} FvdAmend;

static int coroutine_fn GRAPH_RDLOCK
fvd_do_amend(BlockDriverState *bs, void *opaque)
{
    BDRVFvdState *s = bs->opaque;
    FvdAmend *amend = opaque;
    struct fvd_error error;
    int ret = fvd_amend(s->image, &amend->fill, &error);

    if (ret < 0) {
        error_setg(amend->errp, "%s", error.text);
    }
    return ret;
}

int GRAPH_RDLOCK
fvd_amend_options(BlockDriverState *bs, QemuOpts *opts,
                  BlockDriverAmendStatusCB *status_cb, void *cb_opaque,
                  bool force, Error **errp)
{
    BDRVFvdState *s = bs->opaque;
    FvdAmend amend = { .errp = errp };
    int ret;

    if (s->life != FVD_WRITABLE) {
        error_setg(errp, "The image is not open for writing");
        return -EACCES;
    }
    fvd_fill_from_opts(opts, true, &amend.fill);
    ret = fvd_call(bs, fvd_do_amend, &amend);
    if (ret == 0 && status_cb) {
        status_cb(bs, 1, 1, cb_opaque);
    }
    return ret;
}

QemuOptsList fvd_amend_opts = {
    .name = "fvd-amend-opts",
    .head = QTAILQ_HEAD_INITIALIZER(fvd_amend_opts.head),
    .desc = {
        FVD_FILL_OPTS,
        { /* end of list */ }
    }
};

/* -------------------------------------------------------------- statistics */

static FvdHoldList *fvd_holds(const struct fvd_progress *progress)
{
    FvdHoldList *list = NULL;

    for (int hold = FVD_HOLD_COUNT - 1; hold > FVD_HOLD_NONE; hold--) {
        FvdHold *entry;

        if (hold == FVD_HOLD_FINISHED || hold == FVD_HOLD_OFF) {
            continue;
        }
        entry = g_new0(FvdHold, 1);
        *entry = (FvdHold) {
            .reason = g_strdup(fvd_hold_name(hold)),
            .count = progress->holds[hold],
            .ns = progress->held_ns[hold],
        };
        QAPI_LIST_PREPEND(list, entry);
    }
    return list;
}

BlockStatsSpecific *fvd_get_specific_stats(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;
    BlockStatsSpecific *stats = g_new0(BlockStatsSpecific, 1);
    struct fvd_progress progress;

    fvd_get_progress(s->image, &progress);
    stats->driver = BLOCKDEV_DRIVER_FVD;
    stats->u.fvd = (BlockStatsSpecificFvd) {
        .complete = progress.filled || progress.blocks == 0,
        .block_size = progress.block_size,
        .blocks = progress.blocks,
        .blocks_here = progress.blocks_here,
        .bytes_guest = progress.bytes_guest,
        .bytes_copy_on_read = progress.bytes_copy_on_read,
        .bytes_prefetch = progress.bytes_prefetch,
        .bytes_zero = progress.bytes_zero,
        .bytes_shared = progress.bytes_shared,
        .bytes_stored = progress.bytes_stored,
        .bytes_dropped = progress.bytes_dropped,
        .memory = progress.memory,
        .copy_on_read = progress.copy_on_read,
        .prefetch = progress.prefetch,
        .hold = g_strdup(fvd_hold_name(progress.hold)),
        .holds = fvd_holds(&progress),
        .rate = progress.rate,
        .base_rate = progress.base_rate,
        .base_latency_ns = progress.base_latency_ns,
        .window = progress.window,
        .in_flight = progress.in_flight,
        .share = progress.share_percent,
        .base_errors = progress.base_errors,
        .store_errors = progress.store_errors,
        .has_estimated_end = progress.ends_in_s != UINT64_MAX,
        .estimated_end = progress.ends_in_s,
    };
    return stats;
}

/* --------------------------------------------------------------- detaching */

/*
 * The base is not read any more. It goes when nobody holds on to the graph: a
 * drained section belongs to somebody who may be changing it, and a block job
 * may need the link. The end of either is the end of a drained section, after
 * which fvd_drain_end() comes here again; closing drops the base in any case.
 */
static void fvd_detach_base(BlockDriverState *bs)
{
    BDRVFvdState *s = bs->opaque;
    struct fvd_progress progress;
    Error *local_err = NULL;

    GLOBAL_STATE_CODE();
    if (qatomic_read(&bs->quiesce_counter) > 0) {
        return;
    }
    qatomic_set(&s->filled, false);
    fvd_get_progress(s->image, &progress);
    if (!bs->backing || !progress.filled) {
        return; /* it was emptied since */
    }
    if (bs->backing->frozen || bdrv_set_backing_hd(bs, NULL, &local_err) < 0) {
        qatomic_set(&s->filled, true);
        error_free(local_err);
        return;
    }
    bs->backing_file[0] = '\0';
    bs->auto_backing_file[0] = '\0';
    bs->backing_format[0] = '\0';
    trace_fvd_detached(bs);
}

/* A drain that begins meanwhile waits for us, so the node is still there. */
static void fvd_detach_bh(void *opaque)
{
    BlockDriverState *bs = opaque;

    bdrv_ref(bs);
    bdrv_dec_in_flight(bs);
    fvd_detach_base(bs);
    bdrv_unref(bs);
}

/* Of an image that does not say that all is here, nothing is detached. */
void fvd_let_base_go(BDRVFvdState *s)
{
    qatomic_set(&s->filled, true);
    bdrv_inc_in_flight(s->bs);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), fvd_detach_bh, s->bs);
}
