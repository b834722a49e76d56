/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The C ABI: a Host over the adapter's table of functions, and one thin function per call. */
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "fvd/engine/heritage_image.h"
#include "fvd/engine/image.h"
#include "fvd/engine/prefetch_pace.h"
#include "fvd/fvd.h"
#include "fvd/verbs.h"

namespace {

using namespace fvd;

class TableHost final : public Host {
  public:
    TableHost(const fvd_host_ops* ops, void* host) : ops_(*ops), host_(host) {}

    Status read(File file, uint64_t offset, std::span<const Slice> to, uint32_t flags) override {
        return ops_.read(host_, file, offset, to.data(), to.size(), flags);
    }
    Status write(File file, uint64_t offset, std::span<const Slice> from, uint32_t flags) override {
        return ops_.write(host_, file, offset, from.data(), from.size(), flags);
    }
    Status write_zeroes(File file, uint64_t offset, uint64_t length, uint32_t flags) override {
        return ops_.write_zeroes(host_, file, offset, length, flags);
    }
    Status discard(File file, uint64_t offset, uint64_t length) override {
        return ops_.discard(host_, file, offset, length);
    }
    Status flush(File file) override { return ops_.flush(host_, file); }
    int64_t length(File file) override { return ops_.length(host_, file); }
    Status resize(File file, uint64_t length, Preallocation mode) override {
        return ops_.resize(host_, file, length, mode);
    }
    Status extent(File file, uint64_t offset, uint64_t length, bool* zero, uint64_t* run) override {
        return ops_.extent(host_, file, offset, length, zero, run);
    }
    bool has_zero_init(File file) override { return ops_.has_zero_init(host_, file); }
    void* allocate(size_t size) override { return ops_.allocate(host_, size); }
    void release(void* memory) override { ops_.release(host_, memory); }
    void fill_guest_zero(void* guest, uint64_t guest_offset, uint64_t length) override {
        ops_.fill_guest_zero(host_, guest, guest_offset, length);
    }
    void copy_to_guest(void* guest, uint64_t guest_offset, ConstBytes from) override {
        ops_.copy_to_guest(host_, guest, guest_offset, from.data(), from.size());
    }
    void lock() override { ops_.lock(host_); }
    void unlock() override { ops_.unlock(host_); }
    void* current_task() override { return ops_.current_task(host_); }
    void park() override { ops_.park(host_); }
    void wake(void* task) override { ops_.wake(host_, task); }
    void start_task(Task run, void* opaque) override { ops_.start_task(host_, run, opaque); }
    uint64_t now() override { return ops_.now(host_); }
    void arm_timer(Timer timer, uint64_t delay_ns) override {
        ops_.arm_timer(host_, timer, delay_ns);
    }
    void cancel_timer(Timer timer) override { ops_.cancel_timer(host_, timer); }
    void announce(Event event) override { ops_.announce(host_, event); }
    void warn(const char* sentence) override { ops_.warn(host_, sentence); }
    void random(MutableBytes bytes) override { ops_.random(host_, bytes.data(), bytes.size()); }

  private:
    const fvd_host_ops ops_;
    void* const host_;
};

int report(const Error& error, fvd_error* out) {
    static_assert(sizeof(out->text) == Error::kTextSize);
    std::memcpy(out->text, error.text, sizeof(out->text));
    return error.code;
}

fvd_place to_c(heritage::Place place) {
    switch (place) {
        case heritage::Place::base:
            return FVD_PLACE_BASE;
        case heritage::Place::data:
            return FVD_PLACE_DATA;
        case heritage::Place::zero:
            break;
    }
    return FVD_PLACE_ZERO;
}

}  // namespace

/* Images of 2011 are known here and nowhere else in the engine. They are started read-only or not
 * at all, so what changes an image never meets one. */
struct fvd_image {
    TableHost host;
    Image image;
    HeritageImage heritage;
    bool is_heritage = false;
    fvd_image(const fvd_host_ops* ops, void* context)
        : host(ops, context), image(host), heritage(host) {}

    /* The format of today is tried first, and pays nothing for the other. */
    Error load() {
        Error outcome = image.load();
        if (!outcome.ok() && HeritageImage::is_one(host)) {
            is_heritage = true;
            outcome = heritage.load();
        }
        return outcome;
    }
};

int fvd_probe(const void* bytes, size_t length) {
    const ConstBytes start(static_cast<const std::byte*>(bytes), length);
    return std::max(probe(start), heritage::probe(start));
}

int fvd_load(const fvd_host_ops* ops, void* host, fvd_image** image, fvd_error* error) {
    void* memory = ops->allocate(host, sizeof(fvd_image));
    if (memory == nullptr) {
        return report(Error::make(-ENOMEM, "no memory for an open image"), error);
    }
    fvd_image* loaded = new (memory) fvd_image(ops, host);
    const Error outcome = loaded->load();
    if (!outcome.ok()) {
        loaded->~fvd_image();
        ops->release(host, memory);
        return report(outcome, error);
    }
    *image = loaded;
    return report(outcome, error);
}

void fvd_free(fvd_image* image) {
    if (image == nullptr) {
        return;
    }
    TableHost host = image->host; /* outlives the memory it releases */
    image->~fvd_image();
    host.release(image);
}

