/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FVD_FVD_H
#define FVD_FVD_H
/*
 * The C ABI of FVD's core: what an adapter (QEMU's glue, a simulator, a thread pool) gives, and
 * what it gets. All sizes and offsets are bytes. Functions return 0 or a negative errno unless they
 * say otherwise. "May suspend" means: must be called from a task (coroutine, fiber, thread), and
 * other tasks may run before it returns.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ what an adapter gives */

/* The three places that hold bytes. FVD_FILE_DATA is the FVD file itself unless there is a data
 * file; the adapter does that mapping. */
enum fvd_file {
    FVD_FILE_IMAGE = 0, /* header, bitmap, table, journal */
    FVD_FILE_DATA = 1,  /* guest data */
    FVD_FILE_BASE = 2,  /* base image, read only; reads past its end yield zeros */
};

/* A piece of a scatter/gather list: memory of the core, or a window of a guest's buffer, which only
 * the adapter can look into. Exactly one of memory and guest is set. */
struct fvd_slice {
    void* memory;
    void* guest;
    uint64_t guest_offset;
    uint64_t length;
};

enum fvd_request_flags {
    FVD_REQ_FUA = 1 << 0,             /* durable when done */
    FVD_REQ_MAY_UNMAP = 1 << 1,       /* zero writes may punch holes */
    FVD_REQ_NO_FALLBACK = 1 << 2,     /* zero writes fail with -ENOTSUP rather than write buffers */
    FVD_REQ_WRITE_UNCHANGED = 1 << 3, /* the guest-visible content stays the same */
    FVD_REQ_REGISTERED_BUF = 1 << 4,  /* the guest buffer is registered with the adapter */
};

/* Steps that fault injection can hook; announced before the step. */
enum fvd_event {
    FVD_EVENT_READ_IMAGE,    /* guest read of data that is here */
    FVD_EVENT_READ_BASE,     /* guest read from the base */
    FVD_EVENT_WRITE_DATA,    /* guest write to data that is here */
    FVD_EVENT_COW_READ,      /* copy-on-write: reading the rest of a block from the base */
    FVD_EVENT_COW_WRITE,     /* first write to a block */
    FVD_EVENT_COMMIT_FLUSH,  /* data flush before records */
    FVD_EVENT_JOURNAL_WRITE, /* a group of units */
    FVD_EVENT_JOURNAL_FLUSH, /* makes the group durable */
    FVD_EVENT_HOME_WRITE,    /* checkpoint: bitmap page to its home */
    FVD_EVENT_HOME_FLUSH,
    FVD_EVENT_HEADER_COPY, /* header update, step by step */
    FVD_EVENT_HEADER_COPY_FLUSH,
    FVD_EVENT_HEADER_PRIMARY,
    FVD_EVENT_HEADER_PRIMARY_FLUSH,
    FVD_EVENT_OPEN_READ,   /* metadata read at open */
    FVD_EVENT_FETCH_READ,  /* copy-on-read and prefetch: reading blocks from the base */
    FVD_EVENT_FETCH_STORE, /* storing them */
    /* No step to come, but done: every block is here and the header says so durably. The base is
     * not read any more until fvd_make_empty(), and may be detached. */
    FVD_EVENT_FILLED,
    FVD_EVENT_COUNT,
};

enum fvd_timer {
    FVD_TIMER_COMMIT,   /* background commit */
    FVD_TIMER_PREFETCH, /* the next look at what may be fetched or stored */
    FVD_TIMER_COUNT,
};

enum fvd_preallocation {
    FVD_PREALLOC_OFF,
    FVD_PREALLOC_FALLOC,
    FVD_PREALLOC_FULL,
    FVD_PREALLOC_METADATA, /* asked of create only: slots for all chunks, in storage that is sparse
                            */
};

struct fvd_host_ops {
    /* I/O; may suspend. Reads and writes transfer everything or fail. */
    int (*read)(void* host, enum fvd_file file, uint64_t offset, const struct fvd_slice* slices,
                size_t count, uint32_t flags);
    int (*write)(void* host, enum fvd_file file, uint64_t offset, const struct fvd_slice* slices,
                 size_t count, uint32_t flags);
    int (*write_zeroes)(void* host, enum fvd_file file, uint64_t offset, uint64_t length,
                        uint32_t flags);
    int (*discard)(void* host, enum fvd_file file, uint64_t offset, uint64_t length);
    int (*flush)(void* host, enum fvd_file file);
    /* Length of a file, or a negative errno; -ENOMEDIUM for a data file that was not opened. */
    int64_t (*length)(void* host, enum fvd_file file);
    /* Set the length of a file; what is new reads as zeros. -ENOTSUP where the mode or the change
     * is not possible. After a failure length() knows of a device that others made longer; what
     * that holds behind its old end is anything. */
    int (*resize)(void* host, enum fvd_file file, uint64_t length, enum fvd_preallocation mode);
    /* Does [offset, offset+*run) read as zeros without being read? Sets *zero and *run, 1 <= *run
     * <= length. */
    int (*extent)(void* host, enum fvd_file file, uint64_t offset, uint64_t length, bool* zero,
                  uint64_t* run);
    /* True when a fresh file's unwritten areas read as zeros. */
    bool (*has_zero_init)(void* host, enum fvd_file file);

