/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "damage.h"

#include "fvd/engine/image.h"
#include "fvd/format/journal_unit.h"
#include "fvd/format/layout.h"
#include "fvd/verbs.h"
#include "world.h"

namespace fvd::sim {

namespace {

constexpr int kImagesAWorld = 60;

enum class Kind { flip, lost_write, misdirected, rude, unreadable };

struct Harm {
    Kind kind = Kind::flip;
    bool in_header = false;
    uint64_t at = 0; /* offset of the first byte */
    std::vector<std::byte> bytes;
    std::string text;
};

/* What a flip or a stray write does to one sector of header or journal. */
Harm draw_harm(Rng& rng, const Medium& medium, const Regions& regions) {
    Harm harm;
    harm.in_header = regions.journal.empty() || rng.chance(30);
    const ByteRange region = harm.in_header ? regions.header : regions.journal;
    constexpr uint64_t kSector = 512;
    const uint64_t sectors = region.count() / kSector;
    /* The start of the ring is where the units of a short life are. */
    const uint64_t reach = rng.chance(70) ? std::min<uint64_t>(sectors, 16) : sectors;
    harm.at = region.begin + rng.below(reach) * kSector;
    harm.bytes.resize(kSector);
    medium.read(0, harm.at, harm.bytes);
    const uint64_t kind = rng.below(13);
    if (kind == 12) {
        harm.kind = Kind::unreadable;
        harm.text = "an error for every read of the sector at offset ";
    } else if (kind >= 10) {
        /* A cut in the middle of a sector took its neighbours along. */
        harm.kind = Kind::rude;
        constexpr uint64_t kPhysical = 4096;
        harm.at -= harm.at % kPhysical;
        harm.bytes.resize(kPhysical);
        for (std::byte& byte : harm.bytes) {
            byte = static_cast<std::byte>(rng.next());
        }
        harm.text = "garbage in the 4096 bytes at offset ";
    } else if (kind < 7) {
        /* Half of the flips hit the fields at the start of a unit. */
        const uint64_t bit = rng.below(rng.chance(50) ? 1024 : kSector * 8);
        harm.bytes[bit / 8] ^= std::byte{1} << (bit % 8);
        harm.text = "bit " + std::to_string(bit) + " flipped in the sector at offset ";
    } else if (kind < 9) {
        harm.kind = Kind::lost_write;
        std::fill(harm.bytes.begin(), harm.bytes.end(), std::byte{0});
        harm.text = "zeros instead of the sector at offset ";
    } else {
        harm.kind = Kind::misdirected;
        medium.read(0, region.begin + rng.below(reach) * kSector, harm.bytes);
        harm.text = "another sector of the region at offset ";
    }
    harm.text += std::to_string(harm.at);
    return harm;
}

/* The last commit is what a cut may have torn: losing it looks like a cut, and no format can tell.
 */
bool hits_newest_group(const Harm& harm, const Medium& medium, const Header& header) {
    uint64_t newest_start = 0;
    uint64_t newest_hit = 0; /* number after it */
    std::vector<std::byte> unit(header.journal_unit);
    for (uint64_t place = 0; place < header.journal_units(); place++) {
        const uint64_t at = header.journal_offset + place * header.journal_unit;
        medium.read(0, at, unit);
        const auto view = UnitView::decode(unit, header.image_id);
        if (!view || view->header().epoch != header.journal_epoch) {
            continue;
        }
        const UnitHeader& h = view->header();
        newest_start = std::max(newest_start, h.sequence - h.group_index);
        if (harm.at + harm.bytes.size() > at && harm.at < at + header.journal_unit) {
            newest_hit = std::max(newest_hit, h.sequence + 1);
        }
    }
    return newest_hit > newest_start;
}

class DamagedImages {
  public:
    DamagedImages(World& world, uint64_t seed) : world_(world), rng_(mix(seed, 0xDA)) {
        world.leave_medium(medium_);
    }

