/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "crash_explorer.h"

#include <algorithm>
#include <cstring>

#include "fvd/engine/image.h"
#include "fvd/verbs.h"

namespace fvd::sim {

void CrashExplorer::begin(const SimDisk& image, const SimDisk& data,
                          const std::vector<std::byte>* base, bool separate_data,
                          ReferenceDisk* reference, const ExplorerOptions& options, uint64_t seed) {
    medium_.load(image, data);
    base_ = base;
    separate_data_ = separate_data;
    reference_ = reference;
    options_ = options;
    rng_ = Rng(mix(seed, 0xC07));
    world_salt_ = 0;
    violation_.reset();
    if (!options.exact_memory) {
        seen_.clear();
    }
    for (Depth& depth : depths_) {
        depth.content.bytes.assign(reference->most(), std::byte{0});
    }
    scratch_.bytes.assign(reference->most(), std::byte{0});
}

std::vector<Candidate> CrashExplorer::candidates_of(const SimDisk& image, const SimDisk& data) {
    std::vector<Candidate> candidates;
    unsigned number = 0;
    for (const SimDisk* disk : {&image, &data}) {
        for (const auto& [unit, versions] : disk->uncertain()) {
            Candidate candidate;
            candidate.disk = number;
            candidate.unit = unit;
            for (const UnitVersion& version : versions) {
                /* The same content again is no new state. */
                uint64_t last = disk->durable_hash(unit);
                bool known = version.hash == last;
                for (const Candidate::Option& option : candidate.options) {
                    known |= option.hash == version.hash;
                }
                if (!known) {
                    candidate.options.push_back({version.bytes.get(), version.hash, version.write});
                }
            }
            if (!candidate.options.empty()) {
                candidates.push_back(std::move(candidate));
            }
        }
        number++;
    }
    return candidates;
}

void CrashExplorer::explore(SimDisk& image, SimDisk& data) {
    if (violation_) {
        return;
    }
    stats_.cuts++;
    medium_.follow(0, image);
    medium_.follow(1, data);
    /* Where worlds share memory, what was legal must be part of the state exactly. */
    expectation_ =
        options_.exact_memory ? reference_->exact_expectation() : reference_->expectation();
    const std::vector<Candidate> candidates = candidates_of(image, data);
    CutStates states(candidates, rng_);
    states.for_each(options_.budget,
                    [&](const Choice& choice) { return visit(candidates, choice, 0); });
}

/* Build one image on the medium, judge it unless an equal one was, and take it back. */
bool CrashExplorer::visit(std::span<const Candidate> candidates, const Choice& choice, int depth) {
    uint64_t hash = medium_.hash();
    for (size_t i = 0; i < choice.size(); i++) {
        if (choice[i] != 0) {
            const Candidate& c = candidates[i];
            hash -= unit_share(c.disk, c.unit, medium_.unit_hash(c.disk, c.unit));
            hash += unit_share(c.disk, c.unit, c.options[choice[i] - 1u].hash);
        }
    }
    /* A cut recovery must show what the state above showed, so that is part of what it is. */
    const uint64_t above = depth == 0 ? 0 : depths_[static_cast<size_t>(depth) - 1].content_hash;
    if (!seen_.insert(mix(mix(hash, expectation_), mix(world_salt_, above)))) {
        stats_.repeated++;
        return true;
    }
    struct Kept {
        unsigned disk;
        uint64_t unit, hash;
    };
    std::vector<Kept> kept;
    std::vector<std::byte> kept_bytes;
    for (size_t i = 0; i < choice.size(); i++) {
        if (choice[i] != 0) {
            const Candidate& c = candidates[i];
            const Candidate::Option& option = c.options[choice[i] - 1u];
            kept.push_back({c.disk, c.unit, medium_.unit_hash(c.disk, c.unit)});
            const std::byte* old = medium_.unit_bytes(c.disk, c.unit);
            kept_bytes.insert(kept_bytes.end(), old, old + medium_.unit());
            medium_.put_unit(c.disk, c.unit, option.bytes, option.hash);
        }
    }
    stats_.states++;
    stats_.nested += depth != 0;
    const bool fine = judge(depth);
    for (size_t i = 0; i < kept.size(); i++) {
        medium_.put_unit(kept[i].disk, kept[i].unit, &kept_bytes[i * medium_.unit()], kept[i].hash);
    }
    return fine;
}

bool CrashExplorer::judge(int depth) {
    if (!open_read_only(depth)) {
        return false;
    }
    const bool nested = depth < kMaxDepth && rng_.chance(options_.nested_percent);
    /* Deep states differ little from the ones above: the dearer looks are taken at a part of them.
     */
    if (depth != 0 && !nested && !rng_.chance(20)) {
        return true;
    }
    if (!run_check() || !open_writable(depth)) {
        medium_.undo(depths_[static_cast<size_t>(depth)].log);
        return false;
    }
    medium_.undo(depths_[static_cast<size_t>(depth)].log);
    return !nested || cut_recovery(depth);
}

bool CrashExplorer::open_read_only(int depth) {
    Depth& here = depths_[static_cast<size_t>(depth)];
    here.log.clear();
    DirectHost host(medium_, *base_, separate_data_, here.log);
    bool fine = true;
    {
        Image image(host);
        image.quiesce(true); /* nothing runs in the background here */
        const Error error = image.start(StartMode::read_only); /* loads first */
        if (!error.ok()) {
            fine = broken("P5", std::string("a read-only open after a cut failed: ") + error.text);
        } else if (here.size = image.header().virtual_size; !reference_->legal_size(here.size)) {
            fine = broken("P1", "after a cut the disk has " + std::to_string(here.size) +
                                    " bytes; legal: " + reference_->legal_sizes_text());
        } else if (!read_all(image, here.size, here.content)) {
            fine = broken("P5", "a read after a cut failed (read-only)");
        } else {
            (void)image.stop().ok();
        }
    }
    if (fine && (here.log.writes || !here.log.steps.empty())) {
        medium_.undo(here.log);
        fine = broken("P6", "a read-only open wrote to the image");
    }
    if (fine && host.leaked() != 0) {
        fine = broken("P5", "a read-only open kept memory after its end");
    }
    if (!fine) {
        return false;
    }
    return depth == 0 ? judge_content(here.content, here.size, "read-only, after a cut")
                      : same_content(depth, here.content, "read-only, after a cut during recovery");
}

bool CrashExplorer::run_check() {
    WriteLog log;
    DirectHost host(medium_, *base_, separate_data_, log);
    fvd_check_result result{};
    const Error error = check_image(host, FVD_FIX_NONE, &result);
    if (!error.ok()) {
        return broken("P9", std::string("check failed after a cut: ") + error.text);
    }
    if (log.writes) {
        medium_.undo(log);
        return broken("P9", "check without repair wrote to the image");
    }
    if (result.corruptions != 0 || result.leaks != 0 || result.check_errors != 0 ||
        host.warning_count() != 0) {
        return broken("P9", "check complains after a cut: " + host.warnings());
    }
    return true;
}

bool CrashExplorer::open_writable(int depth) {
    Depth& here = depths_[static_cast<size_t>(depth)];
    here.log.clear();
    DirectHost host(medium_, *base_, separate_data_, here.log);
    Image image(host);
    image.quiesce(true);
    const Error error = image.start(StartMode::writable); /* loads first */
    if (!error.ok()) {
        return broken("P5", std::string("a writable open after a cut failed: ") + error.text);
    }
    if (!host.misbehaviour().empty()) {
        return broken("I11", host.misbehaviour());
    }
    const uint64_t size = image.header().virtual_size;
    if (size != here.size) {
        return broken("P5", "a read-only and a writable open of one image show different sizes");
    }
    if (!read_all(image, size, scratch_)) {
        return broken("P5", "a read after recovery failed");
    }
    if (!equal_bytes(scratch_, here.content)) {
        (void)judge_content(scratch_, size, "after recovery");
        return broken("P5", "a read-only and a writable open of one image show different content");
    }
    return true;
}

/* What lies behind the end of the disk is zeros, so that contents can be compared. */
bool CrashExplorer::read_all(Image& image, uint64_t size, GuestMemory& content) {
    std::memset(content.bytes.data() + size, 0, content.bytes.size() - size);
    return image.read(0, size, {&content, 0}, 0).ok();
}

bool CrashExplorer::judge_content(const GuestMemory& content, uint64_t disk_size, const char* how) {
    const size_t size = reference_->cell_size();
    const std::byte* bytes = content.bytes.data();
    for (uint64_t cell = 0; cell < disk_size / size; cell++, bytes += size) {
        const Value seen = stamp::read(bytes, size, cell);
        if (reference_->legal_after_cut(cell, seen)) [[likely]] {
            continue;
        }
        const bool invented = seen == kAlien || seen == kTrap;
        const bool untouched = reference_->never_written(cell);
        const char* promise = untouched ? "P3" : invented ? "P2" : "P1";
        return broken(promise, describe_cell(cell, seen) + " (" + how + ")");
    }
    return true;
}

bool CrashExplorer::same_content(int depth, const GuestMemory& content, const char* how) {
    const GuestMemory& above = depths_[static_cast<size_t>(depth) - 1].content;
    if (depths_[static_cast<size_t>(depth)].size != depths_[static_cast<size_t>(depth) - 1].size) {
        /* A header torn by the first cut can be made whole by the part of another that the second
         * cut let through, where the two differ in what that part holds. Both sizes were about to
         * be the disk's: open_read_only() has asked. */
        return judge_content(content, depths_[static_cast<size_t>(depth)].size, how);
    }
    if (equal_bytes(content, above)) {
        return true;
    }
    const size_t size = reference_->cell_size();
    uint64_t cell = 0;
    while (std::memcmp(&content.bytes[cell * size], &above.bytes[cell * size], size) == 0) {
        cell++;
    }
    const Value was = stamp::read(&above.bytes[cell * size], size, cell);
    const Value is = stamp::read(&content.bytes[cell * size], size, cell);
    return broken("P5", describe_cell(cell, is) + ", but the recovery before showed " +
                            value_text(was) + " (" + how + ")");
}

std::string CrashExplorer::describe_cell(uint64_t cell, Value seen) const {
    const uint64_t at = cell * reference_->cell_size();
    return "sector " + std::to_string(at / 512) + " (offset " + std::to_string(at) + ") reads as " +
           value_text(seen) + "; legal: " + reference_->legal_text(cell);
}

bool CrashExplorer::broken(const char* promise, const std::string& text) {
    if (!violation_) {
        violation_ = Violation{promise, text};
    }
    return false;
}

/* The log of the writable open, walked from the state before it: what is flushed becomes durable,
 * and before each flush, and at the end, the power may fail. */
bool CrashExplorer::cut_recovery(int depth) {
    const WriteLog& log = depths_[static_cast<size_t>(depth)].log;
    if (!log.writes) {
        return true;
    }
    Depth& here = depths_[static_cast<size_t>(depth)];
    here.content_hash =
        mix(content_hash(here.content.bytes.data(), here.content.bytes.size()), here.size);
    std::vector<Candidate> candidates;
    WriteLog settled; /* to take the durable part back */
    bool fine = true;
    uint64_t writes = 0;
    for (const LogStep& step : log.steps) {
        if (!step.is_flush) {
            writes++;
            for (size_t i = step.first; i < step.end; i++) {
                const LoggedUnit& unit = log.units[i];
                const Candidate::Option option{&log.arena[unit.new_at], unit.new_hash, writes};
                const auto same = std::find_if(candidates.begin(), candidates.end(), [&](auto& c) {
                    return c.disk == step.disk && c.unit == unit.unit;
                });
                if (same != candidates.end()) {
                    same->options.push_back(option);
                } else {
                    candidates.push_back({step.disk, unit.unit, {option}});
                }
            }
            continue;
        }
        fine = fine && cut_step(depth, candidates);
        std::erase_if(candidates, [&](const Candidate& c) {
            if (c.disk == step.disk) {
                const Candidate::Option& last = c.options.back();
                medium_.write(c.disk, c.unit * medium_.unit(), {last.bytes, medium_.unit()},
                              settled);
            }
            return c.disk == step.disk;
        });
    }
    fine = fine && cut_step(depth, candidates);
    medium_.undo(settled);
    return fine;
}

bool CrashExplorer::cut_step(int depth, std::vector<Candidate>& candidates) {
    CutStates states(candidates, rng_);
    bool fine = true;
    states.for_each(8, [&](const Choice& choice) {
        fine = visit(candidates, choice, depth + 1);
        return fine;
    });
    return fine;
}

}  // namespace fvd::sim
