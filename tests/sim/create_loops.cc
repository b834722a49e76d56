/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "create_loops.h"

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "fvd/engine/image.h"
#include "fvd/verbs.h"
#include "stamp.h"

namespace fvd::sim {

namespace {

constexpr uint32_t kCell = 512;
constexpr uint64_t kDisk = 16384;
constexpr uint64_t kCapacity = 4 << 20;
constexpr Value kOld = 7; /* what the guest had written to an image that is created over */

struct CreateShape {
    const char* name;
    uint64_t base_size;
    bool data_file;
    bool holes;  /* the base has some, and create looks for them */
    bool device; /* cannot change its size, and holds an image already */
    bool compact;
    uint32_t unit; /* of the device and the journal */
    fvd_preallocation preallocation;
};

constexpr CreateShape kShapes[] = {
    {"no base", 0, false, false, false, false, 512, FVD_PREALLOC_OFF},
    {"no base, preallocated", 0, false, false, false, false, 512, FVD_PREALLOC_FULL},
    {"base", kDisk, false, false, false, false, 512, FVD_PREALLOC_OFF},
    {"short base", 5120, false, false, false, false, 512, FVD_PREALLOC_FALLOC},
    {"base with holes", kDisk, false, true, false, false, 512, FVD_PREALLOC_OFF},
    {"data file", kDisk, true, true, false, false, 512, FVD_PREALLOC_OFF},
    {"units of 4096", kDisk, false, true, false, false, 4096, FVD_PREALLOC_OFF},
    {"device", kDisk, false, false, true, false, 512, FVD_PREALLOC_OFF},
    {"device, holes", kDisk, false, true, true, false, 512, FVD_PREALLOC_OFF},
    {"device, no base", 0, false, false, true, false, 4096, FVD_PREALLOC_OFF},
    {"device, data file", 5120, true, true, true, false, 512, FVD_PREALLOC_OFF},
    {"compact", kDisk, false, true, false, true, 512, FVD_PREALLOC_OFF},
    {"compact, slots for all", kDisk, false, true, false, true, 512, FVD_PREALLOC_METADATA},
    {"compact, device", kDisk, false, false, true, true, 512, FVD_PREALLOC_OFF},
};

struct CreateFault {
    bool memory = false;
    int error = 0; /* 0: none */
    bool forever = false;
    uint64_t skip = 0;
};

/* Fails the k-th call; a write that fails may have happened all the same. */
class CreateHost final : public DirectHost {
  public:
    CreateHost(Medium& medium, const std::vector<std::byte>& base, const CreateShape& shape,
               WriteLog& log, CreateFault fault)
        : DirectHost(medium, base, shape.data_file, log), device_(shape.device), fault_(fault) {}

    bool hit() const { return hit_; }

    Status read(File file, uint64_t offset, std::span<const Slice> to, uint32_t flags) override {
        return strikes() ? Status(-fault_.error) : DirectHost::read(file, offset, to, flags);
    }
    Status write(File file, uint64_t offset, std::span<const Slice> from, uint32_t flags) override {
        const bool fails = strikes();
        const Status status =
            fails && fault_.skip % 2 == 0 ? Status() : DirectHost::write(file, offset, from, flags);
        return fails ? Status(-fault_.error) : status;
    }
    Status write_zeroes(File file, uint64_t offset, uint64_t length, uint32_t flags) override {
        const bool fails = strikes();
        const Status status = fails && fault_.skip % 2 == 0
                                  ? Status()
                                  : DirectHost::write_zeroes(file, offset, length, flags);
        return fails ? Status(-fault_.error) : status;
    }
    Status flush(File file) override {
        return strikes() ? Status(-fault_.error) : DirectHost::flush(file);
    }
    int64_t length(File file) override {
        return strikes() ? -fault_.error : DirectHost::length(file);
    }
    Status resize(File file, uint64_t size, Preallocation mode) override {
        if (strikes()) {
            return -fault_.error;
        }
        return device_ ? Status(-ENOTSUP) : DirectHost::resize(file, size, mode);
    }
    Status extent(File file, uint64_t offset, uint64_t length, bool* zero, uint64_t* run) override {
        return strikes() ? Status(-fault_.error)
                         : DirectHost::extent(file, offset, length, zero, run);
    }
    bool has_zero_init(File) override { return !device_; }
    void* allocate(size_t size) override {
        return fault_.memory && count_down() ? nullptr : DirectHost::allocate(size);
    }

  private:
    bool strikes() { return !fault_.memory && fault_.error != 0 && count_down(); }
    bool count_down() {
        const bool now = fault_.forever ? calls_ >= fault_.skip : calls_ == fault_.skip;
        calls_++;
        hit_ = hit_ || now;
        return now;
    }