    /* Memory aligned for I/O on every file (at least 4096 bytes when size is larger); NULL when
     * there is none. Content undefined. */
    void* (*allocate)(void* host, size_t size);
    void (*release)(void* host, void* memory);
    /* A buffer of zeros, so that slices of it can stand for zero data. */
    void (*fill_guest_zero)(void* host, void* guest, uint64_t guest_offset, uint64_t length);
    void (*copy_to_guest)(void* host, void* guest, uint64_t guest_offset, const void* memory,
                          uint64_t length);

    /* One mutex an image, for short sections that never perform I/O. */
    void (*lock)(void* host);
    void (*unlock)(void* host);
    /* The calling task; valid until it returns. */
    void* (*current_task)(void* host);
    /* With the mutex held: release it, sleep until wake() was called for this task, take it again.
     * A wake() between release and sleep is not lost. May suspend. */
    void (*park)(void* host);
    /* With the mutex held. */
    void (*wake)(void* host, void* task);

    /* Run run(opaque) in a task of its own, later, never inside this call. Called with the mutex
     * held, from any task or from none. Whoever waits for the image to be quiet (a drain) waits for
     * it. */
    void (*start_task)(void* host, void (*run)(void* opaque), void* opaque);

    /* Nanoseconds of a monotonic clock. Called with the mutex held or not. */
    uint64_t (*now)(void* host);
    /* After delay_ns the adapter runs fvd_timer_expired() in a new task; with 0 as well, and not
     * before the caller suspends or ends. Arming an armed timer moves it. Called with the mutex
     * held, from any task or from none. */
    void (*arm_timer)(void* host, enum fvd_timer timer, uint64_t delay_ns);
    void (*cancel_timer)(void* host, enum fvd_timer timer);

    void (*announce)(void* host, enum fvd_event event);
    void (*warn)(void* host, const char* sentence);
    void (*random)(void* host, void* bytes, size_t length);
};

/* ------------------------------------------------------------------ what it gets */

typedef struct fvd_image fvd_image;

struct fvd_error {
    char text[400]; /* a sentence for people; empty after success */
};

#define FVD_NAME_SIZE 1024
#define FVD_FORMAT_NAME_SIZE 16

enum fvd_condition {
    FVD_CONDITION_HEALTHY,
    FVD_CONDITION_FAILED, /* a flush or the journal failed: no metadata is written until reopened */
};

struct fvd_info {
    uint32_t format_version;
    bool never_writable; /* of 2011 (version 1): fvd_start() takes FVD_START_READ_ONLY only */
    uint64_t virtual_size;
    uint64_t base_size;
    uint64_t block_size;
    uint64_t bitmap_offset, bitmap_size;
    uint64_t table_offset, table_size; /* table_size 0: a linear image */
    uint64_t chunk_size, storage_grow_unit;
    uint64_t journal_offset, journal_size;
    uint32_t journal_unit;
    uint64_t journal_epoch;
    uint64_t data_offset;
    uint64_t header_generation;
    uint64_t incompatible_features, compatible_features, autoclear_features;
    uint8_t image_id[16];
    bool clean_shutdown;
    bool base_fully_prefetched;
    bool need_zero_init;
    bool started; /* the next five are known only then */
    uint64_t blocks, blocks_here;
    uint64_t pending_pages; /* pages of bitmap and table with uncommitted changes */
    uint64_t chunks, chunks_stored;
    enum fvd_condition condition;
    char data_file[FVD_NAME_SIZE], data_file_fmt[FVD_FORMAT_NAME_SIZE];
    char base_img[FVD_NAME_SIZE], base_img_fmt[FVD_FORMAT_NAME_SIZE];
    char add_storage_cmd[FVD_NAME_SIZE];
};

/* 100 when the bytes start an FVD image, of this format or of January 2011, else 0. */
int fvd_probe(const void* bytes, size_t length);