int fvd_start(fvd_image* image, fvd_start_mode mode, fvd_error* error) {
    const auto start_mode = static_cast<StartMode>(mode);
    return report(
        image->is_heritage ? image->heritage.start(start_mode) : image->image.start(start_mode),
        error);
}

int fvd_stop(fvd_image* image) {
    if (image->is_heritage) {
        image->heritage.stop();
        return 0;
    }
    return image->image.stop().value();
}

bool fvd_is_here(fvd_image* image, uint64_t offset, uint64_t length, uint64_t* data_offset) {
    return !image->is_heritage && image->image.is_here(offset, length, data_offset);
}

int fvd_read(fvd_image* image, uint64_t offset, uint64_t length, void* guest, uint64_t guest_offset,
             uint32_t flags) {
    const GuestBuffer to{guest, guest_offset};
    return image->is_heritage ? image->heritage.read(offset, length, to, flags).value()
                              : image->image.read(offset, length, to, flags).value();
}

int fvd_write(fvd_image* image, uint64_t offset, uint64_t length, void* guest,
              uint64_t guest_offset, uint32_t flags) {
    return image->image.write(offset, length, {guest, guest_offset}, flags).value();
}

int fvd_write_zeroes(fvd_image* image, uint64_t offset, uint64_t length, uint32_t flags) {
    return image->image.write_zeroes(offset, length, flags).value();
}

int fvd_discard(fvd_image* image, uint64_t offset, uint64_t length) {
    return image->image.discard(offset, length).value();
}

int fvd_flush(fvd_image* image) {
    return image->image.flush().value();
}

void fvd_where(fvd_image* image, uint64_t offset, uint64_t length, fvd_place* place, uint64_t* run,
               uint64_t* data_offset) {
    if (image->is_heritage) {
        const heritage::Placement found = image->heritage.where(offset, length);
        *place = to_c(found.place);
        *run = found.run;
        *data_offset = found.data_offset;
        return;
    }
    const Placement found = image->image.where(offset, length);
    *place = static_cast<fvd_place>(found.place);
    *run = found.run;
    *data_offset = found.data_offset;
}

bool fvd_is_clean(fvd_image* image) {
    return image->is_heritage ? image->heritage.is_clean() : image->image.is_clean();
}

bool fvd_needs_base(fvd_image* image) {
    return image->is_heritage ? image->heritage.needs_base() : image->image.needs_base();
}

void fvd_get_info(fvd_image* image, fvd_info* info) {
    if (image->is_heritage) {
        image->heritage.describe(info);
    } else {
        image->image.describe(info);
    }
}

int fvd_make_empty(fvd_image* image) {
    return image->image.make_empty().value();
}

int fvd_set_base(fvd_image* image, const char* name, const char* format, fvd_error* error) {
    return report(image->image.set_base(name, format), error);
}

int fvd_resize(fvd_image* image, uint64_t size, fvd_preallocation mode, fvd_error* error) {
    return report(image->image.resize(size, mode), error);
}

const fvd_fill_parameter* fvd_fill_parameters(size_t* count) {
    *count = fill_parameters().size();
    return fill_parameters().data();
}

void fvd_fill_init(fvd_fill* fill) {
    *fill = empty_fill();
}

int fvd_set_fill(fvd_image* image, const fvd_fill* fill, fvd_error* error) {
    return report(image->is_heritage ? check_fill(*fill, false) : image->image.set_fill(*fill),
                  error);
}

void fvd_get_fill(fvd_image* image, bool in_header, fvd_fill* fill) {
    *fill = image->is_heritage ? fill_of(Header()) : image->image.fill(in_header);
}

int fvd_amend(fvd_image* image, const fvd_fill* fill, fvd_error* error) {
    return report(image->is_heritage ? heritage_is_read_only() : image->image.amend(*fill), error);
}

void fvd_prefetch_pause(fvd_image* image, bool paused) {
    image->image.pause_prefetch(paused);
}

void fvd_quiesce(fvd_image* image, bool quiesce) {
    image->image.quiesce(quiesce);
}

const char* fvd_hold_name(fvd_hold hold) {
    return pace_reason_name(static_cast<PaceReason>(hold));
}

void fvd_get_progress(fvd_image* image, fvd_progress* progress) {
    if (image->is_heritage) {
        image->heritage.progress(progress);
    } else {
        image->image.progress(progress);
    }
}

void fvd_timer_expired(fvd_image* image, fvd_timer timer) {
    image->image.timer_expired(timer);
}

int fvd_commit(fvd_image* image) {
    return image->image.commit().value();
}

int fvd_create(const fvd_host_ops* ops, void* host, const fvd_create_options* options,
               fvd_error* error) {
    TableHost table(ops, host);
    return report(create_image(table, *options), error);
}

int fvd_measure(const fvd_create_options* options, uint64_t data_bytes, fvd_measure_result* result,
                fvd_error* error) {
    return report(measure_image(*options, data_bytes, result), error);
}

int fvd_check(const fvd_host_ops* ops, void* host, uint32_t fix, fvd_check_result* result,
              fvd_error* error) {
    TableHost table(ops, host);
    Error outcome = check_image(table, fix, result);
    if (!outcome.ok() && HeritageImage::is_one(table)) {
        outcome = check_heritage(table, fix, result);
    }
    return report(outcome, error);
}
