/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "workload.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "fvd/verbs.h"

namespace fvd::threads {

namespace {

constexpr uint64_t kMostSectors = 96;
constexpr uint64_t kMetadataRoom = 4 << 20;

struct Release {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<std::byte, Release>;

Buffer make_buffer(uint64_t size) {
    return Buffer(static_cast<std::byte*>(std::aligned_alloc(4096, (size + 4095) / 4096 * 4096)));
}

}  // namespace

WorldOptions options_of_seed(uint64_t seed) {
    static constexpr uint64_t kBlocks[] = {4096, 512, 7680, 65536, 15872, 4096};
    WorldOptions options;
    options.seed = seed;
    options.block_size = kBlocks[seed % std::size(kBlocks)];
    options.journal_unit = seed % 3 == 0 ? 4096 : 512;
    options.base_sectors = seed % 4 == 3 ? options.sectors : 9001;
    return options;
}

std::unique_ptr<ThreadHost> make_host(const WorldOptions& options, bool slow) {
    HostOptions host_options;
    host_options.image_capacity = options.sectors * kSector + kMetadataRoom;
    host_options.base_capacity = options.base_sectors * kSector;
    host_options.slow = slow;
    host_options.planted_race = options.planted_race;
    auto host = std::make_unique<ThreadHost>(host_options);
    MemoryFile& base = host->file(FVD_FILE_BASE);
    base.set_length(host_options.base_capacity);
    std::byte sector[kSector];
    for (uint64_t s = 0; s < options.base_sectors; s++) {
        SectorModel::fill_base(s, sector);
        base.write(s * kSector, sector, kSector);
    }
    return host;
}

Error create_on(ThreadHost& host, const WorldOptions& options) {
    fvd_create_options create{};
    create.virtual_size = options.sectors * kSector;
    create.base_img = "base.raw";
    create.base_img_fmt = "raw";
    create.base_size = options.base_sectors * kSector;
    create.block_size = options.block_size;
    create.journal_unit = options.journal_unit;
    create.journal_size =
        uint64_t{options.journal_unit} * 64; /* the smallest: it goes round often */
    return create_image(host, create);
}

World::World(const WorldOptions& options)
    : options_(options),
      model_(options.sectors, options.base_sectors, options.threads, options.seed),
      host_(make_host(options, true)),
      image_(std::make_unique<Image>(*host_)) {
}

/* ------------------------------------------------------------------------------- complaints */

bool World::complain(const std::string& text) {
    const std::lock_guard guard(complaint_mutex_);
    if (complaint_.empty()) {
        complaint_ = text;
    }
    ending_.store(true);
    return false;
}

bool World::must(Status status, const char* what) {
    return status.ok() || complain(std::string(what) + ": " + std::strerror(-status.value()));
}

bool World::must(const Error& error, const char* what) {
    return error.ok() || complain(std::string(what) + ": " + error.text);
}

/* ------------------------------------------------------------------------------- a thread */

class World::Worker {
  public:
    Worker(World& world, unsigned number)
        : world_(world),
          image_(*world.image_),
          model_(world.model_),
          number_(number),
          random_(world.options_.seed * 64 + number),
          buffer_(make_buffer(kMostSectors * kSector)) {}

    void run() {
        while (!world_.ending_.load(std::memory_order_relaxed)) {
            step();
            world_.requests_.fetch_add(1, std::memory_order_relaxed);
        }
    }

  private:
    void step() {
        const uint64_t draw = random_.below(200);
        if (draw < 90) {
            write(own_run());
        } else if (draw < 140) {
            read(any_run());
        } else if (draw < 160) {
            zero(own_run());
        } else if (draw < 170) {
            discard(own_run());
        } else if (draw < 185) {
            check(image_.flush());
        } else if (draw < 188) {
            check(image_.commit());
        } else if (draw < 190) {
            set_base();
        } else if (draw < 193) {
            change_filling();
        } else {
            look();
        }
    }