/*
 * Open, step one: read the header of FVD_FILE_IMAGE, so that the adapter learns the names of base
 * and data file. May suspend. On success *image must be given to fvd_free().
 */
int fvd_load(const struct fvd_host_ops* ops, void* host, fvd_image** image,
             struct fvd_error* error);

enum fvd_start_mode {
    FVD_START_READ_ONLY, /* recovered state in memory, not one byte is written */
    FVD_START_WRITABLE,  /* recovery is made durable before the first request */
};

/* Open, step two: bring the metadata into memory, replay the journal. May suspend. May be called
 * again after fvd_stop() (migration hand-over) and re-reads everything. */
int fvd_start(fvd_image* image, enum fvd_start_mode mode, struct fvd_error* error);

/* What most requests meet: [offset, offset + length) is all in FVD_FILE_DATA, at *data_offset, and
 * stays there. The adapter may read it, or write to it without FVD_REQ_FUA, itself; it announces
 * FVD_EVENT_READ_IMAGE or FVD_EVENT_WRITE_DATA. False says nothing. Does not suspend, takes no
 * lock. */
bool fvd_is_here(fvd_image* image, uint64_t offset, uint64_t length, uint64_t* data_offset);

/* Guest requests; may suspend, any number at a time, from any thread. guest is the adapter's
 * buffer. Requests stay inside [0, virtual_size). */
int fvd_read(fvd_image* image, uint64_t offset, uint64_t length, void* guest, uint64_t guest_offset,
             uint32_t flags);
int fvd_write(fvd_image* image, uint64_t offset, uint64_t length, void* guest,
              uint64_t guest_offset, uint32_t flags);
/* -ENOTSUP for a range that cuts a block which is still in the base. */
int fvd_write_zeroes(fvd_image* image, uint64_t offset, uint64_t length, uint32_t flags);
int fvd_discard(fvd_image* image, uint64_t offset, uint64_t length);
int fvd_flush(fvd_image* image);

enum fvd_place {
    FVD_PLACE_BASE,
    FVD_PLACE_DATA,
    FVD_PLACE_ZERO, /* nowhere: reads as zeros */
};
/* Where [offset, offset + *run) is; for FVD_PLACE_DATA *data_offset says where in FVD_FILE_DATA.
 * Does not suspend. */
void fvd_where(fvd_image* image, uint64_t offset, uint64_t length, enum fvd_place* place,
               uint64_t* run, uint64_t* data_offset);

/* True when blocks can come from the base: there is a bitmap with bits still clear. */
bool fvd_needs_base(fvd_image* image);

/* The header on disk says that nothing has to be recovered. Cheap, unlike fvd_get_info(), which
 * counts the blocks that are here. */
bool fvd_is_clean(fvd_image* image);

void fvd_get_info(fvd_image* image, struct fvd_info* info);

/* Change the base named in the header; empty strings: no base any more. May suspend; requests may
 * be in flight. The image was started writable. */
int fvd_set_base(fvd_image* image, const char* name, const char* format, struct fvd_error* error);

/* Change the size of the virtual disk; grown space reads as zeros. Requests may be in flight. After
 * an error the disk has its old size, or the new one if only preallocation failed; where the image
 * is failed, too, the next open may find either. May suspend. -EINVAL for a size that is not a
 * multiple of 512 or too large, -EFBIG where no table has so many chunks, -ENOSPC where a larger
 * table has no room. */
int fvd_resize(fvd_image* image, uint64_t size, enum fvd_preallocation mode,
               struct fvd_error* error);

/* Everything below wants a quiet image: no request in flight. May suspend. */

/* Forget every block that the base could serve; used after commit. */
int fvd_make_empty(fvd_image* image);
/* Commit, checkpoint, mark clean. After an error the image is left for recovery. Requests are not
 * allowed until fvd_start(). Does nothing to an image that was not started writable. */
int fvd_stop(fvd_image* image);
/* Release memory. Writes nothing: call fvd_stop() first. NULL is allowed. */
void fvd_free(fvd_image* image);

/* ------------------------------------------------------------------ filling */

enum fvd_switch {
    FVD_AUTO, /* what the header says */
    FVD_OFF,
    FVD_ON,
};

/* A number that was not given. */
#define FVD_UNSET INT64_MIN

/* How an image fills itself from its base: fields are named as their options, and
 * fvd_fill_parameters() has their units and ranges. */
