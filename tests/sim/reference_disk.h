/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * What a guest may legally see, cell by cell. Written without looking at the engine: it knows
 * promises P1-P3 and nothing of blocks, bitmaps or journals.
 *
 * Of each cell it remembers the writes that may still matter: when each was issued, when it
 * returned, and whether a flush has made it durable. A value is legal unless a write that certainly
 * counts began after it had returned: after a power cut   only durable writes certainly count (P1,
 * P2) at a read           every write that returned before the read began counts A failed write,
 * and a discard, never certainly counts: before or after, both may be seen for ever.
 */

#include <string>
#include <vector>

#include "fvd/base/bytes.h"
#include "stamp.h"

namespace fvd::sim {

class ReferenceDisk {
  public:
    /** A disk of @p size bytes that may grow to @p most. */
    ReferenceDisk(uint64_t size, uint64_t most, uint32_t cell_size);

    /** Of bytes; what lies behind the guest's end reads as zeros should it come to be. */
    uint64_t most() const { return cells_.size() * cell_size_; }
    uint32_t cell_size() const { return cell_size_; }
    uint64_t cells() const { return size_ / cell_size_; }

    /** The disk is about to get another size: a cut may show either. */
    void resize_begins(uint64_t size);
    /** It has @p size now. Unless that is certain, a cut may still show the other one. */
    void resize_ends(uint64_t size, bool certain);
    bool legal_size(uint64_t size) const { return size == size_ || size == other_size_; }
    std::string legal_sizes_text() const;

    /** Content before anybody wrote. */
    void set_initial(uint64_t cell, Value value);

    /** A guest write begins; @p value is new to this disk (or kZero). Returns a ticket. */
    uint64_t write_begins(uint64_t offset, uint64_t length, Value value);
    enum class Result { done, done_durably, uncertain };
    void write_ends(uint64_t ticket, uint64_t offset, uint64_t length, Result result);

    /** Moment at which a flush, or a read, is issued. */
    uint64_t now() { return ++clock_; }
    /** The flush issued at @p moment succeeded: what had returned by then is durable. False when
     * some of that was lost before the answer was fixed at @p answered: the success is a lie (P7).
     */
    bool flush_ends(uint64_t moment, uint64_t answered);
    /** A device lost its cache at @p moment (of Fiber::moment()): what is not durable may be there
     * or not, now and for ever (R13); what is in flight too, however it ends. */
    void cache_was_lost(uint64_t moment);
    /** A new session: nobody promises anything about what the last one lost. */
    void forget_losses();

    /** Reads remember what they may see: pair with read_ends(). */
    void read_begins() { reads_++; }
    void read_ends() { reads_--; }
    bool legal_at_read(uint64_t cell, Value value, uint64_t begun) const;
    bool legal_after_cut(uint64_t cell, Value value);
    const std::vector<Value>& legal_after_cut(uint64_t cell);
    /** Changes whenever a state that was legal may have become illegal. */
    uint64_t expectation() const { return expectation_; }
    /** A number of exactly what is legal now; equal in worlds where equal values are. */
    uint64_t exact_expectation();
    /** The guest never wrote here. */
    bool never_written(uint64_t cell) const { return !cells_[cell].written; }

    /** A cell's content is now known for certain and durable. */
    void settle(uint64_t cell, Value value);

    std::string legal_text(uint64_t cell);

  private:
    struct Write {
        Value value = kZero;
        bool certain = false; /* returned with success */
        bool durable = false;
        uint64_t lost_at = UINT64_MAX; /* acknowledged, and then the device dropped it */
        bool overtaken = false; /* a cache was lost while it was in flight, and perhaps its data */
        uint64_t issued = 0;
        uint64_t returned = UINT64_MAX;
        uint64_t ticket = 0;
    };
    struct Cell {
        std::vector<Write> writes;
        std::vector<Value> legal; /* cache for legal_after_cut() */
        bool legal_known = false;
        bool listed = false; /* in unsettled_ */
        bool written = false;
    };

    void touch(uint64_t cell);
    void prune(Cell& cell);

    uint32_t cell_size_;
    uint64_t size_;
    uint64_t other_size_; /* the same, where it is certain */
    std::vector<Cell> cells_;
    std::vector<uint64_t> unsettled_; /* cells with writes that are not durable */
    uint64_t clock_ = 0;
    uint64_t tickets_ = 0;
    uint64_t expectation_ = 0;
    uint64_t reads_ = 0;
};

/** "base image", "write #12", "zeros" ... */
std::string value_text(Value value);

}  // namespace fvd::sim
