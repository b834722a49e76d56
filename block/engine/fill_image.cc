/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How blocks come here that nobody writes: because the guest read them (copy-on-read), or ahead of
 * it (prefetch). Whatever is fetched is stored in a task of its own, after the guest has its
 * answer, and what the guest wrote meanwhile stays.
 */
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"
#include "fvd/engine/image.h"
#include "fvd/format/limits.h"

namespace fvd {

namespace {

/* A shorter stretch of zeros is written with the data around it. */
constexpr uint64_t kLeastZeros = 64 * 1024;
/* After a failed store nothing is kept for a while of what the guest reads. */
constexpr PaceTime kStorePause = kPaceSecond;

bool is_zero(ConstBytes bytes) {
    return bytes.empty() || (bytes[0] == std::byte{0} &&
                             std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace

/* ---------------------------------------------------------------------------- guest's reads */

/* How the guest's read of [offset, offset + *run), which where() saw in the base, gets its data;
 * with the mutex held. The bit is looked at again, because whoever sets it may have taken its Fetch
 * off the list since. */
Image::Way Image::choose_way(uint64_t offset, uint64_t* run, Fetch** fetch) {
    const uint64_t block = offset / header_.block_size;
    if (offset >= tracked_size_ || (current_.test(block) && !FVD_PLANT(bit_before_list))) {
        return Way::again;
    }
    Fetch* const next = fetches_.first_behind(block);
    if (next != nullptr && next->blocks.begin.value <= block) {
        *run = std::min(*run, next->bytes.end - offset);
        fetches_.use(*next);
        *fetch = next;
        return Way::share;
    }
    const uint64_t end = std::min(offset + *run, next != nullptr ? next->bytes.begin : UINT64_MAX);
    const BlockRange wanted = tracked_blocks(offset, end - offset);
    const uint64_t last = current_.run_end(block, wanted.end.value, false);
    *run = std::min(block_end(last - 1), end) - offset;
    *fetch = keep({BlockIndex(block), BlockIndex(last)});
    return *fetch != nullptr ? Way::keep : Way::alone;
}

/* A Fetch of these blocks for the guest, if what it reads is to be kept and there is room. Blocks
 * that do not all fit are read as if nothing was kept: the guest waits for no second request. */
Fetch* Image::keep(BlockRange blocks) {
    const ByteRange bytes{blocks.begin.value * header_.block_size, block_end(blocks.end.value - 1)};
    const bool wanted = plan_.copy_on_read && !prefetcher_.held() && !committer_.failed();
    if (!wanted || bytes.count() + fetches_.guest_memory() > plan_.copy_on_read_memory ||
        host_.now() < keep_again_at_) {
        return nullptr;
    }
    return fetches_.add({.image = this, .blocks = blocks, .bytes = bytes});
}

/* Read a part of @p piece, which shrinks to it, where somebody may be fetching it already. */
Status Image::read_missing(Placement* piece, uint64_t offset, GuestBuffer to, uint32_t flags) {
    Fetch* fetch = nullptr;
    Way way = Way::alone;
    {
        HostLock lock(host_);
        way = choose_way(offset, &piece->run, &fetch);
    }
    const ByteRange range{offset, offset + piece->run};
    switch (way) {
        case Way::again:
            piece->run = 0;
            return {};
        case Way::share:
            return read_shared(*fetch, range, to, flags);
        case Way::keep:
            return read_and_keep(*fetch, range, to, flags);
        case Way::alone:
            break;
    }
    return read_alone(range, to, flags);
}

/* Straight into the guest's buffer. */
Status Image::read_alone(const ByteRange& range, GuestBuffer to, uint32_t flags) {
    const Slice slice = guest_slice(to.handle, to.offset, range.count());
    host_.announce(FVD_EVENT_READ_BASE);
    const Status status = read_base({&slice, 1}, range.begin, range.count(), flags);
    bytes_guest_.fetch_add(status.ok() ? range.count() : 0, std::memory_order_relaxed);
    return status;
}

/* A read of the base that the guest waits for. */
Status Image::read_base(std::span<const Slice> to, uint64_t offset, uint64_t length,
                        uint32_t flags) {
    if (!prefetcher_.wanted()) {
        return host_.read(FVD_FILE_BASE, offset, to, flags);
    }
    PaceGuestTicket ticket;
    {
        HostLock lock(host_);
        ticket = prefetcher_.guest_begun(length);
    }
    const Status status = host_.read(FVD_FILE_BASE, offset, to, flags);
    HostLock lock(host_);
    prefetcher_.guest_ended(ticket, status.ok());
    return status;
}

void Image::give(const Fetch& fetch, const ByteRange& range, GuestBuffer to) {
    if (fetch.data == nullptr) {
        host_.fill_guest_zero(to.handle, to.offset, range.count());
        return;
    }
    const ConstBytes data(fetch.data + (range.begin - fetch.bytes.begin), range.count());
    host_.copy_to_guest(to.handle, to.offset, data);
}

/* Somebody else fetches it. If that fails, it is nobody's business but his: read again. */
Status Image::read_shared(Fetch& fetch, const ByteRange& range, GuestBuffer to, uint32_t flags) {
    bool failed = false;
    {
        HostLock lock(host_);
        while (fetch.state == FetchState::reading) {
            fetch.readers.wait(host_);
        }
        failed = fetch.state == FetchState::failed;
        progress_.bytes_shared += failed ? 0 : range.count();
    }
    if (!failed) {
        give(fetch, range, to);
    }
    {
        HostLock lock(host_);
        fetches_.let_go(fetch);
    }
    if (failed && FVD_PLANT(failed_fetch_fails_all)) {
        return -EIO;
    }
    return failed ? read_alone(range, to, flags) : Status();
}

/*
 * What a base is shorter by than it was reads as zeros. To keep those as if they had been in it
 * would be for ever: it may be the wrong base, or one that somebody is still copying.
 */
Status Image::check_base_has(const ByteRange& bytes) {
    const int64_t length = host_.length(FVD_FILE_BASE);
    if (length < 0) {
        return Status(static_cast<int>(length));
    }
    if (bytes.end <= round_up(static_cast<uint64_t>(length), limits::kSectorSize)) {
        return {};
    }
    if (!warned_of_base_.exchange(true)) {
        char sentence[160];
        (void)std::snprintf(sentence, sizeof(sentence),
                            "the base is %llu bytes long, the image was made for %llu: what is "
                            "missing reads as zeros and is not kept",
                            static_cast<unsigned long long>(length),
                            static_cast<unsigned long long>(tracked_size_.load()));
        host_.warn(sentence);
    }
    return Status(-EIO);
}

/* Read whole blocks, answer with the part that is asked for, and have them stored after that. */
Status Image::read_and_keep(Fetch& fetch, const ByteRange& range, GuestBuffer to, uint32_t flags) {
    const bool wider = fetch.bytes.count() != range.count();
    const Slice slice = memory_slice(fetch.data, fetch.bytes.count());
    const bool possible = check_base_has(fetch.bytes).ok();
    Status status(-EIO);
    if (possible) {
        host_.announce(FVD_EVENT_FETCH_READ);
        status = read_base({&slice, 1}, fetch.bytes.begin, fetch.bytes.count(), 0);
    }
    {
        HostLock lock(host_);
        fetch.state = status.ok() ? FetchState::storing : FetchState::failed;
        if (!FVD_PLANT(forget_reader)) {
            fetch.readers.wake_all(host_);
        }
        if (status.ok()) {
            progress_.bytes_copy_on_read += fetch.bytes.count();
            fetches_.use(fetch);
            prefetcher_.start(store_task, &fetch);
        } else if (!FVD_PLANT(keep_failed_fetch)) {
            prefetcher_.remove(fetch);
        }
    }
    if (!status.ok()) {
        /* The part that nobody asked for may be what cannot be read. */
        return wider || !possible ? read_alone(range, to, flags) : status;
    }
    give(fetch, range, to);
    HostLock lock(host_);
    fetches_.let_go(fetch);
    return status;
}

/* ---------------------------------------------------------------------------- storing */

void Image::store_task(void* fetch) {
    Image& image = *static_cast<Fetch*>(fetch)->image;
    image.store(*static_cast<Fetch*>(fetch));
    HostLock lock(image.host_);
    image.prefetcher_.task_ended();
}

/* Store what the guest has not written meanwhile. Afterwards the Fetch is over. */
void Image::store(Fetch& fetch) {
    uint64_t kept = 0;
    const Status status = store_blocks(fetch, &kept);
    HostLock lock(host_);
    progress_.bytes_stored += kept;
    if (fetch.who == FetchFor::zeros) {
        progress_.bytes_zero += kept;
    } else {
        progress_.bytes_dropped += fetch.bytes.count() - kept;
    }
    if (!status.ok()) {
        progress_.store_errors++;
        keep_again_at_ = pace_after(host_.now(), kStorePause);
    }
    prefetcher_.stored(fetch, kept, status.ok());
    prefetcher_.remove(fetch);
    if (committer_.failed()) {
        prefetcher_.end(); /* until it is opened again */
    }
}

Status Image::store_blocks(const Fetch& fetch, uint64_t* kept) {
    if (Status status = give_slots(fetch); !status.ok()) {
        return status;
    }
    RangeLocks::Node node{.range = bytes_of(fetch.blocks)};
    {
        HostLock lock(host_);
        locks_.acquire(host_, node);
    }
    Status status = committer_.failed() ? Status(-EIO) : Status();
    uint64_t block = fetch.blocks.begin.value;
    while (block < fetch.blocks.end.value && status.ok()) {
        const bool here = current_.test(block) && !FVD_PLANT(store_over_guest);
        const uint64_t end = current_.run_end(block, fetch.blocks.end.value, here);
        if (!here) {
            status = store_run(fetch, {BlockIndex(block), BlockIndex(end)}, kept);
        }
        block = end;
    }
    HostLock lock(host_);
    locks_.release(host_, node);
    return status;
}

/* Of a compact image: a slot for each chunk that is going to need one. Before the lock on blocks,
 * as for writes: who waits for a slot may wait for others who want that lock. */
Status Image::give_slots(const Fetch& fetch) {
    if (!header_.has_table() || fetch.data == nullptr || committer_.failed()) {
        return {};
    }
    uint64_t at = fetch.bytes.begin;
    while (at < fetch.bytes.end) {
        const uint64_t end =
            std::min((at / header_.chunk_size + 1) * header_.chunk_size, fetch.bytes.end);
        const ConstBytes data(fetch.data + (at - fetch.bytes.begin), end - at);
        if (!all_here(tracked_blocks(at, end - at)) && !is_zero(data)) {
            if (Status status = store_chunks(at, end - at); !status.ok()) {
                return status;
            }
        }
        at = end;
    }
    return {};
}

/* With the blocks locked, and none of them here: store them, in pieces that stand together. */
Status Image::store_run(const Fetch& fetch, BlockRange run, uint64_t* kept) {
    const ChunkAllocator::Use use(slots_in_use());
    uint64_t at = run.begin.value * header_.block_size;
    const uint64_t end = std::min(run.end.value * header_.block_size, fetch.bytes.end);
    while (at < end) {
        const Placement place = stored_at(at, end - at);
        bool zero = fetch.data == nullptr;
        uint64_t length = place.run;
        if (!zero) {
            length = same_kind({fetch.data + (at - fetch.bytes.begin), place.run}, &zero);
        }
        /* A discard has taken the slot again: it is fetched once more, if anybody wants it. */
        const bool lost = place.place == Place::zero && !zero;
        const BlockRange blocks{BlockIndex(at / header_.block_size),
                                BlockIndex(div_ceil(at + length, header_.block_size))};
        if (!lost) {
            if (FVD_PLANT(record_before_store)) {
                committer_.record(blocks);
            }
            if (Status status = store_piece(fetch, at, length, place, zero); !status.ok()) {
                return status;
            }
            committer_.record(blocks);
            *kept += length;
        }
        at += length;
    }
    return {};
}

/* How much of @p data, which begins with a block, is zeros to the same degree as its beginning; in
 * whole blocks. */
uint64_t Image::same_kind(ConstBytes data, bool* zero) const {
    const uint64_t block = header_.block_size;
    const uint64_t unit = std::max(kLeastZeros / block, uint64_t{1}) * block;
    uint64_t length = 0;
    while (length < data.size()) {
        const ConstBytes next = data.subspan(length, std::min(unit, data.size() - length));
        const bool is = is_zero(next);
        if (length != 0 && is != *zero) {
            break;
        }
        *zero = is;
        length += next.size();
    }
    return length;
}

/* In a chunk without a slot, being here is being zeros. */
Status Image::store_piece(const Fetch& fetch, uint64_t at, uint64_t length, const Placement& place,
                          bool zero) {
    if (place.place == Place::zero) {
        return {};
    }
    host_.announce(FVD_EVENT_FETCH_STORE);
    if (zero) {
        const Status status = host_.write_zeroes(
            FVD_FILE_DATA, place.data_offset, length,
            fetch.data != nullptr ? FVD_REQ_MAY_UNMAP | FVD_REQ_NO_FALLBACK : FVD_REQ_MAY_UNMAP);
        if (status.value() != -ENOTSUP || fetch.data == nullptr) {
            return status;
        }
    }
    std::byte* const data = fetch.data + (at - fetch.bytes.begin);
    return write_bytes(host_, FVD_FILE_DATA, place.data_offset, {data, length});
}

/* ---------------------------------------------------------------------------- prefetch */

void Image::fetch_task(void* fetch) {
    Image& image = *static_cast<Fetch*>(fetch)->image;
    image.fetch(*static_cast<Fetch*>(fetch));
    HostLock lock(image.host_);
    image.prefetcher_.task_ended();
}

void Image::fetch(Fetch& fetch) {
    const uint64_t length = fetch.bytes.count();
    Status status = check_base_has(fetch.bytes);
    if (status.ok()) {
        host_.announce(FVD_EVENT_FETCH_READ);
        status = read_bytes(host_, FVD_FILE_BASE, fetch.bytes.begin, {fetch.data, length});
    }
    bool store_now = false;
    {
        HostLock lock(host_);
        progress_.bytes_prefetch += status.ok() ? length : 0;
        progress_.base_errors += !status.ok();
        store_now = prefetcher_.fetched(fetch, status.ok());
    }
    if (store_now) {
        store(fetch);
    }
}

/* What the base says to be zeros is not fetched. An error says nothing: it is fetched then. */
void Image::look_task(void* of) {
    Image& image = *static_cast<Image*>(of);
    Host& host = image.host_;
    ByteRange range;
    {
        HostLock lock(host);
        range = image.prefetcher_.begin_look();
    }
    const PaceTime begun = host.now();
    uint64_t run = range.count();
    bool zero = false;
    if (!range.empty() &&
        !host.extent(FVD_FILE_BASE, range.begin, range.count(), &zero, &run).ok()) {
        zero = false;
        run = range.count();
    }
    const PaceTime took = host.now() - begun;
    run = std::min(run, range.count());
    zero = zero && image.check_base_has({range.begin, range.begin + run}).ok();
    if (zero) {
        run = image.store_zeros({range.begin, range.begin + run}).end - range.begin;
    }
    HostLock lock(host);
    image.prefetcher_.end_look(range.begin, run, zero, took);
    image.prefetcher_.task_ended();
}

/* Zeros up to the end of what this returns are here, or cannot be. */
ByteRange Image::store_zeros(const ByteRange& zeros) {
    ByteRange done{zeros.begin, zeros.begin};
    for (;;) {
        Fetch* next = nullptr;
        {
            HostLock lock(host_);
            next = prefetcher_.claim_zeros({done.end, zeros.end});
            if (next == nullptr) {
                return prefetcher_.held() ? done : zeros;
            }
        }
        done.end = std::min(next->bytes.end, zeros.end);
        store(*next);
    }
}

/* Everything is here: first durably, and then the header may say so. */
void Image::finish_task(void* of) {
    Image& image = *static_cast<Image*>(of);
    Status status = FVD_PLANT(filled_before_flush) ? Status() : image.committer_.flush();
    if (status.ok()) {
        status = image.committer_.set_filled(true);
    }
    {
        HostLock lock(image.host_);
        image.prefetcher_.finished(status.ok());
        if (image.committer_.failed()) {
            image.prefetcher_.end();
        }
    }
    if (status.ok()) {
        image.host_.announce(FVD_EVENT_FILLED);
    }
    HostLock lock(image.host_);
    image.prefetcher_.task_ended();
}

}  // namespace fvd
