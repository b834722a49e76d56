/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * A world from a history: disks, a host, the core, guests, and a scheduler that may run any ready
 * fiber and complete any I/O next. What happens is decided by the history and its seed alone.
 */

#include <cstdio>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "crash_explorer.h"
#include "fiber.h"
#include "fvd/engine/image.h"
#include "history.h"
#include "order_oracle.h"
#include "reference_disk.h"
#include "sim_disk.h"
#include "sim_host.h"

namespace fvd::sim {

struct WorldOptions {
    FILE* log = nullptr;                  /* one line an event */
    std::optional<FaultRule> first_fault; /* armed before the first operation */
    bool fault_open = false;              /* armed before the image is opened */
    bool exact_memory = false;
    bool damage = false; /* end with a flush and a kill, so that the journal holds something */
};

struct Outcome {
    std::optional<Violation> violation;
    uint64_t host_calls = 0;
    uint64_t faults_hit = 0;
    uint64_t trace = 0; /* equal traces: equal runs */
    uint64_t operations = 0;
};

class World final : public HostObserver {
  public:
    World(const History& history, CrashExplorer& explorer, const WorldOptions& options);
    ~World();

    Outcome run();

    /* For operations. All may be called from fibers only, unless they say otherwise. */
    const Shape& shape() const { return history_.shape; }
    Image& image() { return *image_; }
    ReferenceDisk& reference() { return reference_; }
    SimHost& host() { return host_; }
    bool powered() const { return powered_; }
    /** Judge the outcome of a guest request: errors need a cause (P7). */
    void judge_status(const Op& op, Status status);
    void fail(const char* promise, const std::string& text);
    /** A guest flush succeeded: what a cut may show is less now. */
    void flushed(uint64_t moment, uint64_t failures_when_issued);
    void look_soon() { look_now_ = look_now_ || rng_.chance(shape().explore_percent); }
    uint64_t flush_failures() const { return flush_failures_; }
    /** Compare a buffer read from @p offset with what was legal since @p begun. */
    void judge_read(const GuestMemory& memory, uint64_t offset, uint64_t begun);
    void close_and_open(bool flush_first, bool read_only_between);
    /** What `qemu-img commit` does: all that is here goes to the base, then the image is emptied.
     */
    void commit_to_base();
    /** A manager changes the size of the disk. */
    void resize(const Op& op);
    /** Somebody makes the device of guest data longer; it holds old bytes there. */
    void extend(uint64_t chunks);
    /** The part of a request that lies on the disk; of no length where there is none. While the
     *  request is in flight the disk keeps what it reaches. */
    Op begin_request(const Op& op);
    void end_request(const Op& op);
    /** What `qemu-img check` does, to an image that is closed meanwhile. */
    void check_image_file(bool repair);
    const std::vector<std::byte>& base() const { return base_; }
    /** After run(): what is on the disks. */
    void leave_medium(Medium& medium) const { medium.load(image_disk_, data_disk_); }
    /** Fill the image from its base, and do not return before it is full or cannot be. */
    void fill_up(bool pause_between);
    void quiesce_for(uint64_t steps);
    void advance_clock(uint64_t ms) { host_.now_ns += ms * 1'000'000; }
    void finished(const Op& op, const std::string& outcome);

    void event(const std::string& text) override;
    bool logging() const override { return options_.log != nullptr; }

  private:
    void write_enters(File file, uint64_t offset, ConstBytes bytes) override;
    void write_entered() override { pending_changed_ = true; }
    void flush_completes(File file) override;
    void flush_failed(File file, Fiber* who) override;
    void filled() override;
    void let_base_go();
    void fetch_begins(uint64_t offset, uint64_t length) override;
    void task_started(std::function<void()> body) override;
    void host_broken(const char* promise, const std::string& text) override;

    void create();
    void fill_base();
    void plant_traps();
    void use_storage();
    void open();
    bool start_session(StartMode mode);
    void adopt_size(StartMode mode);
    void start_surely();
    void close(bool flush_first);
    void look_read_only();
    bool read_everything(GuestMemory& memory);
    void judge_after_death(bool settle);
    void power_cut();
    void repair_after_cut();
    void kill();
    void end_of_process();
    void wait_until_nothing_happens();
    void forget_timers();
    void run_in_fiber(std::function<void()> body);

    bool step();
    bool issue_next();
    void note_write(const Op& op);
    void spawn(std::function<void()> body);
    void resume_one(size_t index);
    void fire_timers();
    void explore_if_wanted();
    void drain();
    void last_look();
    void last_flush();
    unsigned long long clock() const { return host_.now_ns / 1'000'000; }

    const History& history_;
    CrashExplorer& explorer_;
    WorldOptions options_;
    Rng rng_;
    SimDisk image_disk_;
    SimDisk data_disk_;
    std::vector<std::byte> base_;
    ReferenceDisk reference_;
    SimHost host_;
    OrderOracle oracle_;
    std::vector<Fiber*> fibers_;
    std::unique_ptr<Image> image_;
    std::optional<Violation> violation_;
    uint64_t guest_size_ = 0; /* of the disk, for requests that begin now */
    bool resizing_ = false;
    uint64_t data_begin_ = 0;      /* of slots */
    std::multiset<uint64_t> ends_; /* of requests in flight */
    size_t next_op_ = 0;
    std::set<uint64_t> begun_;            /* numbers of operations in flight, in their order */
    std::optional<uint64_t> base_leaves_; /* when all that begun before this one have ended */
    uint32_t timers_ = 0;                 /* fibers of timers */
    uint32_t tasks_ = 0;                  /* fibers that the core started */
    bool timers_allowed_ = false;         /* although something wants to be alone */
    Fiber* last_in_line_ = nullptr;       /* goes on when nothing else can happen */
    bool quiet_running_ = false;          /* an operation that wants to be alone */
    bool alone_ = false;                  /* the world itself does something; nothing is issued */
    bool powered_ = true;
    Fiber* urgent_ =
        nullptr; /* its host serialises flushes: a failure is known before the next ends */
    bool pending_changed_ = false;
    bool look_now_ = false;
    bool base_is_target_ = false;   /* of a commit */
    std::vector<bool> guest_wrote_; /* blocks, in this session */
    uint64_t flush_failures_ = 0;
    bool judges_flushes_ = false; /* in this session there is metadata whose changes need them */
    uint64_t session_faults_ = 0; /* host_.faults_hit() when the session began */
    uint64_t trace_ = 0;
    uint64_t operations_ = 0;
};

/** The operations' table; see operations.cc. */
struct Operation {
    const char* name;
    bool quiet;      /* wants no other request in flight */
    uint32_t weight; /* how often a random history draws it, before the seed's own weights */
    void (*draw)(Rng& rng, const Shape& shape, Op& op);
    void (*run)(World& world, const Op& op);
};
const Operation& operation(OpKind kind);

}  // namespace fvd::sim