    std::optional<Violation> run() {
        WriteLog log;
        DirectHost host(medium_, world_.base(), world_.shape().separate_data, log);
        Image image(host);
        image.quiesce(true);
        if (!image.load().ok()) {
            return Violation{"P5", "the image that is to be damaged does not open"};
        }
        header_ = image.header();
        const Regions regions = regions_of(header_);
        for (int i = 0; i < kImagesAWorld; i++) {
            const Harm harm = draw_harm(rng_, medium_, regions);
            if (auto broken = try_harm(harm)) {
                return broken;
            }
        }
        return {};
    }

  private:
    std::optional<Violation> try_harm(const Harm& harm) {
        /* A unit that cannot be read is no torn one: nothing excuses going on without it. */
        const bool excused = !harm.in_header && harm.kind != Kind::unreadable &&
                             hits_newest_group(harm, medium_, header_);
        WriteLog log;
        medium_.write(0, harm.at, harm.bytes, log);
        const auto broken = judge(harm, excused);
        medium_.undo(log);
        return broken;
    }

    std::optional<Violation> judge(const Harm& harm, bool excused) {
        WriteLog log;
        DirectHost host(medium_, world_.base(), world_.shape().separate_data, log);
        if (harm.kind == Kind::unreadable) {
            host.unreadable = {harm.at, harm.at + harm.bytes.size()};
        }
        Image image(host);
        image.quiesce(true);
        Error error = image.load();
        if (error.ok()) {
            error = image.start(StartMode::read_only);
        }
        if (!error.ok()) {
            return {}; /* detected */
        }
        GuestMemory memory;
        const uint64_t disk_size = image.header().virtual_size;
        memory.bytes.resize(disk_size);
        if (!image.read(0, disk_size, {&memory, 0}, 0).ok()) {
            return {};
        }
        const uint32_t size = world_.shape().cell_size;
        if (!world_.reference().legal_size(disk_size)) {
            return Violation{"P9", "undetected damage (" + harm.text + "): the disk has " +
                                       std::to_string(disk_size) + " bytes"};
        }
        for (uint64_t cell = 0; cell < disk_size / size; cell++) {
            const Value seen = stamp::read(&memory.bytes[cell * size], size, cell);
            /* Where the last group took a slot away, losing it gives the slot back to a chunk
             * whose it is no more: no format can tell that either. */
            const bool may_lose_slots = excused && header_.has_table();
            const bool invented = (seen == kAlien || seen == kTrap) && !may_lose_slots;
            const bool legal = world_.reference().legal_after_cut(cell, seen);
            if (invented || (!legal && !excused)) {
                return Violation{"P9", "undetected damage (" + harm.text + "): cell " +
                                           std::to_string(cell) + " reads as " + value_text(seen) +
                                           "; legal: " + world_.reference().legal_text(cell)};
            }
        }
        return {};
    }

    World& world_;
    Rng rng_;
    Medium medium_;
    Header header_;
};

}  // namespace

DamageOutcome run_damage(uint64_t seed) {
    DamageOutcome outcome;
    /* Most of the worlds have full journals: swarm.cc makes them for these remainders of eight. */
    constexpr uint64_t kWithRings[] = {0, 3, 3, 6};
    outcome.history = random_history(seed / 4 * 8 + kWithRings[seed % 4]);
    outcome.history.shape.explore_percent = 0;
    std::erase_if(outcome.history.ops, [](const Op& op) {
        return op.kind == OpKind::fault || op.kind == OpKind::no_memory;
    });
    CrashExplorer explorer;
    WorldOptions options;
    options.damage = true;
    World world(outcome.history, explorer, options);
    const Outcome run = world.run();
    outcome.violation = run.violation;
    if (!outcome.violation) {
        outcome.violation = DamagedImages(world, seed).run();
        outcome.images = kImagesAWorld;
    }
    return outcome;
}

}  // namespace fvd::sim
