/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The scheduler, and what it watches. Sessions and power are in world_session.cc. */
#include "world.h"

#include "fvd/base/plant.h"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace fvd::sim {

namespace {

/* Room for header, bitmap, journal and the start of data, which layouts put at 1 MiB. */
constexpr uint64_t kMetadataRoom = uint64_t{1} << 20;

uint64_t storage_size(const Shape& shape) {
    const uint64_t chunk = shape.chunk_size != 0 ? shape.chunk_size : 1;
    /* A table that moves may leave its former place and the new one among the slots. */
    const uint64_t tables = shape.most_size != 0 && shape.chunk_size != 0 ? uint64_t{1} << 17 : 0;
    return (most_size(shape) + chunk - 1) / chunk * chunk + tables;
}

uint64_t image_capacity(const Shape& shape) {
    return kMetadataRoom + 65536 + (shape.separate_data ? 0 : storage_size(shape));
}

uint64_t data_capacity(const Shape& shape) {
    return shape.separate_data ? storage_size(shape) + 65536 : 4096;
}

constexpr uint64_t kMostSteps = 2'000'000; /* a world that needs more hangs */

}  // namespace

World::World(const History& history, CrashExplorer& explorer, const WorldOptions& options)
    : history_(history),
      explorer_(explorer),
      options_(options),
      rng_(mix(history.seed, 0x5C4ED)),
      image_disk_(history.shape.device_unit, image_capacity(history.shape)),
      data_disk_(history.shape.device_unit, data_capacity(history.shape)),
      reference_(history.shape.virtual_size, most_size(history.shape), history.shape.cell_size),
      host_(*this, image_disk_, data_disk_, base_, history.shape.separate_data,
            Rng(mix(history.seed, 0x4057))),
      oracle_(image_disk_, history.shape.separate_data ? data_disk_ : image_disk_) {
    host_.discards = history.shape.host_discards;
    host_.lock_waits = history.shape.lock_waits;
    host_.zeroes = history.shape.host_zeroes;
    host_.slow_reads = history.shape.slow_reads;
    host_.is_device = history.shape.device_chunks != 0;
}

World::~World() = default;

Outcome World::run() {
    fill_base();
    create();
    if (FVD_PLANT(canary)) {
        fail("P0", "the canary is planted");
    }
    if (!violation_) {
        ExplorerOptions explore;
        explore.budget = shape().budget;
        explore.nested_percent = shape().nested_percent;
        explore.exact_memory = options_.exact_memory;
        explorer_.begin(image_disk_, data_disk_, &base_, shape().separate_data, &reference_,
                        explore, history_.seed);
        image_disk_.take_changed();
        data_disk_.take_changed();
        if (options_.first_fault && options_.fault_open) {
            host_.add_fault(*options_.first_fault);
        }
        open();
        if (options_.first_fault && !options_.fault_open) {
            host_.add_fault(*options_.first_fault);
        }
        for (uint64_t steps = 0; !violation_ && step(); steps++) {
            if (steps == kMostSteps) {
                fail("P5", "the world does not come to an end");
            }
        }
        if (!violation_) {
            options_.damage ? last_flush() : last_look();
        }
    }
    if (explorer_.violation() && !violation_) {
        violation_ = explorer_.violation();
    }
    /* Let every fiber end, so that stacks hold nothing. */
    powered_ = false;
    host_.set_power(false);
    drain();
    image_.reset();
    if (!violation_ && host_.allocated() != 0) {
        violation_ = Violation{"P5", "the core kept memory after its end"};
    }
    return {violation_, host_.calls(), host_.faults_hit(), trace_, operations_};
}

/* ------------------------------------------------------------------------------ the scheduler */

void World::spawn(std::function<void()> body) {
    fibers_.push_back(FiberPool::shared().start(std::move(body)));
}

void World::resume_one(size_t index) {
    Fiber* fiber = fibers_[index];
    fiber->resume();
    if (fiber->finished()) {
        fibers_.erase(std::find(fibers_.begin(), fibers_.end(), fiber));
        FiberPool::shared().recycle(fiber);
    }
}

bool World::issue_next() {
    if (next_op_ >= history_.ops.size() || alone_) {
        return false;
    }
    const Op& op = history_.ops[next_op_];
    if (op.kind == OpKind::cut || op.kind == OpKind::kill) {
        next_op_++;
        operations_++;
        op.kind == OpKind::cut ? power_cut() : kill();
        return true;
    }
    const Operation& what = operation(op.kind);
    if (quiet_running_) {
        return false;
    }
    /* Tasks of the core may be running: whatever wants to be alone has to end them. */
    if (what.quiet ? !begun_.empty() || timers_ != 0 : begun_.size() >= shape().depth) {
        return false;
    }
    next_op_++;
    operations_++;
    note_write(op);
    quiet_running_ = what.quiet;
    if (logging()) {
        event("begin #" + std::to_string(op.number) + " " + op_text(op));
    }
    const uint64_t number = operations_;
    begun_.insert(number);
    spawn([this, number, &op, &what] {
        what.run(*this, op);
        begun_.erase(number);
        let_base_go();
        if (what.quiet) {
            quiet_running_ = false;
        }
    });
    return true;
}