    bool device_;
    CreateFault fault_;
    uint64_t calls_ = 0;
    bool hit_ = false;
};

class CreateLoop {
  public:
    explicit CreateLoop(uint64_t index) : shape_(kShapes[index]), rng_(mix(index, 0xC8)) {
        const SimDisk image(shape_.unit, kCapacity);
        const SimDisk data(shape_.unit, kDisk + 65536);
        medium_.load(image, data);
        base_.assign(shape_.base_size, std::byte{0});
        for (uint64_t at = 0; at < base_.size(); at += kCell) {
            stamp::fill(&base_[at], kCell, base_value(at), at / kCell);
        }
    }

    CreateOutcome run() {
        if (shape_.device) {
            make_old_image();
        }
        const CreateFault none;
        try_create(none);
        struct Mode {
            bool memory;
            int error;
            bool forever;
        };
        constexpr Mode kModes[] = {{false, EIO, false},    {false, EIO, true},
                                   {false, ENOSPC, false}, {false, ENOSPC, true},
                                   {true, ENOMEM, false},  {true, ENOMEM, true}};
        for (const Mode& mode : kModes) {
            for (uint64_t k = 0; !outcome_.violation; k++) {
                if (!try_create({mode.memory, mode.error, mode.forever, k})) {
                    break; /* no call was left to fail */
                }
            }
        }
        return outcome_;
    }

  private:
    Value base_value(uint64_t at) const {
        constexpr uint64_t kStretch = 4096;
        return shape_.holes && at / kStretch % 2 == 1 ? kZero : kBase;
    }

    fvd_create_options options() const {
        fvd_create_options options{};
        options.virtual_size = kDisk;
        options.base_size = shape_.base_size;
        if (shape_.base_size != 0) {
            options.base_img = "base.img";
            options.base_img_fmt = "raw";
            options.block_size = 1024;
            options.journal_unit = shape_.unit;
            options.journal_size = uint64_t{64} * shape_.unit;
        }
        if (shape_.data_file) {
            options.data_file = "data.raw";
            options.data_file_fmt = "raw";
        }
        options.presets = shape_.holes;
        options.compact_image = shape_.compact;
        options.preallocation = shape_.preallocation;
        return options;
    }

    /* A device as long as it will ever be, with an image on it that a guest filled. */
    void make_old_image() {
        medium_.set_length(0, kCapacity);
        medium_.set_length(1, kDisk + 65536);
        WriteLog log;
        const CreateShape& shape = shape_;
        CreateHost host(medium_, base_, shape, log, {});
        fvd_create_options old = options();
        old.compact_image = false;
        old.preallocation = FVD_PREALLOC_OFF;
        Image image(host);
        image.quiesce(true);
        GuestMemory memory;
        memory.bytes.resize(kDisk);
        for (uint64_t at = 0; at < kDisk; at += kCell) {
            stamp::fill(&memory.bytes[at], kCell, kOld, at / kCell);
        }
        const bool made = create_image(host, old).ok() && image.start(StartMode::writable).ok() &&
                          image.write(0, kDisk, {&memory, 0}, 0).ok() && image.flush().ok() &&
                          image.stop().ok();
        if (!made) {
            broken("P5", "the image that is to be created over cannot be made");
        }
    }

    /* False when the fault did not strike. */
    bool try_create(const CreateFault& fault) {
        const uint64_t lengths[] = {medium_.length(0), medium_.length(1)};
        WriteLog log;
        CreateHost host(medium_, base_, shape_, log, fault);
        host.set_random(Rng(mix(0x1D, fault.skip)));
        fault_ = fault;
        const Error error = create_image(host, options());
        outcome_.runs++;
        if (!error.ok() && !host.hit()) {
            broken("P5", std::string("create failed: ") + error.text);
        }
        if (host.leaked() != 0) {
            broken("P5", "create kept memory after its end");
        }
        judge(error.ok()); /* the process ends, the device lives on */
        const uint64_t ends[] = {medium_.length(0), medium_.length(1)};
        medium_.undo(log);
        medium_.set_length(0, ends[0]);
        medium_.set_length(1, ends[1]);
        cut_everywhere(log, error.ok());
        medium_.set_length(0, lengths[0]);
        medium_.set_length(1, lengths[1]);
        return host.hit() && !outcome_.violation;
    }

