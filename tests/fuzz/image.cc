/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Open then operate: a valid image is spoiled, and if it still opens it has to behave as a disk.
 * What it reads as after the first open is the truth, whatever that is; from there on a shadow
 * follows.
 */
#include <cerrno>
#include <memory>

#include "fvd/format/journal_unit.h"
#include "fvd/format/layout.h"
#include "fvd/verbs.h"
#include "templates.h"

namespace fvd::fuzz {

namespace {

constexpr uint64_t kSector = 512;

class Session {
  public:
    explicit Session(FlatHost& host) : host_(host) {}

    void run(const Program& program);

  private:
    struct Range {
        uint64_t offset = 0;
        uint64_t length = 0;
        bool empty() const { return length == 0; }
    };

    bool open(StartMode mode);
    void close();
    void request(const Step& step);
    void background();
    void manage(const Step& step);
    void reopen(const Step& step, bool cut);
    void check(uint32_t fix);

    void write(Range range, const Step& step);
    void zero(Range range, const Step& step);
    void discard(Range range);
    void durable(Status status);

    void look();
    void compare(Range uncertain);
    void compare_after_cut();
    Range range_of(const Step& step) const;

    FlatHost& host_;
    std::unique_ptr<Image> image_;
    bool writable_ = false;
    bool later_epoch_ = false;
    uint64_t disk_ = 0;
    /* Outlive an execution, so that nothing is allocated for each. */
    static std::vector<std::byte> guest_, again_, shadow_;
    static std::vector<uint8_t> unflushed_; /* by sector: changed since the last good flush */
};

std::vector<std::byte> Session::guest_(FlatHost::kCapacity);
std::vector<std::byte> Session::again_(FlatHost::kCapacity);
std::vector<std::byte> Session::shadow_(FlatHost::kCapacity);
std::vector<uint8_t> Session::unflushed_(FlatHost::kCapacity / kSector);

/* ------------------------------------------------------------------------------- open and close */

bool Session::open(StartMode mode) {
    image_ = std::make_unique<Image>(host_);
    writable_ = mode == StartMode::writable;
    host_.read_only = true;
    const Error loaded = image_->load();
    host_.read_only = !writable_;
    const Error error = loaded.ok() ? image_->start(mode) : loaded;
    if (!error.ok()) {
        FUZZ_CHECK(error.text[0] != '\0' && error.code < 0);
        image_.reset();
        host_.read_only = false;
        return false;
    }
    disk_ = image_->header().virtual_size;
    FUZZ_CHECK(disk_ <= FlatHost::kCapacity);
    return true;
}

void Session::close() {
    const Status status = image_->stop();
    FUZZ_CHECK(status.ok() || host_.failures != 0);
    image_.reset();
    host_.read_only = false;
}

/* ------------------------------------------------------------------------------- the shadow */

/* Two reads are equal, however they are cut into pieces. */
void Session::look() {
    FUZZ_CHECK(image_->read(0, disk_, {guest_.data(), 0}, 0).ok()); /* the host did not fail */
    uint64_t piece = 3 * kSector;
    for (uint64_t at = 0; at < disk_; at += piece, piece = piece * 2 + kSector) {
        const uint64_t length = std::min(piece, disk_ - at);
        FUZZ_CHECK(image_->read(at, length, {again_.data(), at}, 0).ok());
    }
    FUZZ_CHECK(std::memcmp(guest_.data(), again_.data(), disk_) == 0);
}

/* Outside of @p uncertain the disk is the shadow; inside, it is the new truth. */
void Session::compare(Range uncertain) {
    const int64_t fuse = std::exchange(host_.fail_call, -1);
    look();
    const uint64_t end = uncertain.offset + uncertain.length;
    FUZZ_CHECK(std::memcmp(guest_.data(), shadow_.data(), uncertain.offset) == 0);
    FUZZ_CHECK(std::memcmp(guest_.data() + end, shadow_.data() + end, disk_ - end) == 0);
    std::memcpy(shadow_.data() + uncertain.offset, guest_.data() + uncertain.offset,
                uncertain.length);
    host_.fail_call = fuse;
}

/* P1: what was flushed is there. The rest may be old or new. */
void Session::compare_after_cut() {
    look();
    for (uint64_t sector = 0; sector * kSector < disk_; sector++) {
        const uint64_t at = sector * kSector;
        FUZZ_CHECK(unflushed_[sector] != 0 || later_epoch_ ||
                   std::memcmp(guest_.data() + at, shadow_.data() + at, kSector) == 0);
    }
    std::memcpy(shadow_.data(), guest_.data(), disk_);
}

Session::Range Session::range_of(const Step& step) const {
    if (disk_ == 0) {
        return {};
    }
    const uint64_t sectors = disk_ / kSector;
    const uint64_t first = step.b % sectors;
    /* Most requests are small; some reach the end of the disk. */
    const uint64_t rest = sectors - first;
    const uint64_t most = (step.value & 7) == 7 ? rest : std::min<uint64_t>(24, rest);
    return {first * kSector, (1 + (step.value >> 3) % most) * kSector};
}

/* ------------------------------------------------------------------------------- requests */

void Session::durable(Status status) {
    if (status.ok()) {
        std::memset(unflushed_.data(), 0, disk_ / kSector);
    }
    FUZZ_CHECK(status.ok() || host_.failures != 0);
}

void Session::write(Range range, const Step& step) {
    std::memset(guest_.data(), step.a | 1, range.length);
    for (uint64_t at = 0; at < range.length; at += kSector) {
        store_le<uint64_t>(guest_, at, step.value + at);
    }
    const uint32_t flags = (step.a & 1) != 0 ? FVD_REQ_FUA : 0;
    const Status status = image_->write(range.offset, range.length, {guest_.data(), 0}, flags);
    FUZZ_CHECK(status.ok() || host_.failures != 0);
    if (status.ok()) {
        std::memcpy(shadow_.data() + range.offset, guest_.data(), range.length);
    }
    const bool durable = status.ok() && flags != 0;
    std::memset(unflushed_.data() + range.offset / kSector, durable ? 0 : 1,
                range.length / kSector);
    compare(status.ok() ? Range{} : range);
}

void Session::zero(Range range, const Step& step) {
    const uint32_t flags = ((step.a & 1) != 0 ? FVD_REQ_FUA : 0) |
                           ((step.a & 2) != 0 ? FVD_REQ_MAY_UNMAP : 0) |
                           ((step.a & 4) != 0 ? FVD_REQ_NO_FALLBACK : 0);
    const Status status = image_->write_zeroes(range.offset, range.length, flags);
    FUZZ_CHECK(status.ok() || status.value() == -ENOTSUP || host_.failures != 0);
    if (status.ok()) {
        std::memset(shadow_.data() + range.offset, 0, range.length);
        std::memset(unflushed_.data() + range.offset / kSector, (step.a & 1) == 0,
                    range.length / kSector);
    } else if (status.value() != -ENOTSUP) {
        std::memset(unflushed_.data() + range.offset / kSector, 1, range.length / kSector);
    }
    compare(status.ok() || status.value() == -ENOTSUP ? Range{} : range);
}

/* Each sector is as it was, or zeros. */
void Session::discard(Range range) {
    const Status status = image_->discard(range.offset, range.length);
    FUZZ_CHECK(status.ok() || host_.failures != 0);
    const std::vector<std::byte> before(
        shadow_.begin() + static_cast<ptrdiff_t>(range.offset),
        shadow_.begin() + static_cast<ptrdiff_t>(range.offset + range.length));
    compare(range);
    static constexpr std::array<std::byte, kSector> kZeros{};
    for (uint64_t at = 0; at < range.length; at += kSector) {
        const std::byte* const now = shadow_.data() + range.offset + at;
        FUZZ_CHECK(std::memcmp(now, before.data() + at, kSector) == 0 ||
                   std::memcmp(now, kZeros.data(), kSector) == 0);
    }
    std::memset(unflushed_.data() + range.offset / kSector, 1, range.length / kSector);
}

void Session::request(const Step& step) {
    const Range range = range_of(step);
    const unsigned kind = kind_of(step);
    if (kind <= 21 && (range.empty() || !writable_)) {
        return;
    }
    if (kind <= 17) {
        write(range, step);
    } else if (kind <= 19) {
        zero(range, step);
    } else if (kind <= 21) {
        discard(range);
    } else if (kind <= 23) {
        durable(image_->flush());
    } else {
        manage(step);
    }
}

/* An image may ask to be filled. */
void Session::background() {
    if (image_ == nullptr) {
        return;
    }
    host_.run_tasks();
    if (std::exchange(host_.prefetch_armed, false)) {
        image_->timer_expired(FVD_TIMER_PREFETCH);
        host_.run_tasks();
    }
}

void Session::manage(const Step& step) {
    switch (kind_of(step)) {
        case 24:
            host_.timer_armed = false;
            (step.a & 1) != 0 ? image_->timer_expired(FVD_TIMER_COMMIT)
                              : static_cast<void>(image_->commit().ok());
            break;
        case 25: {
            static fvd_info info;
            image_->describe(&info);
            FUZZ_CHECK(info.blocks_here <= info.blocks && info.virtual_size == disk_);
            const Range range = range_of(step);
            if (!range.empty()) {
                const Placement place = image_->where(range.offset, range.length);
                FUZZ_CHECK(place.run != 0 && place.run <= range.length);
            }
            break;
        }
        case 26:
            if (writable_) {
                char name[9] = {};
                std::memcpy(name, &step.value, 8);
                const Error error = image_->set_base(name, (step.a & 1) != 0 ? "" : "raw");
                FUZZ_CHECK(error.ok() || error.code == -EINVAL || host_.failures != 0);
            }
            break;
        case 27:
            host_.fail_call = step.b % 24;
            host_.fail_on = (step.a & 1) != 0;
            break;
        case 28:
            host_.zero_in_place = (step.a & 1) != 0;
            break;
        default:
            reopen(step, kind_of(step) != 29);
            break;
    }
}

/* ------------------------------------------------------------------------------- life goes on */

void Session::reopen(const Step& step, bool cut) {
    host_.fail_on = false;
    if (cut) {
        image_.reset();
        host_.forget_tasks();
        host_.read_only = false;
    } else {
        const bool was_writable = writable_;
        const Status status = image_->stop();
        FUZZ_CHECK(status.ok() || host_.failures != 0);
        image_.reset();
        host_.read_only = false;
        if (status.ok() && was_writable) {
            std::memset(unflushed_.data(), 0, disk_ / kSector);
        }
    }
    host_.fail_call = -1;
    if ((step.a & 2) != 0) {
        check((step.a & 4) != 0 ? FVD_FIX_LEAKS | FVD_FIX_ERRORS : FVD_FIX_NONE);
    }
    const uint64_t disk = disk_;
    if (!open((step.a & 1) != 0 ? StartMode::read_only : StartMode::writable)) {
        FUZZ_CHECK(later_epoch_);
        return;
    }
    FUZZ_CHECK(disk_ == disk);
    compare_after_cut();
}

/* What we left behind has no faults (P9) other than those that the edits made, which are not known
 * here: only that check comes to an end and changes nothing that a guest sees. */
void Session::check(uint32_t fix) {
    fvd_check_result result;
    host_.read_only = fix == FVD_FIX_NONE;
    FUZZ_CHECK(check_image(host_, fix, &result).ok() && result.check_errors == 0);
    host_.read_only = false;
}

/* A unit of an epoch that the header has not reached yet: no writer of ours leaves one, check calls
 * it damage, and once the epoch is reached it comes to life. Then nothing can be said of content.
 */
bool has_later_epoch(FlatHost& host) {
    const MutableBytes file(host.files[FVD_FILE_IMAGE].bytes);
    const auto chosen = choose_header(file.first(kHeaderRegionSize));
    if (!chosen.ok() || !check_layout(chosen.value().header, file.size()).ok()) {
        return false;
    }
    const Header& header = chosen.value().header;
    for (uint64_t i = 0; i < header.journal_units(); i++) {
        const ConstBytes unit =
            file.subspan(header.journal_offset + i * header.journal_unit, header.journal_unit);
        const auto view = UnitView::decode(unit, header.image_id);
        if (view && view->header().epoch > header.journal_epoch) {
            return true;
        }
    }
    return false;
}

void Session::run(const Program& program) {
    later_epoch_ = has_later_epoch(host_);
    if (!open(program.begin() != program.end() && program.begin()->a == 0xFF
                  ? StartMode::read_only
                  : StartMode::writable)) {
        return;
    }
    look();
    std::memcpy(shadow_.data(), guest_.data(), disk_);
    std::memset(unflushed_.data(), 0, disk_ / kSector);
    for (const Step& step : program) {
        if (kind_of(step) >= kEdits && image_ != nullptr) {
            request(step);
            background();
        }
    }
    host_.fail_call = -1;
    if (image_ != nullptr) {
        compare({});
        close();
    }
}

}  // namespace

void fuzz_image(const Program& program) {
    static FlatHost host;
    prepare(host, program);
    Session(host).run(program);
    FUZZ_CHECK(host.memory() == 0);
}

}  // namespace fvd::fuzz