void World::fire_timers() {
    for (unsigned t = 0; t < FVD_TIMER_COUNT; t++) {
        const bool due = host_.deadline[t] != 0 && host_.deadline[t] <= host_.now_ns;
        /* Timers may be late, and never fire while the image is being opened or closed. */
        const bool may = (!quiet_running_ && !alone_) || timers_allowed_;
        if (due && may && image_ != nullptr && rng_.chance(30)) {
            host_.deadline[t] = 0;
            timers_++;
            if (logging()) {
                event("timer fires");
            }
            spawn([this, t] {
                image_->timer_expired(static_cast<Timer>(t));
                timers_--;
            });
        }
    }
}

/* One thing happens. False when nothing is left to do. */
bool World::step() {
    host_.now_ns += rng_.below(3) * 1'000'000;
    fire_timers();
    size_t ready[64];
    size_t ready_count = 0;
    for (size_t i = 0; i < fibers_.size() && ready_count < 64; i++) {
        if (fibers_[i]->ready) {
            ready[ready_count++] = i;
        }
    }
    const size_t io_count = host_.pending().size();
    if (urgent_ != nullptr) {
        const auto at = std::find(fibers_.begin(), fibers_.end(), std::exchange(urgent_, nullptr));
        resume_one(static_cast<size_t>(at - fibers_.begin()));
        return true;
    }
    /* A world of one request at a time is served in order; others by chance. */
    const uint64_t dice = shape().depth == 1 ? 0 : rng_.below(100);
    if (ready_count != 0 && (dice < 50 || io_count == 0)) {
        resume_one(ready[rng_.below(ready_count)]);
    } else if (dice >= 50 && dice < 75 && issue_next()) {
        /* more in flight */
    } else if (io_count != 0) {
        size_t which = rng_.below(io_count);
        for (int tries = 0; host_.pending()[which]->slow && tries < 8; tries++) {
            which = rng_.below(io_count);
        }
        if (host_.pending()[which]->slow && rng_.chance(90) && issue_next()) {
            explore_if_wanted();
            return true;
        }
        const PendingIo& io = *host_.pending()[which];
        trace_ = mix(trace_, io.offset * 8 + static_cast<uint64_t>(io.kind));
        if (logging()) {
            event(std::string("  done ") + call_name(io.kind) + " " + file_name(io.file) + " " +
                  std::to_string(io.offset) + "+" + std::to_string(io.length));
        }
        host_.finish(which);
    } else if (ready_count != 0) {
        resume_one(ready[rng_.below(ready_count)]);
    } else if (last_in_line_ != nullptr) {
        std::exchange(last_in_line_, nullptr)->make_ready();
    } else if (!issue_next()) {
        if (!begun_.empty() || timers_ != 0 || tasks_ != 0) {
            fail("P5", "requests wait for each other for ever");
        }
        return false;
    }
    explore_if_wanted();
    return true;
}

void World::explore_if_wanted() {
    const bool wanted = look_now_ || (pending_changed_ && rng_.chance(shape().explore_percent));
    if (wanted && !violation_ && powered_) {
        explorer_.explore(image_disk_, data_disk_);
        look_now_ = false;
    }
    pending_changed_ = false;
    if (explorer_.violation() && !violation_) {
        violation_ = explorer_.violation();
        event("BROKEN " + violation_->promise + ": " + violation_->text);
    }
}

void World::drain() {
    if (last_in_line_ != nullptr) {
        std::exchange(last_in_line_, nullptr)->make_ready();
    }
    while (!fibers_.empty()) {
        bool progress = false;
        while (!host_.pending().empty()) {
            host_.finish(host_.pending().size() - 1);
            progress = true;
        }
        for (size_t i = 0; i < fibers_.size();) {
            if (fibers_[i]->ready) {
                const size_t before = fibers_.size();
                resume_one(i);
                progress = true;
                i += fibers_.size() == before;
            } else {
                i++;
            }
        }
        if (!progress) {
            fail("P5", "requests wait for ever after the power went");
            return;
        }
    }
}

void World::run_in_fiber(std::function<void()> body) {
    const auto done = std::make_shared<bool>(false); /* the fiber may outlive this call */
    const bool was_alone = std::exchange(alone_, true);
    spawn([done, inside = std::move(body)] {
        inside();
        *done = true;
    });
    while (!*done && !violation_ && step()) {
        /* nothing else is issued meanwhile */
    }
    alone_ = was_alone;
}

/* ------------------------------------------------------------------------------ what it watches */

