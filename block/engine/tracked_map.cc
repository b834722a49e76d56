/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/tracked_map.h"

#include <algorithm>

#include "fvd/base/arith.h"

namespace fvd {

namespace {

/* Call collect_page(page) for pending pages from *page on. */
template <typename CollectPage>
bool collect_pages(BlockBitmap& pending, uint64_t* page, CollectPage collect_page) {
    const uint64_t end = pending.bits();
    while (*page < end) {
        if (!pending.test(*page)) {
            *page = pending.run_end(*page, end);
            continue;
        }
        /* Where the group is full the page stays pending, and what of it is already in the group
         * is committed by the time it is looked at again. */
        if (!collect_page(*page)) {
            return false;
        }
        pending.clear(*page, *page + 1);
        (*page)++;
    }
    return true;
}

}  // namespace

bool PageSets::begin(Host& host, uint64_t pages, const BlockBitmap& first_unsaved) {
    if (!make_bitmap(host, pages, &pending_words_, &pending) ||
        !make_bitmap(host, pages, &unsaved_words_, &unsaved)) {
        return false;
    }
    for (uint64_t page = 0; page < std::min(pages, first_unsaved.bits()); page++) {
        if (first_unsaved.test(page)) {
            unsaved.set(page, page + 1);
        }
    }
    return true;
}

/* ---------------------------------------------------------------------------------- bitmap */

bool TrackedBitmap::begin(Host& host, BlockBitmap bitmap, uint64_t page_count,
                          const BlockBitmap& unsaved) {
    current = bitmap;
    committed_words_ = memory_for<uint64_t>(host, bitmap.words());
    if (!committed_words_ || !pages.begin(host, page_count, unsaved)) {
        return false;
    }
    const auto words = items_of<uint64_t>(committed_words_, bitmap.words());
    for (uint64_t w = 0; w < words.size(); w++) {
        words[w] = bitmap.word(w);
    }
    committed_ = BlockBitmap(words, bitmap.bits());
    blocks_ = bitmap.bits();
    missing_ = blocks_ - bitmap.count();
    return true;
}

void TrackedBitmap::record(BlockRange blocks) {
    pages.pending.set(blocks.begin.value / kBlocksPerPage,
                      div_ceil(blocks.end.value, kBlocksPerPage));
    missing_ -= blocks.count() - current.count(blocks.begin.value, blocks.end.value);
    current.set(blocks.begin.value, blocks.end.value);
}

bool TrackedBitmap::collect(JournalGroup& group, uint64_t* page) {
    return collect_pages(pages.pending, page,
                         [&](uint64_t one) { return collect_page(group, one); });
}

bool TrackedBitmap::collect_page(JournalGroup& group, uint64_t page) {
    const uint64_t end = std::min((page + 1) * kBlocksPerPage, current.bits());
    BlockRange run; /* empty: none is open */
    for (uint64_t bit = page * kBlocksPerPage; bit < end; bit += 64) {
        uint64_t news = current.word(bit / 64) & ~committed_.word(bit / 64);
        while (news != 0) {
            const uint64_t low = static_cast<uint64_t>(__builtin_ctzll(news));
            const uint64_t shifted = news >> low;
            const uint64_t ones =
                ~shifted == 0 ? 64 : static_cast<uint64_t>(__builtin_ctzll(~shifted));
            if (run.end.value != bit + low) {
                if (!run.empty() && !group.add(run)) {
                    return false;
                }
                run.begin = BlockIndex(bit + low);
            }
            run.end = BlockIndex(bit + low + ones);
            news = low + ones == 64 ? 0 : news & (~uint64_t{0} << (low + ones));
        }
    }
    return run.empty() || group.add(run);
}

void TrackedBitmap::applied(const JournalRecord& record) {
    committed_.set(record.blocks.begin.value, record.blocks.end.value);
    pages.unsaved.set(record.blocks.begin.value / kBlocksPerPage,
                      div_ceil(record.blocks.end.value, kBlocksPerPage));
}

void TrackedBitmap::collect_again() {
    for (uint64_t w = 0; w < current.words(); w++) {
        if ((current.word(w) & ~committed_.word(w)) != 0) {
            const uint64_t page = w * 64 / kBlocksPerPage;
            pages.pending.set(page, page + 1);
        }
    }
}

void TrackedBitmap::forget_all() {
    current.clear(0, current.bits());
    committed_.clear(0, committed_.bits());
    pages.pending.clear(0, pages.pending.bits());
    pages.unsaved.clear(0, pages.unsaved.bits());
    missing_ = blocks_;
}

void TrackedBitmap::cut(uint64_t bits) {
    bits = std::min(bits, current.bits());
    current.clear(bits, current.bits());
    committed_.clear(bits, current.bits());
    const uint64_t page = std::min(bits / kBlocksPerPage, pages.unsaved.bits());
    pages.unsaved.set(page, pages.unsaved.bits());
    blocks_ = bits;
    missing_ = bits - current.count(0, bits);
}

void TrackedBitmap::commit_everything() {
    for (uint64_t b = 0; b < current.bits(); b++) {
        current.test(b) ? committed_.set(b, b + 1) : void();
    }
}

/* ----------------------------------------------------------------------------------- table */

bool TrackedTable::begin(Host& host, ChunkTable table, uint64_t page_count,
                         const BlockBitmap& unsaved) {
    current = table;
    committed_entries_ = memory_for<uint32_t>(host, table.chunks());
    if (!committed_entries_ || !pages.begin(host, page_count, unsaved)) {
        return false;
    }
    const auto entries = items_of<uint32_t>(committed_entries_, table.chunks());
    committed_ = ChunkTable(entries);
    committed_.copy_from(table);
    return true;
}

void TrackedTable::follow(const TrackedTable& smaller) {
    committed_.copy_from(smaller.committed_);
    current.copy_from(smaller.committed_);
}

void TrackedTable::replace(const TrackedTable& smaller) {
    const BlockBitmap& pending = smaller.pages.pending;
    for (uint64_t page = 0; page < pending.bits(); page++) {
        if (!pending.test(page)) {
            continue; /* nothing in it differs from what is committed */
        }
        const ChunkIndex end(std::min((page + 1) * kChunksPerPage, smaller.current.chunks()));
        for (ChunkIndex chunk(page * kChunksPerPage); chunk < end; ++chunk) {
            current.set_entry(chunk, smaller.current.entry(chunk));
        }
        pages.pending.set(page, page + 1);
    }
}

void TrackedTable::record(ChunkIndex chunk, uint32_t entry) {
    const uint64_t page = chunk.value / kChunksPerPage;
    pages.pending.set(page, page + 1);
    current.set_entry(chunk, entry);
}

bool TrackedTable::collect(JournalGroup& group, uint64_t* page) {
    return collect_pages(pages.pending, page,
                         [&](uint64_t one) { return collect_page(group, one); });
}

bool TrackedTable::collect_page(JournalGroup& group, uint64_t page) {
    const uint64_t end = std::min((page + 1) * kChunksPerPage, current.chunks());
    uint32_t entries[JournalGroup::kMaxEntries];
    size_t count = 0;
    uint64_t first = 0;
    for (uint64_t chunk = page * kChunksPerPage; chunk < end; chunk++) {
        const uint32_t entry = current.entry(ChunkIndex(chunk));
        if (entry == committed_.entry(ChunkIndex(chunk))) {
            continue;
        }
        if (count == JournalGroup::kMaxEntries || (count != 0 && chunk != first + count)) {
            if (!group.add(ChunkIndex(first), {entries, count})) {
                return false;
            }
            count = 0;
        }
        first = count == 0 ? chunk : first;
        entries[count++] = entry;
    }
    return count == 0 || group.add(ChunkIndex(first), {entries, count});
}

void TrackedTable::applied(const JournalRecord& record) {
    const uint64_t first = record.first_chunk.value;
    for (uint64_t i = 0; i < record.entry_count(); i++) {
        committed_.set_entry(ChunkIndex(first + i), record.entry(i));
    }
    pages.unsaved.set(first / kChunksPerPage,
                      div_ceil(first + record.entry_count(), kChunksPerPage));
}

void TrackedTable::collect_again() {
    for (uint64_t c = 0; c < current.chunks(); c++) {
        if (current.entry(ChunkIndex(c)) != committed_.entry(ChunkIndex(c))) {
            const uint64_t page = c / kChunksPerPage;
            pages.pending.set(page, page + 1);
        }
    }
}

}  // namespace fvd
