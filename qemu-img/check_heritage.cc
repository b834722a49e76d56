/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu-img check of an image of January 2011: read all metadata and judge it. Nothing is repaired,
 * as nothing is ever written to such an image; what a repair could do, a conversion does better.
 */
#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>

#include "fvd/engine/heritage_image.h"
#include "fvd/format/limits.h"
#include "fvd/verbs.h"

namespace fvd {

namespace {

class HeritageCheck {
  public:
    HeritageCheck(Host& host, fvd_check_result* result)
        : host_(host), image_(host), result_(*result) {}
    Error run();

  private:
    void judge_metadata();
    void judge_journal(const heritage::JournalFacts& facts);
    void judge_linear(uint64_t data_length);
    void judge_table(uint64_t data_length);
    void count_corruptions(uint64_t count, const Error& sentence) {
        result_.corruptions += count;
        host_.warn(sentence.text);
    }
    void fail(const Error& sentence) {
        result_.check_errors++;
        host_.warn(sentence.text);
    }

    Host& host_;
    HeritageImage image_;
    fvd_check_result& result_;
};

Error HeritageCheck::run() {
    if (Error error = image_.load(); !error.ok()) {
        return error;
    }
    result_ = {};
    host_.warn("an image of January 2011 (version 1): read-only, to be converted");
    judge_metadata();
    return Error::none();
}

void HeritageCheck::judge_metadata() {
    heritage::JournalFacts facts;
    if (const Error error = image_.fold(&facts); !error.ok()) {
        return error.code == -EINVAL ? count_corruptions(1, error) : fail(error);
    }
    const heritage::Header& header = image_.header();
    result_.blocks = header.block_count();
    result_.blocks_here = image_.view().blocks_here();
    judge_journal(facts);
    const int64_t length = host_.length(FVD_FILE_DATA);
    if (length < 0) {
        return fail(Error::make(static_cast<int>(length),
                                "the length of the file with the guest's data cannot be read: %s",
                                std::strerror(static_cast<int>(-length))));
    }
    if (header.compact) {
        judge_table(static_cast<uint64_t>(length));
    } else {
        judge_linear(static_cast<uint64_t>(length));
    }
}

void HeritageCheck::judge_journal(const heritage::JournalFacts& facts) {
    const heritage::Header& header = image_.header();
    if (header.clean_shutdown && facts.unsaved != 0) {
        count_corruptions(1,
                          Error::make(-EINVAL,
                                      "marked clean, but %" PRIu64
                                      " journal sectors name writes that bitmap and table do not "
                                      "have; they were lost in 2011, when an open failed after a "
                                      "crash",
                                      facts.unsaved));
    }
    if (header.clean_shutdown) {
        return;
    }
    result_.journal_units_pending = facts.unsaved;
    if (header.has_metadata() && header.journal_size == 0) {
        host_.warn(
            "not closed in order, and made without a journal: writes of its last use may "
            "be missing");
    } else if (facts.unsaved != 0) {
        const Error note = Error::make(-EINVAL,
                                       "not closed in order: %" PRIu64
                                       " journal sectors are replayed in memory at each open",
                                       facts.unsaved);
        host_.warn(note.text);
    }
}

void HeritageCheck::judge_linear(uint64_t data_length) {
    const heritage::Header& header = image_.header();
    result_.image_end_offset = header.has_data_file() ? header.metadata_size : data_length;
    heritage::View view = image_.view();
    if (const Error error = view.set_storage(data_length); !error.ok()) {
        count_corruptions(1, error);
    }
}

void HeritageCheck::judge_table(uint64_t data_length) {
    const heritage::Header& header = image_.header();
    const heritage::View& view = image_.view();
    const uint64_t begin = header.data_offset();
    const uint64_t room = (data_length - std::min(begin, data_length)) / header.chunk_size;
    const uint64_t slots = std::min(room, view.slot_count());
    const uint64_t size = std::max<uint64_t>(BlockBitmap::bits_to_words(slots), 1) * 8;
    result_.image_end_offset =
        header.has_data_file() ? header.metadata_size : begin + slots * header.chunk_size;
    HostBuffer memory(host_, size);
    if (!memory) {
        return fail(Error::make(-ENOMEM, "no memory: %" PRIu64 " bytes are needed", size));
    }
    std::memset(memory.data(), 0, size);
    const std::span<uint64_t> words(reinterpret_cast<uint64_t*>(memory.data()), size / 8);
    const heritage::TableFacts facts = view.judge_table(BlockBitmap(words, slots));
    if (facts.outside != 0) {
        count_corruptions(facts.outside, Error::make(-EINVAL,
                                                     "%" PRIu64 " chunks (the first is %" PRIu64
                                                     ") are in slots beyond the %" PRIu64
                                                     " that the file with the guest's data holds",
                                                     facts.outside, facts.first_outside, room));
    }
    if (facts.doubles != 0) {
        count_corruptions(facts.doubles, Error::make(-EINVAL,
                                                     "%" PRIu64 " chunks (the first is %" PRIu64
                                                     ") are in a slot that another chunk uses, too",
                                                     facts.doubles, facts.first_double));
    }
    if (facts.unused_slots != 0) {
        result_.leaks += facts.unused_slots;
        const Error leak =
            Error::make(-EINVAL, "%" PRIu64 " slots hold no chunk of the disk", facts.unused_slots);
        host_.warn(leak.text);
    }
    if (const uint64_t lost = view.chunks_without_slot(); lost != 0) {
        const Error note = Error::make(-EINVAL,
                                       "%" PRIu64
                                       " chunks are marked as copied from the base, but "
                                       "not in the table; they are read from the base",
                                       lost);
        host_.warn(note.text);
    }
}

}  // namespace

Error check_heritage(Host& host, uint32_t fix, fvd_check_result* result) {
    if (fix != FVD_FIX_NONE) {
        return heritage_is_read_only();
    }
    return HeritageCheck(host, result).run();
}

}  // namespace fvd