struct fvd_fill {
    enum fvd_switch copy_on_read; /* keep what the guest reads from the base */
    /* FVD_AUTO: prefetch_start_delay decides; FVD_ON: a negative delay counts as 0. */
    enum fvd_switch prefetch;
    int64_t max_outstanding_copy_on_read_data;
    int64_t prefetch_start_delay;
    int64_t num_prefetch_slots;
    int64_t bytes_per_prefetch;
    int64_t prefetch_min_read_throughput;
    int64_t prefetch_max_read_throughput;
    int64_t prefetch_min_write_throughput;
    int64_t prefetch_max_write_throughput;
    int64_t prefetch_throttle_time;
    int64_t prefetch_read_throughput_measure_time;
    int64_t prefetch_write_throughput_measure_time;
    int64_t prefetch_max_in_flight;
    int64_t prefetch_guest_idle_time;
    int64_t prefetch_guest_slowdown;
    int64_t prefetch_retry_min_time;
    int64_t prefetch_retry_max_time;
};

struct fvd_fill_parameter {
    const char* name; /* of the field and of the option: "bytes_per_prefetch" */
    const char* unit;
    const char* what; /* for people */
    int64_t standard; /* what 0 stands for, where min is larger than 0 */
    int64_t min, max; /* 0 is legal as well */
    size_t offset;    /* in struct fvd_fill */
    bool in_header;   /* else it can be given at run time only */
};

/* One for each number of struct fvd_fill, in its order. */
const struct fvd_fill_parameter* fvd_fill_parameters(size_t* count);

/* Nothing is given. */
void fvd_fill_init(struct fvd_fill* fill);

/* Options of this process, at any time after fvd_load(), requests in flight or not; what is not
 * given is as the header says. They outlive fvd_stop(). -EINVAL for a number out of range. Does not
 * suspend. */
int fvd_set_fill(fvd_image* image, const struct fvd_fill* fill, struct fvd_error* error);

/* What is in force (resolved: no number is unset or 0 for a standard value), or with in_header what
 * the header says, as it says it. Does not suspend. */
void fvd_get_fill(fvd_image* image, bool in_header, struct fvd_fill* fill);

/* Change what the header says, durably; what is not given stays. The image was started writable;
 * requests may be in flight. -EINVAL for a number out of range, -ENOTSUP for one that the header
 * has no field for. May suspend. */
int fvd_amend(fvd_image* image, const struct fvd_fill* fill, struct fvd_error* error);

/* A person wants prefetch to stop for a while; outlives fvd_stop(). Does not suspend. */
void fvd_prefetch_pause(fvd_image* image, bool paused);

/* With true nothing new is begun in the background and nothing is kept that the guest reads from
 * the base, until the same number of calls with false. Does not wait: what is under way ends in
 * tasks. For drained sections, and for an image that another process is about to take over. Counted
 * from fvd_load() on. Does not suspend. */
void fvd_quiesce(fvd_image* image, bool quiesce);

/* Why prefetch begins no request now. */
enum fvd_hold {
    FVD_HOLD_NONE,
    FVD_HOLD_FINISHED,      /* everything is here */
    FVD_HOLD_OFF,           /* nobody asked for it, or the image cannot (read-only, failed) */
    FVD_HOLD_PAUSED,        /* fvd_prefetch_pause() */
    FVD_HOLD_START_DELAY,   /* prefetch_start_delay has not passed */
    FVD_HOLD_BASE_ERROR,    /* backing off after an error of the base */
    FVD_HOLD_STORE_ERROR,   /* backing off after an error of the image */
    FVD_HOLD_BELOW_MINIMUM, /* a random pause after too low a throughput */
    FVD_HOLD_STORING,       /* the image takes data slower than the base gives it */
    FVD_HOLD_RATE_LIMIT,    /* prefetch_max_read_throughput */
    FVD_HOLD_GUEST_ACTIVE,  /* the guest reads from the base */
    FVD_HOLD_PIPE_FULL,     /* more in flight would only wait */
    FVD_HOLD_COUNT,
};
/* A word for people: "guest-active". */
const char* fvd_hold_name(enum fvd_hold hold);

/* Counters begin at fvd_start(). */
struct fvd_progress {
    uint64_t blocks, blocks_here; /* of block_size bytes; 0 where no base is needed */
    uint64_t block_size;
    bool copy_on_read, prefetch, paused; /* in force */
    bool filled;                         /* everything is here, and the header says so */
    enum fvd_hold hold;
    uint64_t hold_ends; /* in so many ns; UINT64_MAX: at an event */

