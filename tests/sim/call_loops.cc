/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "call_loops.h"

#include <cerrno>
#include <cstdlib>
#include <iterator>
#include <sstream>

namespace fvd::sim {

namespace {

/*
 * w OFF LEN  write      W OFF LEN  write with FUA    r OFF LEN  read     z OFF LEN  zeroes
 * d OFF LEN  discard    f  flush   c  commit         t  time passes      o  close and open
 * O  the same, read-only between   x  power cut      k  kill             e  make empty
 * s  set base           q  check   Q  check -r       p  wait for all   Y OFF LEN  zeroes that unmap
 * g LEN  resize         a LEN  resize, preallocated  l  a device gets longer
 * Offsets in sectors; the disk has 64, blocks and chunks 8. A first word of shape letters: D data
 * file, 4 units of 4096, S short base, N no base, P holes, B every block written apart (long
 * groups), M many in flight, Z no cheap zeroes, C compact, U on a used device, V on one of two
 * chunks, G may grow to 80, T compact with a table that is full (8192 sectors), J without a gap for
 * another, - nothing.
 */
constexpr Scenario kScenarios[] = {
    {"open_close", "- o"},
    {"open_close_data_file", "D o"},
    {"open_close_no_base", "N o"},
    {"open_read_only", "- O"},
    {"open_dirty", "- w 0 8 f k"},
    {"open_dirty_read_only", "- w 0 8 f k O"},
    {"open_after_cut", "- w 0 8 f x"},
    {"open_after_cut_data_file", "D w 0 8 f x"},
    {"open_after_kill_unflushed", "- w 0 8 k"},
    {"write_whole_block", "- w 0 8 f"},
    {"write_head", "- w 1 7 f"},
    {"write_tail", "- w 0 7 f"},
    {"write_both_edges", "- w 3 2 f"},
    {"write_across_blocks", "- w 4 16 f"},
    {"write_everything", "- w 0 64 f"},
    {"write_end_of_short_base", "S w 28 2 w 36 2 f"},
    {"write_past_short_base", "S w 40 8 f"},
    {"write_over_end_of_base", "S w 32 16 f"},
    {"write_fua_first", "- W 3 2"},
    {"write_fua_again", "- W 3 2 W 3 2"},
    {"overwrite", "- w 0 8 f w 0 8 f"},
    {"overwrite_unflushed", "- w 0 8 w 0 8 w 4 8 f"},
    {"write_data_file", "D w 3 2 f w 3 2 f"},
    {"write_4k_units", "4 w 0 8 f w 16 8 f"},
    {"write_no_base", "N w 3 2 f w 40 8 f"},
    {"zero_whole_blocks", "- z 8 16 f"},
    {"zero_part_of_block", "- z 3 2 f"},
    {"zero_after_write", "- w 0 16 f z 4 8 f"},
    {"zero_without_help", "Z z 8 16 z 3 2 f"},
    {"discard_missing", "- d 8 16 f"},
    {"discard_here", "- w 8 16 f d 8 16 f"},
    {"discard_mixed", "- w 8 4 d 0 32 f"},
    {"read_base", "- r 0 64"},
    {"read_mixed", "- w 8 8 w 24 8 r 0 64"},
    {"read_short_base", "S r 0 64"},
    {"flush_nothing", "- f f"},
    {"flush_twice", "- w 0 8 f f w 8 8 f f"},
    {"commit_then_flush", "- w 0 8 c f"},
    {"commit_by_timer", "- w 0 8 t r 0 8 r 8 8 t r 0 8"},
    {"long_group", "B f r 0 64"},
    {"long_group_then_more", "B f w 0 8 f x"},
    {"close_with_changes", "- w 0 8 o"},
    {"close_with_changes_data_file", "D w 0 8 o"},
    {"close_twice", "- w 0 8 o w 8 8 o"},
    {"make_empty", "- w 0 8 w 16 2 e r 0 64"},
    {"make_empty_data_file", "D w 0 8 f e w 0 2 f"},
    {"make_empty_then_cut", "- w 0 8 f e w 8 8 f x"},
    {"set_base", "- s"},
    {"set_base_in_session", "- w 0 8 f s f"},
    {"holes_in_base", "P w 3 2 f r 0 64 O"},
    {"many_in_flight", "M w 0 8 w 4 8 w 8 8 w 3 2 f w 20 8 f r 0 64"},
    {"many_first_writes_of_one_block", "M w 0 2 w 2 2 w 4 2 w 6 2 f"},
    {"many_flushes", "M w 0 8 f f f w 8 8 f f"},
    {"flushes_of_overwrites", "M w 0 16 f p w 0 8 w 8 8 p f f f f f"},
    {"flushes_of_many_overwrites", "M w 0 32 f p w 0 8 w 8 8 w 3 4 p f f f f f f w 0 8 p f f"},
    {"check_clean", "- q"},
    {"check_after_writes", "- w 0 8 f w 16 8 q"},
    {"check_repair", "- w 0 8 f k Q"},
    {"check_data_file", "D w 0 8 q Q"},
    {"compact_open_close", "C o"},
    {"compact_open_dirty", "C w 0 8 f k O"},
    {"compact_write_chunk", "C w 0 8 f"},
    {"compact_write_part", "C w 3 2 f"},
    {"compact_write_across_chunks", "C w 4 16 f"},
    {"compact_write_fua", "C W 3 2 W 3 2 W 20 2"},
    {"compact_write_used_device", "CU w 3 2 f w 20 8 f"},
    {"compact_write_no_base", "CN w 3 2 f w 40 8 f"},
    {"compact_write_data_file", "CD w 3 2 f w 20 2 f"},
    {"compact_storage_grows_late", "CV w 0 8 w 8 8 w 16 8 l w 16 8 f"},
    {"compact_zero_chunk", "C w 0 16 f Y 0 8 f"},
    {"compact_discard_and_reuse", "C w 0 24 f d 8 8 f w 40 8 f w 8 8 f"},
    {"compact_discard_unflushed", "CU w 0 24 d 8 8 w 40 8 w 8 8 f"},
    {"compact_discard_by_timer", "CU w 0 16 f d 0 8 t t r 0 16 w 32 8 f"},
    {"compact_read_mixed", "C w 8 8 w 24 8 d 8 4 r 0 64"},
    {"compact_make_empty", "C w 0 8 w 16 2 f e r 0 64 w 8 8 f"},
    {"compact_many_in_flight", "CM w 0 8 w 4 8 d 8 8 r 0 32 w 8 8 w 3 2 f w 20 8 d 0 16 f r 0 64"},
    {"compact_check_repair", "C w 0 8 f d 0 8 f k Q"},
    {"compact_two_sessions_and_cut", "C w 0 8 f o d 0 8 w 8 8 f x w 16 8 f"},
    {"grow", "G w 0 8 g 80 w 72 8 f"},
    {"grow_no_base", "GN w 0 8 g 80 w 72 8 f"},
    {"grow_data_file", "GD w 0 8 g 80 w 72 8 f"},
    {"grow_in_session", "G w 0 8 f w 8 8 g 80 w 60 8 f x"},
    {"shrink", "G w 0 64 f g 37 r 0 37 w 30 4 f"},
    {"shrink_and_grow", "G w 0 64 f g 20 g 80 r 0 80 f x"},
    {"compact_grow", "CG w 0 8 g 77 w 72 4 f"},
    {"compact_grow_preallocated", "CG w 0 8 a 80 f"},
    {"compact_shrink", "CG w 0 64 f g 37 r 0 37 w 30 4 f"},
    {"compact_shrink_and_grow", "CGU w 0 64 f g 20 g 80 r 0 80 w 40 8 f x"},
    {"compact_resize_many_in_flight",
     "CGM w 0 16 f r 0 16 g 80 w 0 8 d 8 8 w 66 8 f g 48 r 0 16 f"},
    {"table_moves", "T w 0 8 w 8184 8 g 8200 w 8192 8 f"},
    {"table_moves_onto_slots", "TJ w 0 8 w 8184 8 g 8200 w 8192 8 f x"},
    {"two_sessions_and_cut", "- w 0 8 f o w 8 8 f x w 16 8 f"},
};

struct Letter {
    char letter;
    OpKind kind;
    bool ranged;
    uint32_t flags;
    uint64_t a;
};
constexpr Letter kLetters[] = {
    {'w', OpKind::write, true, 0, 0},       {'W', OpKind::write, true, FVD_REQ_FUA, 0},
    {'r', OpKind::read, true, 0, 0},        {'z', OpKind::write_zeroes, true, 0, 0},
    {'d', OpKind::discard, true, 0, 0},     {'f', OpKind::flush, false, 0, 0},
    {'c', OpKind::commit, false, 0, 0},     {'t', OpKind::tick, false, 0, 20000},
    {'o', OpKind::reopen, false, 0, 1},     {'O', OpKind::read_only, false, 0, 0},
    {'x', OpKind::cut, false, 0, 0},        {'k', OpKind::kill, false, 0, 0},
    {'e', OpKind::make_empty, false, 0, 0}, {'s', OpKind::set_base, false, 0, 0},
    {'q', OpKind::check, false, 0, 0},      {'Q', OpKind::check, false, 0, 1},
    {'p', OpKind::pause, false, 0, 0},      {'Y', OpKind::write_zeroes, true, FVD_REQ_MAY_UNMAP, 0},
    {'g', OpKind::resize, false, 0, 0},     {'a', OpKind::resize, false, 0, FVD_PREALLOC_FALLOC},
    {'l', OpKind::extend, false, 0, 2},
};

constexpr uint64_t kSector = 512;

void shape_letter(char letter, History& history) {
    Shape& shape = history.shape;
    switch (letter) {
        case 'D':
            shape.separate_data = true;
            break;
        case '4':
            shape.device_unit = shape.journal_unit = 4096;
            shape.request_align = 4096;
            break;
        case 'S':
            shape.base_size = 37 * kSector;
            break;
        case 'N':
            shape.has_base = false;
            shape.base_size = 0;
            break;
        case 'P':
            shape.presets = true;
            break;
        case 'M':
            shape.depth = 8;
            break;
        case 'Z':
            shape.host_zeroes = false;
            break;
        case 'C':
            shape.chunk_size = 8 * kSector;
            break;
        case 'U':
            shape.used_storage = true;
            break;
        case 'V':
            shape.used_storage = true;
            shape.device_chunks = 2;
            break;
        case 'G':
            shape.most_size = 80 * kSector;
            break;
        case 'T':
            shape.chunk_size = 8 * kSector;
            shape.virtual_size = 8192 * kSector;
            shape.most_size = 8200 * kSector;
            shape.cell_size = shape.request_align = 4096;
            shape.device_unit = shape.journal_unit = 4096;
            shape.budget = 4;
            break;
        case 'J':
            shape.journal_units = 252;
            break;
        case 'B': /* every second block of many small ones: a record each, several units a group */
            shape.block_size = kSector;
            for (uint64_t sector = 0; sector < 64; sector += 2) {
                Op op;
                op.kind = OpKind::write;
                op.offset = sector * kSector;
                op.length = kSector;
                history.ops.push_back(op);
            }
            break;
        default:
            break;
    }
}

History history_of(const Scenario& scenario) {
    History history;
    history.seed = 77;
    history.shape.virtual_size = history.shape.base_size = 64 * kSector;
    history.shape.explore_percent = 20;
    history.shape.budget = 8;
    history.shape.nested_percent = 5;
    std::istringstream words(scenario.ops);
    std::string word;
    words >> word;
    for (const char letter : word) {
        shape_letter(letter, history);
    }
    while (words >> word) {
        Op op;
        for (const Letter& letter : kLetters) {
            if (letter.letter == word[0]) {
                op.kind = letter.kind;
                op.flags = letter.flags;
                op.a = letter.a;
                if (letter.kind == OpKind::resize) {
                    words >> op.length;
                    op.length *= kSector;
                }
                if (letter.ranged) {
                    words >> op.offset >> op.length;
                    op.offset *= kSector;
                    op.length *= kSector;
                }
            }
        }
        history.ops.push_back(op);
    }
    for (size_t i = 0; i < history.ops.size(); i++) {
        history.ops[i].number = i;
    }
    return history;
}

struct Mode {
    uint32_t calls;
    int error;
    bool forever;
};

}  // namespace

uint64_t scenario_count() {
    return std::size(kScenarios);
}

LoopOutcome run_call_loop(uint64_t index, CrashExplorer& explorer) {
    constexpr uint32_t kMemory = 1u << static_cast<unsigned>(CallKind::allocate);
    constexpr uint32_t kIo = 0xFF & ~kMemory;
    constexpr Mode kModes[] = {{kIo, EIO, false},        {kIo, EIO, true},
                               {kIo, ENOSPC, false},     {kIo, ENOSPC, true},
                               {kMemory, ENOMEM, false}, {kMemory, ENOMEM, true}};
    static_assert(std::size(kModes) == kFailureModes);
    const Mode& mode = kModes[index % kFailureModes];
    LoopOutcome outcome;
    outcome.history = history_of(kScenarios[index / kFailureModes]);
    for (uint64_t k = 0;; k++) {
        FaultRule rule;
        rule.calls = mode.calls;
        rule.error = mode.error;
        rule.forever = mode.forever;
        rule.skip = k;
        outcome.options = {};
        outcome.options.first_fault = rule;
        outcome.options.fault_open = true;
        World world(outcome.history, explorer, outcome.options);
        const Outcome run = world.run();
        outcome.runs++;
        outcome.violation = run.violation;
        if (run.violation || run.faults_hit == 0) {
            return outcome; /* broken, or no call was left to fail */
        }
    }
}

}  // namespace fvd::sim
