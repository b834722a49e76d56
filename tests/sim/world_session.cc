/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Creating, opening and closing the image of a world, and the power going. */
#include <algorithm>
#include <cerrno>

#include "fvd/verbs.h"
#include "world.h"

namespace fvd::sim {

void World::fill_base() {
    const Shape& s = shape();
    base_.assign(s.has_base ? s.base_size : 0, std::byte{0});
    Rng holes(mix(history_.seed, 0xBA5E));
    for (uint64_t cell = 0; cell < reference_.most() / s.cell_size; cell++) {
        reference_.set_initial(cell, kZero);
    }
    constexpr uint64_t kStretch = 4096; /* holes come in pieces of this */
    bool hole = false;
    for (uint64_t at = 0; at < base_.size(); at += s.cell_size) {
        if (at % kStretch == 0) {
            hole = s.presets && holes.chance(30);
        }
        const uint64_t cell = at / s.cell_size;
        stamp::fill(&base_[at], s.cell_size, hole ? kZero : kBase, cell);
        if (cell < reference_.cells()) {
            reference_.set_initial(cell, hole ? kZero : kBase);
        }
    }
}

void World::create() {
    const Shape& s = shape();
    fvd_create_options options{};
    options.virtual_size = s.virtual_size;
    options.base_img = s.has_base ? "base.img" : nullptr;
    options.base_img_fmt = s.has_base ? "raw" : nullptr;
    options.base_size = s.base_size;
    options.presets = s.presets;
    options.data_file = s.separate_data ? "data.raw" : nullptr;
    options.data_file_fmt = s.separate_data ? "raw" : nullptr;
    const bool compact = s.chunk_size != 0;
    const bool journaled = s.has_base || compact;
    options.block_size = s.has_base ? s.block_size : 0;
    options.journal_size = journaled ? s.journal_unit * s.journal_units : 0;
    options.journal_unit = journaled ? s.journal_unit : 0;
    options.compact_image = compact;
    options.chunk_size = s.chunk_size;
    options.storage_grow_unit = s.chunk_size * s.grow_chunks;
    fvd_fill fill = empty_fill();
    fill.copy_on_read = (s.fill & 1) != 0 ? FVD_ON : FVD_OFF;
    fill.prefetch = (s.fill & 2) != 0 ? FVD_ON : FVD_OFF;
    options.fill = &fill;
    Medium medium;
    medium.load(image_disk_, data_disk_);
    WriteLog log;
    DirectHost direct(medium, base_, s.separate_data, log);
    direct.set_random(Rng(mix(history_.seed, 0x1D)));
    const Error error = create_image(direct, options);
    if (!error.ok()) {
        fail("P5", std::string("create failed: ") + error.text);
        return;
    }
    SimDisk* disks[] = {&image_disk_, &data_disk_};
    for (const LogStep& step : log.steps) {
        for (size_t i = step.first; i < step.end; i++) {
            const LoggedUnit& unit = log.units[i];
            disks[step.disk]->write_through(unit.unit * medium.unit(),
                                            {&log.arena[unit.new_at], medium.unit()});
        }
    }
    image_disk_.set_length(medium.length(0));
    data_disk_.set_length(medium.length(1));
    shape().chunk_size == 0 ? plant_traps() : use_storage();
}

/* Slots hold old bytes, as those of a used device do. */
void World::use_storage() {
    SimDisk& disk = shape().separate_data ? data_disk_ : image_disk_;
    Medium medium;
    medium.load(image_disk_, data_disk_);
    WriteLog log;
    DirectHost direct(medium, base_, shape().separate_data, log);
    Image image(direct);
    const Error error = image.load();
    if (!error.ok()) {
        fail("P5", std::string("a fresh image does not open: ") + error.text);
        return;
    }
    oracle_.begin_image(image.header(), most_size(shape()));
    const uint64_t begin = image.header().data_offset;
    const uint64_t chunk = shape().chunk_size;
    const uint64_t all = (shape().virtual_size + chunk - 1) / chunk;
    if (!shape().used_storage) {
        return;
    }
    data_begin_ = begin;
    disk.set_length(begin);
    extend(shape().device_chunks != 0 ? std::min(shape().device_chunks, all) : all);
}

void World::extend(uint64_t chunks) {
    SimDisk& disk = shape().separate_data ? data_disk_ : image_disk_;
    const uint32_t size = shape().cell_size;
    const uint64_t begin = disk.length();
    const uint64_t end = std::min(begin + chunks * shape().chunk_size, disk.capacity());
    std::vector<std::byte> trap(size);
    for (uint64_t at = begin; at + size <= end; at += size) {
        stamp::fill(trap.data(), size, kTrap, (at - data_begin_) / size);
        disk.write_through(at, trap);
    }
    disk.set_length(end);
}

/* Blocks that are still in the base get old bytes under them, as a used medium has. */
void World::plant_traps() {
    Medium medium;
    medium.load(image_disk_, data_disk_);
    WriteLog log;
    DirectHost direct(medium, base_, shape().separate_data, log);
    Image image(direct);
    Error error = image.load();
    if (error.ok()) {
        error = image.start(StartMode::read_only);
    }
    if (!error.ok()) {
        fail("P5", std::string("a fresh image does not open: ") + error.text);
        return;
    }
    const uint32_t size = shape().cell_size;
    SimDisk& disk = shape().separate_data ? data_disk_ : image_disk_;
    std::vector<std::byte> trap(size);
    for (uint64_t at = 0; at < shape().virtual_size; at += size) {
        if (image.where(at, size).place == Place::base && at + size <= base_.size()) {
            stamp::fill(trap.data(), size, kTrap, at / size);
            disk.write_through(image.header().data_offset + at, trap);
        }
    }
    oracle_.begin_image(image.header(), most_size(shape()));
    (void)image.stop().ok();
}

bool World::start_session(StartMode mode) {
    session_faults_ = host_.faults_hit();
    host_.was_full = false;
    oracle_.look_at_header();
    flush_failures_ = 0;
    guest_wrote_.assign(std::max(shape().virtual_size, shape().most_size) / 512 + 1, false);
    reference_.forget_losses();
    Error error = Error::none();
    if (image_ == nullptr || rng_.chance(50)) {
        image_ = std::make_unique<Image>(host_);
        error = image_->load();
    }
    if (error.ok()) {
        error = image_->start(mode);
    }
    if (error.ok() && powered_) {
        adopt_size(mode);
        fvd_info info;
        image_->describe(&info);
        judges_flushes_ = shape().has_base && (info.blocks != 0 || shape().chunk_size != 0);
    }
    if (error.ok() || !powered_) {
        return error.ok();
    }
    if (host_.faults_hit() == session_faults_) {
        fail("P5", std::string("the image does not open: ") + error.text);
    }
    return false;
}

/* Of the two sizes that an unfinished resize leaves, a writable open makes one certain. */
void World::adopt_size(StartMode mode) {
    const uint64_t size = image_->header().virtual_size;
    if (!reference_.legal_size(size)) {
        fail("P1", "the disk has " + std::to_string(size) +
                       " bytes; legal: " + reference_.legal_sizes_text());
        return;
    }
    guest_size_ = size;
    if (mode == StartMode::writable) {
        reference_.resize_ends(size, true);
        oracle_.session_begins(image_->header());
    }
}

/* A failed open may be tried again once the fault is gone, and must then work. */
void World::start_surely() {
    if (start_session(StartMode::writable) || !powered_ || violation_) {
        return;
    }
    event("open failed; the fault is lifted and it is tried again");
    image_.reset();
    host_.lift_faults();
    image_disk_.evict_cache();
    data_disk_.evict_cache();
    host_.suspend_faults(true);
    start_session(StartMode::writable);
    host_.suspend_faults(false);
}

void World::open() {
    run_in_fiber([this] { start_surely(); });
}

bool World::read_everything(GuestMemory& memory) {
    memory.bytes.assign(guest_size_, std::byte{0});
    return image_->read(0, guest_size_, {&memory, 0}, 0).ok();
}

void World::judge_read(const GuestMemory& memory, uint64_t offset, uint64_t begun) {
    const uint32_t size = shape().cell_size;
    for (uint64_t at = 0; at < memory.bytes.size(); at += size) {
        const uint64_t cell = (offset + at) / size;
        const Value seen = stamp::read(&memory.bytes[at], size, cell);
        if (!reference_.legal_at_read(cell, seen, begun)) {
            fail(reference_.never_written(cell) ? "P3" : "P7",
                 "a read of sector " + std::to_string((offset + at) / 512) + " (offset " +
                     std::to_string(offset + at) + ") shows " + value_text(seen) +
                     "; legal after a cut: " + reference_.legal_text(cell));
            return;
        }
    }
}

void World::close_and_open(bool flush_first, bool read_only_between) {
    close(flush_first);
    if (!powered_) {
        return;
    }
    if (read_only_between && start_session(StartMode::read_only) && powered_) {
        look_read_only();
    }
    if (powered_ && !violation_) {
        start_surely();
    }
}

void World::close(bool flush_first) {
    if (flush_first) {
        const uint64_t moment = reference_.now();
        const uint64_t failures = flush_failures_;
        if (image_->flush().ok() && powered_) {
            flushed(moment, failures);
        }
    }
    const Status stopped = image_->stop();
    if (!powered_) {
        return;
    }
    if (!stopped.ok()) {
        if (host_.faults_hit() == session_faults_) {
            fail("P7", "closing failed although nothing went wrong below");
        }
        image_.reset();
        reference_.cache_was_lost(Fiber::moment()); /* whoever closed was told */
        event("closing failed; the fault is lifted");
    }
    forget_timers();
    host_.lift_faults();
    if (flush_failures_ != 0) {
        image_disk_.evict_cache();
        data_disk_.evict_cache();
    }
}

void World::look_read_only() {
    GuestMemory memory;
    const uint64_t begun = reference_.now();
    oracle_.set_read_only(true);
    if (read_everything(memory) && powered_) {
        judge_read(memory, 0, begun);
    }
    (void)image_->stop().ok();
    oracle_.set_read_only(false);
}

/* Faults stay armed: a check meets them as a request does, and its repair must leave the image
 * whole. */
void World::check_image_file(bool repair) {
    const bool had_faults = host_.has_faults();
    close(true);
    if (!powered_ || violation_) {
        return;
    }
    const uint64_t faults = host_.faults_hit();
    oracle_.look_at_header();
    fvd_check_result result{};
    const Error error = check_image(host_, repair ? FVD_FIX_ERRORS : FVD_FIX_NONE, &result);
    const bool silent = result.corruptions == 0 && result.leaks == 0 && result.check_errors == 0;
    if (powered_ && host_.faults_hit() == faults && !had_faults && (!error.ok() || !silent)) {
        fail("P9", std::string("check complains about an image at rest: ") + error.text);
    }
    if (!powered_) {
        return;
    }
    host_.lift_faults();
    if (flush_failures_ != 0) {
        image_disk_.evict_cache();
        data_disk_.evict_cache();
    }
    if (!violation_) {
        start_surely();
    }
}

void World::flushed(uint64_t moment, uint64_t failures_when_issued) {
    /* Without metadata a flush after a failed one is the storage's own affair, as with a raw disk.
     */
    if (failures_when_issued != 0 && judges_flushes_) {
        fail("R13", "a flush succeeded although one before it failed");
    }
    /* A cache lost after the flush's answer was fixed, and before its task ran on, is no lie. */
    const Fiber* task = Fiber::current();
    const uint64_t answered = task == nullptr ? UINT64_MAX : task->ready_since;
    if (!reference_.flush_ends(moment, answered) && judges_flushes_) {
        fail("P7", "a flush succeeded although what it stands for was lost");
    }
    look_now_ = look_now_ || rng_.chance(std::max(shape().explore_percent, 30u));
}

void World::commit_to_base() {
    if (!shape().has_base || !image_->flush().ok() || !powered_ || flush_failures_ != 0) {
        return;
    }
    GuestMemory memory;
    const uint64_t begun = reference_.now();
    if (!read_everything(memory) || !powered_) {
        return;
    }
    judge_read(memory, 0, begun);
    const uint32_t size = shape().cell_size;
    for (uint64_t cell = 0; cell < reference_.cells(); cell++) {
        if ((cell + 1) * size <= base_.size()) {
            std::copy_n(&memory.bytes[cell * size], size, &base_[cell * size]);
            reference_.settle(cell, stamp::read(&memory.bytes[cell * size], size, cell));
        }
    }
    explorer_.base_changed();
    base_is_target_ = true; /* so nobody detaches it, whatever is being finished */
    if (image_->make_empty().ok() && powered_) {
        oracle_.forget_blocks();
        event("the image is empty");
    }
    base_is_target_ = false;
}

/* ------------------------------------------------------------------------------ filling */

void World::forget_timers() {
    for (uint64_t& deadline : host_.deadline) {
        deadline = 0;
    }
}

void World::wait_until_nothing_happens() {
    last_in_line_ = Fiber::current();
    last_in_line_->ready = false;
    Fiber::yield();
}

void World::quiesce_for(uint64_t steps) {
    Image& image = *image_;
    image.quiesce(true);
    for (uint64_t i = 0; i < steps && powered_; i++) {
        Fiber::yield();
    }
    image.quiesce(false);
}

/* With a base that works, and a guest that does nothing, prefetch comes to its end. */
void World::fill_up(bool pause_between) {
    const auto condition = [this] {
        fvd_info info;
        image_->describe(&info);
        return info.condition;
    };
    if (!shape().has_base || condition() == FVD_CONDITION_FAILED) {
        return;
    }
    host_.suspend_faults(true);
    timers_allowed_ = true;
    fvd_fill fill = empty_fill();
    fill.prefetch = FVD_ON;
    const Error error = image_->set_fill(fill);
    image_->pause_prefetch(pause_between);
    fvd_progress now{};
    for (uint64_t round = 0; powered_ && !violation_ && error.ok(); round++) {
        wait_until_nothing_happens();
        if (!powered_) {
            break;
        }
        image_->progress(&now);
        if (pause_between) {
            pause_between = false;
            image_->pause_prefetch(false);
        } else if (now.filled || now.blocks == 0 || condition() == FVD_CONDITION_FAILED ||
                   host_.was_full) {
            break;
        } else if (tasks_ != 0 || timers_ != 0) {
            continue; /* something began just now */
        } else if (host_.deadline[FVD_TIMER_PREFETCH] == 0 || round == 100000) {
            image_->progress(&now); /* the last task may have ended while we asked */
            if (!now.filled && condition() != FVD_CONDITION_FAILED) {
                fail("P5", "prefetch does not come to its end");
            }
            break;
        } else {
            host_.now_ns = std::max(host_.now_ns, host_.deadline[FVD_TIMER_PREFETCH]);
        }
    }
    timers_allowed_ = false;
    host_.suspend_faults(false);
}

/* ------------------------------------------------------------------------------ resize */

Op World::begin_request(const Op& op) {
    Op part = op;
    part.length = op.offset < guest_size_ ? std::min(op.length, guest_size_ - op.offset) : 0;
    if (part.length != 0) {
        ends_.insert(part.offset + part.length);
    }
    return part;
}

void World::end_request(const Op& op) {
    const auto found = ends_.find(op.offset + op.length);
    if (found != ends_.end()) {
        ends_.erase(found);
    }
}

/* The length of the operation is the new size, a the preallocation. As in QEMU one at a time, and
 * not below what a request in flight reaches. */
void World::resize(const Op& op) {
    if (resizing_) {
        finished(op, "busy");
        return;
    }
    resizing_ = true; /* before the question, which may wait for the mutex */
    if (OrderOracle::condition_failed(*image_)) {
        judge_status(op, image_->resize(op.length, FVD_PREALLOC_OFF).code); /* changes nothing */
        resizing_ = !powered_;
        return;
    }
    const uint64_t reached = ends_.empty() ? 0 : (*ends_.rbegin() + 511) / 512 * 512;
    const uint64_t size = std::max(op.length, reached);
    const uint64_t before = guest_size_;
    oracle_.set_resizing(true);
    guest_size_ = std::min(before, size);
    reference_.resize_begins(size);
    const uint64_t faults = host_.faults_hit();
    const Error error = image_->resize(size, static_cast<Preallocation>(op.a));
    /* Still resizing: this question may wait for the mutex, too. */
    const bool certain = error.ok() || (powered_ && !OrderOracle::condition_failed(*image_));
    if (!powered_) {
        return; /* whoever opens the image finds one of the two */
    }
    resizing_ = false;
    oracle_.set_resizing(false);
    guest_size_ = image_->header().virtual_size;
    const bool as_told = guest_size_ == (error.ok() ? size : before);
    const bool not_undone = guest_size_ == size && host_.faults_hit() != faults;
    if (!as_told && !not_undone) {
        fail("P7", "a resize to " + std::to_string(size) + " ends with " +
                       std::to_string(guest_size_) + " bytes");
    }
    reference_.resize_ends(guest_size_, certain);
    judge_status(op, error.code);
    look_soon();
}

/* ------------------------------------------------------------------------------ power */

void World::power_cut() {
    event("POWER CUT");
    explorer_.explore(image_disk_, data_disk_);
    if (explorer_.violation()) {
        return;
    }
    const std::vector<Candidate> candidates = CrashExplorer::candidates_of(image_disk_, data_disk_);
    CutStates states(candidates, rng_);
    const Choice choice = states.random_choice();
    std::vector<std::vector<std::byte>> kept(candidates.size());
    for (size_t i = 0; i < candidates.size(); i++) {
        if (choice[i] != 0) {
            const std::byte* bytes = candidates[i].options[choice[i] - 1u].bytes;
            kept[i].assign(bytes, bytes + image_disk_.unit());
        }
    }
    end_of_process();
    SimDisk* disks[] = {&image_disk_, &data_disk_};
    for (size_t i = 0; i < candidates.size(); i++) {
        if (!kept[i].empty()) {
            disks[candidates[i].disk]->settle(candidates[i].unit, kept[i]);
        }
    }
    image_disk_.after_cut();
    data_disk_.after_cut();
    host_.set_power(true);
    powered_ = true;
    if (mix(history_.seed, next_op_) % 4 == 0) {
        repair_after_cut();
    }
    open();
    judge_after_death(true);
}

/* `qemu-img check -r all` before anybody opens the image: it finds nothing, and what it brings home
 * is what an open would show. */
void World::repair_after_cut() {
    oracle_.look_at_header();
    run_in_fiber([this] {
        const uint64_t faults = host_.faults_hit();
        fvd_check_result result{};
        const Error error = check_image(host_, FVD_FIX_LEAKS | FVD_FIX_ERRORS, &result);
        const bool silent =
            result.corruptions == 0 && result.leaks == 0 && result.check_errors == 0;
        if (host_.faults_hit() == faults && (!error.ok() || !silent)) {
            fail("P9", std::string("a repair after a cut complains: ") + error.text);
        }
        event("repaired");
    });
    host_.lift_faults();
}

/* SIGKILL: the process is gone, the device's cache is not. What was acknowledged and not flushed
 * may be lost all the same, and nothing that is read now is durable yet. */
void World::kill() {
    event("KILL");
    end_of_process();
    image_disk_.end_in_flight(rng_);
    data_disk_.end_in_flight(rng_);
    host_.set_power(true);
    powered_ = true;
    if (flush_failures_ != 0) {
        image_disk_.evict_cache();
        data_disk_.evict_cache();
    }
    reference_.cache_was_lost(Fiber::moment());
    open();
    judge_after_death(false);
}

void World::end_of_process() {
    powered_ = false;
    host_.set_power(false);
    drain();
    image_.reset();
    forget_timers();
    host_.lift_faults();
    host_.forget_lengths();
    pending_changed_ = look_now_ = false;
    urgent_ = nullptr;
    resizing_ = false;
    oracle_.set_resizing(false);
    ends_.clear();
}

void World::judge_after_death(bool settle) {
    if (violation_) {
        return;
    }
    host_.suspend_faults(true); /* this is the simulator's own look */
    run_in_fiber([this, settle] {
        GuestMemory memory;
        if (!read_everything(memory)) {
            fail("P5", "a read after a cut failed");
            return;
        }
        const uint32_t size = shape().cell_size;
        for (uint64_t cell = 0; cell < reference_.cells(); cell++) {
            const Value seen = stamp::read(&memory.bytes[cell * size], size, cell);
            if (!reference_.legal_after_cut(cell, seen)) {
                fail("P1", "after a cut sector " + std::to_string(cell * size / 512) +
                               " reads as " + value_text(seen) +
                               "; legal: " + reference_.legal_text(cell));
                return;
            }
            if (settle) {
                reference_.settle(cell, seen);
            }
        }
    });
    host_.suspend_faults(false);
}

/* For damage: all that was written is durable, and much of it only in the journal. */
void World::last_flush() {
    run_in_fiber([this] {
        const uint64_t moment = reference_.now();
        const uint64_t failures = flush_failures_;
        if (image_->flush().ok()) {
            flushed(moment, failures);
        }
    });
    SimDisk* disks[] = {&image_disk_, &data_disk_};
    for (SimDisk* disk : disks) {
        disk->flush_done(disk->flush_issued());
    }
}

/* The end: everything is closed, opened again, read, closed, and cut one last time. */
void World::last_look() {
    run_in_fiber([this] {
        close_and_open(true, true);
        host_.suspend_faults(true);
        GuestMemory memory;
        const uint64_t begun = reference_.now();
        if (image_ == nullptr || violation_) {
            return;
        }
        if (!read_everything(memory)) {
            fail("P7", "a read failed although no fault is left");
            return;
        }
        judge_read(memory, 0, begun);
        if (!image_->stop().ok()) {
            fail("P7", "closing failed although no fault is left");
        }
    });
    if (!violation_) {
        explorer_.explore(image_disk_, data_disk_);
        if (explorer_.violation()) {
            violation_ = explorer_.violation();
        }
    }
}

}  // namespace fvd::sim
