/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Planted bugs: tests of the tests. In test builds a switch makes the core break one of its rules,
 * and the simulator must notice within seconds. Everywhere else FVD_PLANT() is the constant false.
 */

#ifdef FVD_TEST_BUILD

/* name, and the rule or the defect of the 2011 code (D, B) that it brings back */
#define FVD_PLANTS(PLANT)                                                                   \
    PLANT(skip_data_flush, "R1, D9: records without a flush of their data")                 \
    PLANT(record_before_data, "R1, I1: the bit is set before the data is written")          \
    PLANT(skip_journal_flush, "P1: a guest flush ends before its records are durable")      \
    PLANT(flush_without_commit, "P1: a guest flush leaves pending changes behind")          \
    PLANT(skip_home_flush, "R2, D10: the ring is reused before home is durable")            \
    PLANT(skip_checkpoint, "R2, I7: the ring is reused, home was not written")              \
    PLANT(recycle_on_error, "R3, D11: a failed home write is taken for a good one")         \
    PLANT(clean_mark_early, "I8, D13: the clean mark without home behind it")               \
    PLANT(keep_epoch, "R4, D14: a session goes on under the epoch before it")               \
    PLANT(ignore_epoch, "I6, R5: records of another epoch are replayed")                    \
    PLANT(ignore_crc, "R6, D14: a torn unit passes for a whole one")                        \
    PLANT(ignore_gap, "P5: units after a gap of the last group count as damage")            \
    PLANT(wrong_place, "R12: units are written one place further")                          \
    PLANT(skip_replay_read_only, "R11, D16: a read-only open shows the state at home")      \
    PLANT(write_read_only, "P6: a read-only open repairs")                                  \
    PLANT(flush_fails_unnoticed, "R13: a failed flush changes nothing")                     \
    PLANT(flush_beside_failed, "R13: success of a flush beside one that failed")            \
    PLANT(write_when_failed, "I13: a failed image goes on committing")                      \
    PLANT(header_without_flush, "D17: copy and primary of the header without a flush")      \
    PLANT(header_copy_always_first, "D17: the only good copy is written over")              \
    PLANT(header_not_durable, "D12: a header that is only in a cache is built upon")        \
    PLANT(heap_bytes, "I14, D19: a unit is not cleared before use")                         \
    PLANT(forget_head, "P3: the start of a first written block is not copied")              \
    PLANT(forget_tail, "P3: the end of a first written block is not copied")                \
    PLANT(copy_past_base, "P3: the last block's copy goes past the end of the base")        \
    PLANT(no_range_lock, "I9, B15: first writes of one block do not wait")                  \
    PLANT(lose_waiter, "P5, B17: a waiting request is never woken")                         \
    PLANT(swallow_error, "P7: a failed first write is acknowledged")                        \
    PLANT(forget_failed_group, "P1, B8: records of a failed commit are not repeated")       \
    PLANT(commit_too_much, "I5: what came during a commit counts as committed")             \
    PLANT(ignore_fua, "P1: a first write with FUA is acknowledged without a commit")        \
    PLANT(zero_cut_block, "P3: zeros over a part of a block expose the rest")               \
    PLANT(run_from_first_bit, "P3, B26: one bit decides for a whole request")               \
    PLANT(empty_before_base, "P1: blocks are discarded before their bits are clear")        \
    PLANT(reuse_before_durable, "R9: a freed slot is used before that is durable")          \
    PLANT(stale_slot, "P3: a slot that is used again shows what it held")                   \
    PLANT(forget_entry, "P1: a commit leaves a slot's entry behind")                        \
    PLANT(table_not_home, "R2: a checkpoint forgets the table")                             \
    PLANT(switch_before_flush, "P1: the header names a larger table that is not durable")   \
    PLANT(bit_before_slot, "P1: records of bits stand before those of the slots they need") \
    PLANT(reuse_while_read, "P7: a freed slot is used while a request still reads it")      \
    PLANT(truncate_early, "P1: a smaller disk loses its end before the header says so")     \
    PLANT(store_over_guest, "P3: a stored copy overtakes a guest's write")                  \
    PLANT(record_before_store, "R1, I1: a copy's bit is set before it is written")          \
    PLANT(bit_before_list, "P3: a block is fetched that came here meanwhile")               \
    PLANT(forget_reader, "P5: who waits for another's fetch is never woken")                \
    PLANT(failed_fetch_fails_all, "P4: who waits for another's fetch gets its error")       \
    PLANT(keep_failed_fetch, "P5: a failed fetch stays on the list")                        \
    PLANT(free_while_copied, "P3: a fetch is freed while a reader copies from it")          \
    PLANT(fetch_past_base, "P3: what is fetched goes past the end of the base")             \
    PLANT(zeros_too_long, "P3: a block that is zeros in part is taken for zeros")           \
    PLANT(pause_for_ever, "B17: prefetch is resumed and does not go on")                    \
    PLANT(filled_before_flush, "P1: the base is given up before data is durable")           \
    PLANT(keep_filled_flag, "P3: an emptied image still says that it is full")              \
    PLANT(growth_unchecked, "P7: storage that did not grow counts as longer")               \
    PLANT(old_bytes_are_zeros, "P3: what others made of a device counts as zeros")          \
    PLANT(repair_forgets_home, "P1: a repair voids records that are not home")              \
    PLANT(canary, "nothing is broken; the alarm must ring all the same")

namespace fvd::plant {

enum class Name {
    none,
#define FVD_PLANT_NAME(name, what) name,
    FVD_PLANTS(FVD_PLANT_NAME)
#undef FVD_PLANT_NAME
};

/** The one that is planted now. */
inline Name active = Name::none;

}  // namespace fvd::plant

#define FVD_PLANT(name) (::fvd::plant::active == ::fvd::plant::Name::name)

#else

#define FVD_PLANT(name) false

#endif