    Run own_run() {
        const std::vector<Run>& runs = model_.runs_of(number_);
        const Run run = runs[random_.below(runs.size())];
        const uint64_t skip = random_.below(run.count);
        return {run.begin + skip, 1 + random_.below(run.count - skip)};
    }
    Run any_run() {
        const uint64_t begin = random_.below(model_.sectors());
        return {begin, 1 + random_.below(std::min(kMostSectors, model_.sectors() - begin))};
    }
    GuestBuffer guest() { return {buffer_.get(), 0}; }
    uint32_t some_fua() { return random_.below(8) == 0 ? FVD_REQ_FUA : 0; }

    /* Where writes of metadata fail, whatever needs them fails with EIO and nothing else. */
    bool check(Status status) {
        return status.ok() ||
               (status.value() != -EIO &&
                world_.complain("a request failed with " + std::to_string(status.value())));
    }

    /* The version ends only after a success: until then both are legal. */
    void write(Run run) { write_as(run, model_.begin(run, Kind::data), some_fua()); }

    void write_as(Run run, uint64_t version, uint32_t flags) {
        model_.fill(run, version, buffer_.get());
        const Status status =
            image_.write(run.begin * kSector, run.count * kSector, guest(), flags);
        if (status.ok()) {
            model_.end(run, version);
        }
        check(status);
    }

    void zero(Run run) {
        const uint64_t version = model_.begin(run, Kind::zero);
        const uint32_t flags = some_fua();
        const Status status = image_.write_zeroes(run.begin * kSector, run.count * kSector,
                                                  flags | FVD_REQ_MAY_UNMAP);
        if (status.value() == -ENOTSUP) {
            write_as(run, version, flags); /* as QEMU does */
        } else if (check(status)) {
            model_.end(run, version);
        }
    }

    void discard(Run run) {
        const uint64_t version = model_.begin(run, Kind::discarded_then_data);
        check(image_.discard(run.begin * kSector, run.count * kSector));
        write_as(run, version, 0);
    }

    void read(Run run) {
        model_.before_read(run, least_);
        if (check(image_.read(run.begin * kSector, run.count * kSector, guest(), 0))) {
            const std::string wrong = model_.judge(run, least_, buffer_.get());
            wrong.empty() || world_.complain(wrong);
        }
    }

    void set_base() {
        char name[64];
        std::snprintf(name, sizeof(name), "base-%u-%u", number_,
                      static_cast<unsigned>(random_.below(1000)));
        const Error error = image_.set_base(name, "raw");
        check(error.code);
    }

    /* Half of the worlds fill themselves. */
    void change_filling() {
        if (world_.options_.seed % 2 == 0) {
            return;
        }
        const uint64_t draw = random_.below(8);
        if (draw == 0) {
            image_.pause_prefetch(random_.below(2) == 0);
        } else if (draw < 4) {
            image_.quiesce(true);
            read(any_run());
            image_.quiesce(false);
        } else {
            fvd_fill fill = empty_fill();
            fill.copy_on_read = random_.below(4) == 0 ? FVD_OFF : FVD_ON;
            fill.prefetch = random_.below(2) == 0 ? FVD_OFF : FVD_ON;
            fill.max_outstanding_copy_on_read_data = random_.below(2) == 0 ? 65536 : 0;
            fill.prefetch_max_write_throughput = random_.below(2) == 0 ? 64 : 0;
            check(image_.set_fill(fill).code);
        }
    }

    void look() {
        fvd_progress progress;
        image_.progress(&progress);
        if (progress.blocks_here > progress.blocks) {
            world_.complain("more blocks are here than there are");
        }
        fvd_info info;
        image_.describe(&info);
        if (std::strncmp(info.base_img, "base", 4) != 0 || !info.started ||
            info.condition != FVD_CONDITION_HEALTHY || info.blocks_here > info.blocks) {
            world_.complain("the description of the image is wrong");
        }
        const Run run = any_run();
        const Placement place = image_.where(run.begin * kSector, run.count * kSector);
        if (place.run == 0 || place.run > run.count * kSector) {
            world_.complain("where() answered with a run of " + std::to_string(place.run));
        }
        (void)image_.needs_base();
        (void)image_.is_clean();
    }