    /* From the state before, flush after flush; before each, and at the end, the power may fail. */
    void cut_everywhere(const WriteLog& log, bool created) {
        std::vector<Candidate> candidates;
        WriteLog settled;
        uint64_t writes = 0;
        for (const LogStep& step : log.steps) {
            if (!step.is_flush) {
                writes++;
                add_candidates(log, step, writes, candidates);
                continue;
            }
            cut_now(candidates, false);
            std::erase_if(candidates, [&](const Candidate& c) {
                if (c.disk == step.disk) {
                    medium_.write(c.disk, c.unit * medium_.unit(),
                                  {c.options.back().bytes, medium_.unit()}, settled);
                }
                return c.disk == step.disk;
            });
        }
        cut_now(candidates, created);
        medium_.undo(settled);
    }

    static void add_candidates(const WriteLog& log, const LogStep& step, uint64_t write,
                               std::vector<Candidate>& candidates) {
        for (size_t i = step.first; i < step.end; i++) {
            const LoggedUnit& unit = log.units[i];
            const Candidate::Option option{&log.arena[unit.new_at], unit.new_hash, write};
            const auto same = std::find_if(
                candidates.begin(), candidates.end(),
                [&](const Candidate& c) { return c.disk == step.disk && c.unit == unit.unit; });
            if (same != candidates.end()) {
                same->options.push_back(option);
            } else {
                candidates.push_back({step.disk, unit.unit, {option}});
            }
        }
    }

    void cut_now(std::vector<Candidate>& candidates, bool created) {
        if (outcome_.violation) {
            return;
        }
        CutStates states(candidates, rng_);
        states.for_each(12, [&](const Choice& choice) {
            WriteLog log;
            for (size_t i = 0; i < choice.size(); i++) {
                if (choice[i] != 0) {
                    const Candidate& c = candidates[i];
                    medium_.write(c.disk, c.unit * medium_.unit(),
                                  {c.options[choice[i] - 1u].bytes, medium_.unit()}, log);
                }
            }
            judge(created);
            medium_.undo(log);
            return !outcome_.violation;
        });
    }

    void judge(bool created) {
        outcome_.images++;
        WriteLog log;
        DirectHost host(medium_, base_, shape_.data_file, log);
        Image image(host);
        image.quiesce(true);
        const Error error = image.start(StartMode::read_only);
        if (!error.ok()) {
            if (created && error.code != -ENOTSUP) {
                broken("P5", std::string("what was created does not open: ") + error.text);
            }
            return;
        }
        GuestMemory memory;
        memory.bytes.resize(kDisk);
        if (!image.read(0, kDisk, {&memory, 0}, 0).ok()) {
            broken("P5", "what was created cannot be read");
        }
        (void)image.stop().ok();
        judge_content(memory, created);
        if (!created) {
            return; /* one copy of the header may be torn, which check is right to tell */
        }
        fvd_check_result result{};
        const Error check = check_image(host, FVD_FIX_NONE, &result);
        if (shape_.compact && check.code == -ENOTSUP) {
            return;
        }
        if (!check.ok() || result.corruptions != 0 || result.leaks != 0 ||
            result.check_errors != 0) {
            broken("P9",
                   "check complains about an image that opens: " + host.warnings() + check.text);
        }
    }

    void judge_content(const GuestMemory& memory, bool created) {
        bool all_old = shape_.device && !created;
        for (uint64_t at = 0; at < kDisk; at += kCell) {
            all_old = all_old && stamp::read(&memory.bytes[at], kCell, at / kCell) == kOld;
        }
        for (uint64_t at = 0; at < kDisk && !all_old; at += kCell) {
            const Value expected = at < shape_.base_size ? base_value(at) : kZero;
            const Value seen = stamp::read(&memory.bytes[at], kCell, at / kCell);
            if (seen != expected) {
                broken("P3", "a new image opens, and sector " + std::to_string(at / 512) +
                                 " reads as " + value_text(seen) +
                                 "; legal: " + value_text(expected));
                return;
            }
        }
    }

    void broken(const char* promise, const std::string& text) {
        if (!outcome_.violation) {
            std::string how = fault_.error == 0
                                  ? "no call fails"
                                  : std::string("call ") + std::to_string(fault_.skip) +
                                        (fault_.memory ? " for memory" : "") +
                                        (fault_.forever ? " and all later ones" : "") +
                                        " fails with " + std::to_string(fault_.error);
            outcome_.violation = Violation{
                promise, text + " (create: " + shape_.name + "; " + how + "; then perhaps a cut)"};
        }
    }

    const CreateShape& shape_;
    Rng rng_;
    Medium medium_;
    std::vector<std::byte> base_;
    CreateFault fault_;
    CreateOutcome outcome_;
};

}  // namespace

uint64_t create_shape_count() {
    return std::size(kShapes);
}

CreateOutcome run_create_loop(uint64_t index) {
    return CreateLoop(index).run();
}

}  // namespace fvd::sim
