/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/fetch_list.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "fvd/base/plant.h"

namespace fvd {

FetchList::~FetchList() {
    while (first_ != nullptr) {
        remove(*first_);
    }
    forget_spares();
}

void FetchList::forget_spares() {
    while (spares_ != nullptr) {
        host_.release(std::exchange(spares_, spares_->next));
    }
    spare_ = 0;
}

void FetchList::keep_memory(bool keep) {
    keep_ = keep;
    if (!keep) {
        forget_spares();
    }
}

/* A spare piece that is not much too large. */
std::byte* FetchList::take(uint64_t size, uint64_t* got) {
    for (Spare** link = &spares_; *link != nullptr; link = &(*link)->next) {
        Spare* const spare = *link;
        if (spare->size >= size && spare->size / 4 <= size) {
            *link = spare->next;
            *got = spare->size;
            spare_ -= spare->size;
            return reinterpret_cast<std::byte*>(spare);
        }
    }
    *got = size;
    void* memory = host_.allocate(size);
    if (memory == nullptr && spares_ != nullptr) {
        forget_spares();
        memory = host_.allocate(size);
    }
    return static_cast<std::byte*>(memory);
}

void FetchList::give_back(void* memory, uint64_t size) {
    const uint64_t most = std::max(kMostSpare, memory_);
    if (size + spare_ > most) {
        forget_spares(); /* sizes change, and the last ones are those that will be asked for */
    }
    if (!keep_ || size > most || FVD_PLANT(free_while_copied)) {
        host_.release(memory);
        return;
    }
    spares_ = new (memory) Spare{spares_, size};
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
