/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "reference_disk.h"

#include <algorithm>

#include "rng.h"

namespace fvd::sim {

ReferenceDisk::ReferenceDisk(uint64_t size, uint64_t most, uint32_t cell_size)
    : cell_size_(cell_size), size_(size), other_size_(size), cells_(most / cell_size) {
    FVD_ASSERT(size % cell_size == 0 && most % cell_size == 0 && size <= most);
    for (uint64_t cell = 0; cell < cells_.size(); cell++) {
        set_initial(cell, kZero);
    }
}

void ReferenceDisk::set_initial(uint64_t cell, Value value) {
    Write first;
    first.value = value;
    first.certain = first.durable = true;
    first.returned = 0;
    cells_[cell].writes.assign(1, first);
    cells_[cell].legal_known = false;
    expectation_++;
}

void ReferenceDisk::resize_begins(uint64_t size) {
    FVD_ASSERT(size % cell_size_ == 0 && size <= most());
    other_size_ = size;
    expectation_++;
}

/* What lies behind the end is forgotten only when it cannot come back. */
void ReferenceDisk::resize_ends(uint64_t size, bool certain) {
    other_size_ = certain ? size : size == size_ ? other_size_ : size_;
    size_ = size;
    for (uint64_t cell = std::max(size_, other_size_) / cell_size_; cell < cells_.size(); cell++) {
        settle(cell, kZero);
        cells_[cell].written = false;
    }
    expectation_++;
}

std::string ReferenceDisk::legal_sizes_text() const {
    const std::string one = std::to_string(size_);
    return size_ == other_size_ ? one : one + " or " + std::to_string(other_size_);
}

void ReferenceDisk::settle(uint64_t cell, Value value) {
    Write only;
    only.value = value;
    only.certain = only.durable = true;
    only.issued = only.returned = ++clock_;
    Cell& c = cells_[cell];
    if (c.writes.size() != 1 || c.writes[0].value != value) {
        expectation_++;
    }
    c.writes.assign(1, only);
    c.legal_known = false;
}

void ReferenceDisk::touch(uint64_t cell) {
    Cell& c = cells_[cell];
    c.legal_known = false;
    if (!c.listed) {
        c.listed = true;
        unsettled_.push_back(cell);
    }
}

uint64_t ReferenceDisk::write_begins(uint64_t offset, uint64_t length, Value value) {
    Write write;
    write.value = value;
    write.issued = now();
    write.ticket = ++tickets_;
    for (uint64_t cell = offset / cell_size_; cell * cell_size_ < offset + length; cell++) {
        cells_[cell].writes.push_back(write);
        cells_[cell].written = true;
        touch(cell);
    }
    return write.ticket;
}

void ReferenceDisk::write_ends(uint64_t ticket, uint64_t offset, uint64_t length, Result result) {
    const uint64_t moment = now();
    for (uint64_t cell = offset / cell_size_; cell * cell_size_ < offset + length; cell++) {
        Cell& c = cells_[cell];
        for (Write& write : c.writes) {
            if (write.ticket == ticket) {
                write.returned = moment;
                write.certain =
                    result == Result::done_durably || (result == Result::done && !write.overtaken);
                write.durable = result == Result::done_durably;
            }
        }
        c.legal_known = false;
        if (result == Result::done_durably) {
            prune(c);
        }
    }
    if (result == Result::done_durably) {
        expectation_++;
    }
}

bool ReferenceDisk::flush_ends(uint64_t moment, uint64_t answered) {
    bool changed = false;
    bool honest = true;
    size_t kept = 0;
    for (const uint64_t cell : unsettled_) {
        Cell& c = cells_[cell];
        bool open = false;
        for (Write& write : c.writes) {
            if (!write.durable && write.certain && write.returned < moment) {
                write.durable = true;
                changed = true;
            }
            open |= !write.durable;
            const bool newer = std::any_of(c.writes.begin(), c.writes.end(), [&](const Write& w) {
                return w.certain && w.issued > write.returned;
            });
            honest &= write.lost_at > answered || newer || write.returned >= moment;
        }
        c.legal_known = false;
        prune(c);
        c.listed = open;
        if (open) {
            unsettled_[kept++] = cell;
        }
    }
    unsettled_.resize(kept);
    expectation_ += changed;
    return honest;
}

void ReferenceDisk::cache_was_lost(uint64_t moment) {
    for (const uint64_t cell : unsettled_) {
        Cell& c = cells_[cell];
        for (Write& write : c.writes) {
            if (!write.durable) {
                if (write.certain) {
                    write.lost_at = std::min(write.lost_at, moment);
                }
                write.certain = false;
                write.overtaken = write.returned == UINT64_MAX;
            }
        }
        c.legal_known = false;
    }
}

void ReferenceDisk::forget_losses() {
    for (const uint64_t cell : unsettled_) {
        for (Write& write : cells_[cell].writes) {
            write.lost_at = UINT64_MAX;
        }
    }
}

/* Forget writes that no cut can show again; a read in flight may still see them. */
void ReferenceDisk::prune(Cell& cell) {
    if (reads_ != 0) {
        return;
    }
    uint64_t newest = 0;
    for (const Write& write : cell.writes) {
        if (write.durable) {
            newest = std::max(newest, write.issued);
        }
    }
    std::erase_if(cell.writes, [newest](const Write& w) { return w.returned < newest; });
}

bool ReferenceDisk::legal_at_read(uint64_t cell, Value value, uint64_t begun) const {
    uint64_t newest = 0;
    for (const Write& write : cells_[cell].writes) {
        if (write.certain && write.returned < begun) {
            newest = std::max(newest, write.issued);
        }
    }
    return std::any_of(cells_[cell].writes.begin(), cells_[cell].writes.end(),
                       [&](const Write& w) { return w.value == value && w.returned >= newest; });
}

const std::vector<Value>& ReferenceDisk::legal_after_cut(uint64_t cell) {
    Cell& c = cells_[cell];
    if (!c.legal_known) {
        uint64_t newest = 0;
        for (const Write& write : c.writes) {
            if (write.durable) {
                newest = std::max(newest, write.issued);
            }
        }
        c.legal.clear();
        for (const Write& write : c.writes) {
            if (write.returned >= newest) {
                c.legal.push_back(write.value);
            }
        }
        c.legal_known = true;
    }
    return c.legal;
}

bool ReferenceDisk::legal_after_cut(uint64_t cell, Value value) {
    const auto& legal = legal_after_cut(cell);
    return std::find(legal.begin(), legal.end(), value) != legal.end();
}

uint64_t ReferenceDisk::exact_expectation() {
    uint64_t sum = 0;
    sum = mix(size_, other_size_);
    for (uint64_t cell = 0; cell < cells_.size(); cell++) {
        uint64_t values = 0;
        for (const Value value : legal_after_cut(cell)) {
            values += mix(value + 1);
        }
        sum += mix(values, cell);
    }
    return sum;
}

std::string value_text(Value value) {
    switch (value) {
        case kZero:
            return "zeros";
        case kBase:
            return "base image";
        case kTrap:
            return "old bytes of the medium";
        case kAlien:
            return "bytes nobody wrote";
        default:
            return "write #" + std::to_string(value);
    }
}

std::string ReferenceDisk::legal_text(uint64_t cell) {
    std::string text;
    for (const Value value : legal_after_cut(cell)) {
        text += (text.empty() ? "" : " | ") + value_text(value);
    }
    return text;
}

}  // namespace fvd::sim