    /* Bytes of the base. */
    uint64_t bytes_guest;        /* read for the guest, not kept; edges of first writes, too */
    uint64_t bytes_copy_on_read; /* read for the guest, to be kept */
    uint64_t bytes_prefetch;     /* read ahead of the guest */
    uint64_t bytes_zero;         /* known to be zeros, not read */
    uint64_t bytes_shared;       /* given to the guest from memory, fetched by somebody else */
    uint64_t bytes_stored;       /* kept, those of bytes_zero included */
    uint64_t bytes_dropped;      /* fetched in vain: the guest wrote first, or storing failed */
    uint64_t memory;             /* held now for data on its way into the image */

    uint64_t base_errors, store_errors; /* of prefetch and copy-on-read */
    uint64_t holds[FVD_HOLD_COUNT];     /* how often */
    uint64_t held_ns[FVD_HOLD_COUNT];   /* and how long */

    uint64_t rate;            /* bytes/s of prefetch, smoothed over seconds */
    uint64_t base_rate;       /* bytes/s the base was seen to give */
    uint64_t base_latency_ns; /* unloaded; 0: not known */
    uint64_t window;          /* bytes that may be in flight while the guest is idle */
    uint64_t in_flight;       /* bytes of prefetch at the base */
    uint32_t share_percent;   /* of the base's rate, that is used while the guest reads */
    uint64_t ends_in_s;       /* an estimate; UINT64_MAX: not known */
};
/* Does not suspend. */
void fvd_get_progress(fvd_image* image, struct fvd_progress* progress);

/* Called by the adapter in a new task when a timer fired. May suspend. */
void fvd_timer_expired(fvd_image* image, enum fvd_timer timer);
/* Commit what is pending, e.g. when a drain begins. May suspend; requests may be in flight. */
int fvd_commit(fvd_image* image);

/* ------------------------------------------------------------------ verbs */

struct fvd_create_options {
    uint64_t virtual_size;
    const char *base_img, *base_img_fmt; /* NULL: no base */
    uint64_t base_size;                  /* length of the base, 0: not known */
    bool presets; /* the base is at FVD_FILE_BASE and nobody writes to it: find its zero areas */
    const char *data_file, *data_file_fmt; /* NULL: data in the FVD file */
    uint64_t block_size, journal_size;     /* 0: default */
    uint32_t journal_unit;                 /* 0: default */
    uint64_t detect_sparse_hole; /* also read the base and find runs of zeros this long; 0: off */
    enum fvd_preallocation preallocation;
    bool compact_image; /* storage is allocated chunk by chunk, through a table */
    uint64_t chunk_size, storage_grow_unit; /* 0: default; of compact images only */
    const struct fvd_fill* fill; /* for the header; NULL: neither copy-on-read nor prefetch */
};

/* Write an empty image to FVD_FILE_IMAGE (and size FVD_FILE_DATA). May suspend. */
int fvd_create(const struct fvd_host_ops* ops, void* host, const struct fvd_create_options* options,
               struct fvd_error* error);

struct fvd_measure_result {
    uint64_t required, fully_allocated;
    uint64_t granularity; /* data_bytes counts whole pieces of this size that hold any data; 1 where
                             data_bytes does not matter */
};
/* Size of the FVD file: with data_bytes of data in it, and at most. A bound for an image with a
 * base. Whoever does not know how to count the data yet calls it once with 0 for the granularity.
 */
int fvd_measure(const struct fvd_create_options* options, uint64_t data_bytes,
                struct fvd_measure_result* result, struct fvd_error* error);

struct fvd_check_result {
    /* corruptions and leaks count what was found, the _fixed numbers what of that was repaired. */
    uint64_t corruptions, leaks, check_errors, corruptions_fixed, leaks_fixed;
    uint64_t image_end_offset;
    uint64_t blocks, blocks_here;
    uint64_t chunks, chunks_stored; /* of a compact image, else 0 */
    uint64_t chunks_fragmented;     /* stored ones that do not follow the one before them */
    uint64_t journal_units_pending; /* valid units that the next writable open replays */
};
enum fvd_fix { FVD_FIX_NONE = 0, FVD_FIX_LEAKS = 1, FVD_FIX_ERRORS = 2 };
/* Judge a whole image, and with fix repair what can be repaired. Each finding is one sentence given
 * to host->warn(). May suspend; the image must not be started by anyone. -ENOTSUP and the like only
 * when the header cannot be understood at all. */
int fvd_check(const struct fvd_host_ops* ops, void* host, uint32_t fix,
              struct fvd_check_result* result, struct fvd_error* error);

#ifdef __cplusplus
}
#endif
#endif