    World& world_;
    Image& image_;
    SectorModel& model_;
    unsigned number_;
    Random random_;
    Buffer buffer_;
    std::vector<uint64_t> least_;
};

/* ------------------------------------------------------------------------------- a life */

bool World::create() {
    if (!must(create_on(*host_, options_), "create") || !must(image_->load(), "load") ||
        !must(image_->start(StartMode::writable), "start")) {
        return false;
    }
    host_->attach(image_.get());
    fvd_fill fill = empty_fill();
    fill.copy_on_read = options_.seed % 2 == 1 ? FVD_ON : FVD_OFF;
    fill.prefetch = options_.seed % 4 == 1 ? FVD_ON : FVD_OFF;
    return must(image_->set_fill(fill), "set_fill");
}

bool World::run(double seconds) {
    ending_.store(!complaint_.empty());
    host_->let_writes_fail(options_.seed % 2 == 0 ? 40 : 0);
    host_->resume();
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < options_.threads; i++) {
        threads.emplace_back([this, i] { Worker(*this, i).run(); });
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (!ending_.load() && std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ending_.store(true);
    for (std::thread& thread : threads) {
        thread.join();
    }
    host_->quiesce();
    host_->let_writes_fail(0);
    return complaint_.empty() && verify(*image_, "after the threads ended");
}

bool World::verify(Image& image, const char* when) {
    const Buffer buffer = make_buffer(kMostSectors * kSector);
    std::vector<uint64_t> least;
    for (uint64_t at = 0; at < options_.sectors; at += kMostSectors) {
        const Run run{at, std::min(kMostSectors, options_.sectors - at)};
        model_.before_read(run, least);
        if (!must(image.read(run.begin * kSector, run.count * kSector, {buffer.get(), 0}, 0),
                  when)) {
            return false;
        }
        const std::string wrong = model_.judge(run, least, buffer.get());
        if (!wrong.empty()) {
            return complain(std::string(when) + ": " + wrong);
        }
    }
    return true;
}

bool World::check_recovery() {
    if (!must(image_->flush(), "flush")) {
        return false;
    }
    const std::unique_ptr<ThreadHost> cut = make_host(options_, true);
    cut->file(FVD_FILE_IMAGE).copy_from(host_->file(FVD_FILE_IMAGE));
    fvd_check_result result;
    if (!must(check_image(*cut, FVD_FIX_NONE, &result), "check of a copy")) {
        return false;
    }
    if (result.corruptions + result.leaks + result.check_errors != 0) {
        return complain("check of a copy complains");
    }
    Image copy(*cut);
    if (!must(copy.load(), "load of a copy") ||
        !must(copy.start(StartMode::writable), "start of a copy")) {
        return false;
    }
    const bool right = verify(copy, "after recovery of a copy");
    return must(copy.stop(), "stop of a copy") && right;
}

bool World::stop_and_start() {
    if (!must(image_->stop(), "stop")) {
        return false;
    }
    if (!image_->is_clean()) {
        return complain("stopped, but not marked clean");
    }
    return must(image_->start(StartMode::writable), "second start") &&
           verify(*image_, "after stop and start");
}

bool World::make_empty() {
    fvd_progress progress;
    image_->progress(&progress);
    if (progress.blocks == 0) {
        return true; /* it was filled, and does not know its base any more */
    }
    if (!must(image_->make_empty(), "make empty")) {
        return false;
    }
    model_.forget();
    return verify(*image_, "after the image was emptied");
}

bool World::finish() {
    return must(image_->stop(), "last stop");
}

}  // namespace fvd::threads
