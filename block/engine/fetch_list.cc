/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/fetch_list.h"

#include <algorithm>
#include <bit>
#include <new>

#include "fvd/base/plant.h"

namespace fvd {

FetchList::~FetchList() {
    while (first_ != nullptr) {
        remove(*first_);
    }
    forget_spares();
}

void FetchList::forget_spares() {
    while (newest_ != nullptr) {
        host_.release(unlink(*newest_));
    }
}

void* FetchList::unlink(Spare& spare) {
    (spare.newer != nullptr ? spare.newer->older : newest_) = spare.older;
    (spare.older != nullptr ? spare.older->newer : oldest_) = spare.newer;
    spare_ -= spare.size;
    return &spare;
}

void FetchList::keep_memory(bool keep) {
    keep_ = keep;
    if (!keep) {
        forget_spares();
        peak_ = used_;
    }
}

/* A spare piece that is not much too large. */
std::byte* FetchList::take(uint64_t size, uint64_t* got) {
    for (Spare* spare = newest_; spare != nullptr; spare = spare->older) {
        if (spare->size >= size && spare->size / 4 <= size) {
            *got = spare->size;
            return static_cast<std::byte*>(unlink(*spare));
        }
    }
    *got = size;
    void* memory = host_.allocate(size);
    if (memory == nullptr && newest_ != nullptr) {
        forget_spares();
        memory = host_.allocate(size);
    }
    return static_cast<std::byte*>(memory);
}

/* The peak is forgotten as memory is used over and over, so that it stays where use goes up and
 * down. */
void FetchList::give_back(void* memory, uint64_t size) {
    used_ -= size;
    peak_ = std::max(used_ + size, peak_ - std::min(peak_, size / kForget));
    const uint64_t most = std::max(kMostSpare, peak_ + peak_ / kSlack);
    while (newest_ != nullptr && used_ + spare_ + size > most) {
        host_.release(unlink(*oldest_)); /* sizes change, and newer ones are asked for again */
    }
    if (!keep_ || FVD_PLANT(free_while_copied)) {
        host_.release(memory);
        return;
    }
    auto* const spare = new (memory) Spare{nullptr, newest_, size};
    (newest_ != nullptr ? newest_->newer : oldest_) = spare;
    newest_ = spare;
    spare_ += size;
}

Fetch* FetchList::first_behind(uint64_t block) const {
    Fetch* fetch = first_;
    while (fetch != nullptr && fetch->blocks.end.value <= block) {
        fetch = fetch->next;
    }
    return fetch;
}

/* New ones mostly go to the end. */
void FetchList::link(Fetch& fetch) {
    Fetch* before = last_;
    while (before != nullptr && fetch.blocks.begin < before->blocks.begin) {
        before = before->previous;
    }
    Fetch* const after = before != nullptr ? before->next : first_;
    FVD_ASSERT(before == nullptr || before->blocks.end <= fetch.blocks.begin);
    FVD_ASSERT(after == nullptr || fetch.blocks.end <= after->blocks.begin);
    fetch.previous = before;
    fetch.next = after;
    (before != nullptr ? before->next : first_) = &fetch;
    (after != nullptr ? after->previous : last_) = &fetch;
}

/* One piece of memory for the data, which wants to be aligned, and what is known of it. Requests
 * grow a little from one to the next, so memory is of a few sizes only; what nobody touches is
 * none. */
Fetch* FetchList::add(const Fetch& what) {
    const bool has_data = what.who != FetchFor::zeros;
    const uint64_t room = has_data ? std::bit_ceil(std::max(what.bytes.count(), kLeastRoom)) : 0;
    uint64_t size = 0;
    std::byte* const memory = take(room + sizeof(Fetch), &size);
    if (memory == nullptr) {
        return nullptr;
    }
    Fetch* const fetch = new (memory + room) Fetch(what);
    fetch->memory = size;
    used_ += size;
    fetch->data = has_data ? memory : nullptr;
    link(*fetch);
    count_.fetch_add(1, std::memory_order_release);
    memory_ += held_by(*fetch);
    guest_memory_ += fetch->who == FetchFor::guest ? held_by(*fetch) : 0;
    return fetch;
}

void FetchList::remove(Fetch& fetch) {
    (fetch.previous != nullptr ? fetch.previous->next : first_) = fetch.next;
    (fetch.next != nullptr ? fetch.next->previous : last_) = fetch.previous;
    count_.fetch_sub(1, std::memory_order_release);
    let_go(fetch);
}

void FetchList::let_go(Fetch& fetch) {
    FVD_ASSERT(fetch.users != 0);
    if (--fetch.users != 0 && !FVD_PLANT(free_while_copied)) {
        return;
    }
    memory_ -= held_by(fetch);
    guest_memory_ -= fetch.who == FetchFor::guest ? held_by(fetch) : 0;
    give_back(fetch.data != nullptr ? static_cast<void*>(fetch.data) : &fetch, fetch.memory);
}

}  // namespace fvd