void World::write_enters(File file, uint64_t offset, ConstBytes bytes) {
    if (const auto broken = oracle_.write_enters(file, offset, bytes)) {
        fail(broken->promise.c_str(), broken->text);
    }
    if (image_ == nullptr || !oracle_.is_metadata(file, offset)) {
        return;
    }
    if (oracle_.condition_failed(*image_)) {
        fail("I13", "a failed image writes metadata at offset " + std::to_string(offset));
    }
}

void World::flush_completes(File) {
    /* Everything uncertain now is less so in a moment. */
    if (rng_.chance(shape().explore_percent)) {
        look_now_ = true;
        explore_if_wanted();
    }
}

void World::flush_failed(File, Fiber* who) {
    urgent_ = who;
    flush_failures_++;
    reference_.cache_was_lost(Fiber::moment());
    event("a flush failed and the cache is lost");
}

/* Nobody needs the base any more. As in QEMU, which drains before it takes it away, requests that
 * had begun by then may still be reading it. */
void World::filled() {
    if (!base_is_target_) {
        base_leaves_ = operations_ + 1;
        let_base_go();
    }
}

/* From now on whoever reads it all the same gets what must not show. */
void World::let_base_go() {
    if (!base_leaves_ || (!begun_.empty() && *begun_.begin() < *base_leaves_)) {
        return;
    }
    base_leaves_.reset();
    if (image_ == nullptr || !powered_ || !image_->header().base_fully_prefetched) {
        return; /* it was emptied since, or this life is over */
    }
    event("the base is gone");
    const uint32_t size = shape().cell_size;
    for (uint64_t at = 0; at < base_.size(); at += size) {
        stamp::fill(&base_[at], size, kTrap, at / size);
    }
    explorer_.base_changed();
}

void World::task_started(std::function<void()> body) {
    tasks_++;
    spawn([this, run = std::move(body)] {
        run();
        tasks_--;
    });
}

void World::host_broken(const char* promise, const std::string& text) {
    fail(promise, text);
}

void World::fail(const char* promise, const std::string& text) {
    if (!violation_ && powered_) {
        violation_ = Violation{promise, text};
        event(std::string("BROKEN ") + promise + ": " + text);
    }
}

void World::event(const std::string& text) {
    if (options_.log != nullptr) {
        std::fprintf(options_.log, "%8llu ms  %s\n", clock(), text.c_str());
    }
}

void World::finished(const Op& op, const std::string& outcome) {
    trace_ = mix(trace_, op.number * 64 + outcome.size());
    if (logging()) {
        event("end   #" + std::to_string(op.number) + " " + outcome);
    }
}

/* What is here is not fetched again; but the guest may have written it since that was decided. */
void World::fetch_begins(uint64_t offset, uint64_t length) {
    const uint64_t block = shape().block_size;
    for (uint64_t at = offset; at < offset + length; at += block) {
        if (!guest_wrote_[at / block] && image_->where(at, 1).place != Place::base) {
            fail("P4", "block " + std::to_string(at / block) + " is fetched although it is here");
        }
    }
}

void World::note_write(const Op& op) {
    const bool writes =
        op.kind == OpKind::write || op.kind == OpKind::write_zeroes || op.kind == OpKind::discard;
    if (!writes || !shape().has_base) {
        return;
    }
    const uint64_t last = (op.offset + op.length - 1) / shape().block_size;
    for (uint64_t block = op.offset / shape().block_size;
         block <= last && block < guest_wrote_.size(); block++) {
        guest_wrote_[block] = true;
    }
}

void World::judge_status(const Op& op, Status status) {
    finished(op, status.ok() ? "ok" : "error " + std::to_string(-status.value()));
    if (!powered_) {
        return;
    }
    const Fiber* self = Fiber::current();
    const bool own = self->saw_data_error || self->saw_flush_error || self->saw_base_error;
    if (!status.ok() && op.kind == OpKind::read && !own) {
        fail("P4", op_text(op) + " failed although no I/O of its own did");
    }
    const bool device_is_full = host_.was_full && status.value() == -ENOSPC;
    if (!status.ok() && host_.faults_hit() == session_faults_ && !device_is_full) {
        fail("P7", op_text(op) + " failed with error " + std::to_string(-status.value()) +
                       " although nothing went wrong below");
    }
    const bool guest = op.kind == OpKind::read || op.kind == OpKind::write ||
                       op.kind == OpKind::write_zeroes || op.kind == OpKind::flush;
    /* A read may have asked the base for more than the guest wants, and then again. */
    const bool hit = self->saw_data_error || self->saw_flush_error ||
                     (self->saw_base_error && op.kind != OpKind::read);
    if (status.ok() && guest && hit) {
        fail("P7", op_text(op) + " succeeded although I/O of its own failed");
    }
}

}  // namespace fvd::sim
